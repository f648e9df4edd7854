"""Is acceptance related to the length of the token, and what does length add to entropy, frequency and position?

Every prompt is decoded by an instrumented replay, not by the timed path: this suite is about acceptance, and its seconds do not
measure speed. `bench.records.token_length` describes its records, `bench.reporting.suites.token_length` its tables.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backends.certification import token_evidence
from backends.certification.true_target import true_target
from backends.models import checkpoints
from bench.analysis.metrics import JOINT_RULES
from bench.analysis.token_length import positions
from bench.measurement.cells import first_cell, request_of, unsupported
from bench.measurement.recording import Workload, shared_header
from bench.options.settings import Settings
from bench.progress import Meter
from bench.protocols import Backend, Replayable
from bench.records import token_length
from bench.records.decoding import derive_seed
from bench.records.token_length import SUITE, Header, JudgedText
from bench.reporting.formats import terminal
from bench.reporting.suites.token_length import length_table

DEFAULTS = {
    "smoke": {"temperatures": (1.0,), "num_prompts": 6},
    "quick": {"temperatures": (0.0, 0.5, 1.0), "num_prompts": 12, "max_new_tokens": 48, "num_draft_tokens": (2,)},
    "paper": {"temperatures": (0.0, 0.25, 0.5, 0.75, 1.0), "num_prompts": 48, "max_new_tokens": 128},
}


def test_token_length(
    benchmark: Any, backend: Backend, settings: Settings, workload: Workload, capsys: pytest.CaptureFixture
) -> None:
    if not isinstance(backend, Replayable):
        pytest.skip(f"{backend.name} cannot repeat a generation with its acceptance probabilities")
    if (rule := settings.rules[0]) in JOINT_RULES:
        pytest.skip(f"{backend.name} judges whole rounds by the rule {rule}, not single tokens")
    cells = {
        temperature: first_cell(SUITE, backend.name, replace(settings, temperatures=(temperature,)), workload)
        for temperature in settings.temperatures
    }
    for cell in cells.values():
        if reason := unsupported(cell, backend):
            pytest.skip(f"{backend.name} {reason}")
    target, _ = true_target(backend, workload.model_pair, settings.device)
    speller = token_evidence.Speller(checkpoints.tokenizer(workload.model_pair.target))

    def judge(temperature: float, prompt_index: int) -> JudgedText:
        request = request_of(cells[temperature], workload.prompt_ids[prompt_index], workload.end_token_ids)
        # The draws do not depend on the draft length or the rule.
        request = replace(request, seed=derive_seed(settings.seed, SUITE, temperature, prompt_index))
        replay = backend.replay(request)
        return token_length.judged_text(
            replay,
            prompt_index=prompt_index,
            temperature=temperature,
            spellings=[speller.spell(token_id) for token_id in replay.token_ids],
            entropies=token_evidence.entropies(target, request.prompt_ids, replay.token_ids),
        )

    header = header_of(backend, settings, workload)
    found, passed_over = token_length.find_resumable(settings.results, header) if settings.resume else (None, ())
    path = found or token_length.start(settings.results, header)
    total = len(header.temperatures) * header.num_prompts
    benchmark.group = f"{SUITE} {workload.model_pair.name}"
    benchmark.extra_info.update(backend=backend.name, rule=header.rule, num_draft_tokens=header.num_draft_tokens)
    with capsys.disabled(), Meter(f"{SUITE} {backend.name}", total, unit="texts") as meter:
        for line in passed_over:
            meter.note(line)
        try:
            benchmark.pedantic(token_length.measure, (path, header, judge), {"on_text": meter.show}, rounds=1, iterations=1)
        except KeyboardInterrupt:
            meter.note("interrupted: what was decoded is kept; the same command with --resume goes on from there")
            raise
    path = token_length.finish(path)
    with capsys.disabled():
        print(f"\n\n{path}\n\n{terminal(length_table(positions(token_length.load(path))))}\n")


def header_of(backend: Backend, settings: Settings, workload: Workload) -> Header:
    repeated = ("temperatures", "top_k", "top_p", "max_new_tokens", "end_token", "seed")
    return Header(
        schema=token_length.SCHEMA,
        **shared_header(SUITE, settings, workload),
        backend=backend.name,
        backend_settings=dict(backend.settings()),
        prompt_set=workload.prompt_set,
        prompts_hash=workload.prompts_hash,
        prompt_format=dict(workload.prompt_format),
        num_prompts=len(workload.prompt_ids),
        num_draft_tokens=settings.num_draft_tokens[0],
        rule=settings.rules[0],
        draft_temperature=settings.draft_temperatures[0],
        **{name: getattr(settings, name) for name in repeated},
    )
