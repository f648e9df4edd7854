"""Is acceptance related to the length of the token, and what does length add to entropy, frequency and position?

Every text is decoded by an instrumented replay, not by the timed path: this suite is about acceptance, and its seconds say
nothing of speed. A record is JSON lines, one text a line: `bench.records.token_length` says what is in it, and
`bench.reporting.suites.token_length` what it shows.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backends.certification import scoring, token_evidence
from backends.models import checkpoints
from bench.analysis.metrics import JOINT_RULES
from bench.analysis.token_length import positions
from bench.measurement.recording import Workload
from bench.options.settings import Settings
from bench.progress import Meter
from bench.protocols import Backend, Replayable
from bench.records import environment, token_length
from bench.records.decoding import DecodeRequest, derive_seed
from bench.records.token_length import Header, JudgedText
from bench.reporting.suites.token_length import length_table

DEFAULTS = {
    "smoke": {"temperatures": (1.0,), "num_prompts": 6},
    "quick": {"temperatures": (0.0, 0.5, 1.0), "num_prompts": 16, "max_new_tokens": 48, "num_draft_tokens": (2,)},
    "paper": {"temperatures": (0.0, 0.25, 0.5, 0.75, 1.0), "num_prompts": 48, "max_new_tokens": 128},
}


def test_token_length(
    benchmark: Any,
    backend: Backend,
    settings: Settings,
    workload: Workload,
    capsys: pytest.CaptureFixture,
) -> None:
    if reason := unsupported(backend, settings):
        pytest.skip(f"{backend.name} {reason}")
    header = header_of(backend, settings, workload)
    found = token_length.find_resumable(settings.results, header) if settings.resume else None
    path = found or token_length.start(settings.results, header)
    judge = Judge(backend, settings, workload)
    total = len(header.temperatures) * header.num_prompts

    def decode() -> None:
        token_length.measure(path, header, judge.judge, on_text=meter.show)

    benchmark.group = f"{token_length.SUITE} {workload.model_pair.name}"
    benchmark.extra_info.update(backend=backend.name, rule=header.rule, num_draft_tokens=header.num_draft_tokens)
    with capsys.disabled(), Meter(f"{token_length.SUITE} {backend.name}", total, unit="texts") as meter:
        try:
            benchmark.pedantic(decode, rounds=1, iterations=1)
        except KeyboardInterrupt:
            meter.note("interrupted: finished texts are kept; the same command with --resume goes on from there")
            raise
    report(token_length.finish(path), capsys)


def report(path: Path, capsys: pytest.CaptureFixture) -> None:
    """Where the record lies, and acceptance by length; the models are left to `specheat tables`."""
    table = length_table(positions(token_length.load(path)))
    with capsys.disabled():
        print(f"\n\n{path}\n\n{table}\n")


def unsupported(backend: Backend, settings: Settings) -> str | None:
    """Why an engine cannot decode these texts; None if it can."""
    able, rule = backend.capabilities, settings.rules[0]
    if not isinstance(backend, Replayable):
        return "cannot repeat a text with its acceptance probabilities noted"
    if rule in JOINT_RULES:
        return f"judges by the rule {rule} whole rounds, no single token"
    if rule not in able.rules:
        return f"has the rules {', '.join(sorted(able.rules))}, not {rule}"
    draft_temperature = settings.draft_temperatures[0]
    if max(*settings.temperatures, draft_temperature or 0.0) > able.max_temperature:
        return f"takes temperatures up to {able.max_temperature:g}"
    if draft_temperature is not None and not able.draft_temperature:
        return "drafts at the decode temperature only"
    if (settings.top_k or settings.top_p < 1) and not able.truncation:
        return "takes neither top-k nor top-p"
    return None


def header_of(backend: Backend, settings: Settings, workload: Workload) -> Header:
    return Header(
        schema=token_length.SCHEMA,
        suite=token_length.SUITE,
        preset=settings.preset,
        command=environment.command_line(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment.capture(settings.device),
        backend=backend.name,
        backend_settings=dict(backend.settings()),
        model_pair=workload.recorded_pair,
        model_hashes=dict(workload.model_hashes),
        prompt_set=workload.prompt_set,
        prompts_hash=workload.prompts_hash,
        prompt_format=dict(workload.prompt_format),
        num_prompts=len(workload.prompt_ids),
        num_draft_tokens=settings.num_draft_tokens[0],
        rule=settings.rules[0],
        temperatures=settings.temperatures,
        draft_temperature=settings.draft_temperatures[0],
        top_k=settings.top_k,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        end_token=settings.end_token,
        seed=settings.seed,
    )


class Judge:
    """Decodes texts and asks target and tokenizer about their tokens."""

    def __init__(self, backend: Backend, settings: Settings, workload: Workload) -> None:
        self.backend = backend
        self.settings = settings
        self.workload = workload
        lent = scoring.lent_target(backend)
        self.target = lent or scoring.load_target(workload.model_pair, settings.device)
        self.speller = token_evidence.Speller(checkpoints.tokenizer(workload.model_pair))

    def judge(self, temperature: float, prompt_index: int) -> JudgedText:
        asked = self._request(temperature, prompt_index)
        replay = self.backend.replay(asked)
        return token_length.judged_text(
            replay,
            prompt_index=prompt_index,
            temperature=temperature,
            spellings=[self.speller.spell(token_id) for token_id in replay.token_ids],
            entropies=token_evidence.entropies(self.target, asked.prompt_ids, replay.token_ids),
        )

    def _request(self, temperature: float, prompt_index: int) -> DecodeRequest:
        settings = self.settings
        return DecodeRequest(
            prompt_ids=self.workload.prompt_ids[prompt_index],
            max_new_tokens=settings.max_new_tokens,
            num_draft_tokens=settings.num_draft_tokens[0],
            temperature=temperature,
            draft_temperature=settings.draft_temperatures[0],
            top_k=settings.top_k,
            top_p=settings.top_p,
            rule=settings.rules[0],
            seed=derive_seed(settings.seed, token_length.SUITE, temperature, prompt_index),
            eos_token_ids=self.workload.end_token_ids if settings.end_token == "natural" else (),
        )
