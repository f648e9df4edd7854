"""The record of token lengths: its lines, resuming, reading, and the suite that writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from backends.certification.token_evidence import entropies
from backends.engines.reference import ReferenceBackend
from bench.analysis.token_length import positions
from bench.records import token_length
from bench.records.decoding import DecodeRequest, PhaseSeconds, Replay, Round
from bench.records.token_length import JudgedText, judged_positions, judged_text
from tests.support.children import run_suites
from tests.support.simulated_lengths import HEADER, simulated, simulated_text, stored
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

SUITE = "suites/test_token_length.py"


def replay_of(token_ids: Sequence[int], rounds: Sequence[Round], probs: Sequence[Sequence[float]]) -> Replay:
    return Replay(tuple(token_ids), tuple(rounds), tuple(map(tuple, probs)), None, PhaseSeconds(0, 0, 0, 0, 0))


def test_tested_positions_are_accepted_and_rejected_drafts_and_nothing_after_them() -> None:
    #  place 0: prefill | 1 2 3: both accepted, bonus | 4: rejected at once | 5 6: second rejected | 7: accepted end token
    rounds = (Round(2, 2, 3), Round(2, 0, 1), Round(2, 1, 2), Round(2, 1, 1))
    replay = replay_of(range(10, 18), rounds, [(0.9, 0.8), (0.1,), (0.7, 0.2), (0.6,)])
    assert list(judged_positions(replay)) == [
        *((1, 1, True, 0.9), (2, 2, True, 0.8)),  # the bonus token at 3 was not drafted
        (4, 1, False, 0.1),
        *((5, 1, True, 0.7), (6, 2, False, 0.2)),
        (7, 1, True, 0.6),  # draft tokens after an end token were not tested
    ]


def test_a_recovered_end_token_is_a_rejection_and_a_round_without_drafts_tests_nothing() -> None:
    rounds = (Round(0, 0, 1), Round(2, 0, 1))
    assert list(judged_positions(replay_of((5, 6, 2), rounds, [(), (0.3,)]))) == [(2, 1, False, 0.3)]


def test_a_first_round_may_carry_the_prefill() -> None:
    assert [place for place, *_ in judged_positions(replay_of((5, 6), [Round(1, 1, 2)], [(0.3,)]))] == [0]


@pytest.mark.parametrize(
    ("token_ids", "probs", "said"),
    [((5, 6), [(0.5, 0.5)], "expected 1 acceptance"), ((5, 6, 7, 8, 9), [(0.5,)], "expected rounds that emit")],
)
def test_rounds_that_do_not_fit_are_refused(token_ids: tuple[int, ...], probs: list[tuple[float, ...]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(judged_positions(replay_of(token_ids, [Round(2, 0, 1)], probs)))


def test_a_line_holds_the_emitted_token_of_each_tested_position() -> None:
    replay = replay_of((4, 5, 6, 2), [Round(2, 1, 2), Round(1, 1, 1)], [(0.9, 0.1), (1.0000001,)])
    text = judged_text(
        *(replay,),
        prompt_index=3,
        temperature=0.5,
        spellings=[b"a", b" the", "né".encode()[:-1], None],
        entropies=[0.0, 1.0, 2.0, 3.0],
    )
    assert text.token_ids == (5, 6, 2)
    assert text.accepted == (1, 0, 1)
    assert text.acceptance_probs == (0.9, 0.1, 1.0)
    assert text.num_bytes == (4, 2, 0)
    assert text.num_chars == (4, 2, 0)  # a character counts where it begins
    assert text.special == (0, 0, 1)
    assert text.entropies == (1.0, 2.0, 3.0)


def test_a_decoded_text_has_an_entry_for_every_tested_token() -> None:
    target = tiny_llama(seed=1)
    backend = ReferenceBackend(target, nearby(target, seed=2))
    request = DecodeRequest(prompt_ids=(1, 5), max_new_tokens=40, num_draft_tokens=3, seed=4, eos_token_ids=(2,))
    replay = backend.replay(request)
    text = judged_text(
        *(replay,),
        prompt_index=0,
        temperature=1.0,
        spellings=[b"w"] * len(replay.token_ids),
        entropies=entropies(target, request.prompt_ids, replay.token_ids),
    )
    assert len(text.places) == sum(map(len, replay.acceptance_probs)) > 0
    assert sum(text.accepted) == sum(round_.accepted for round_ in replay.rounds)
    assert text.token_ids == tuple(replay.token_ids[place] for place in text.places)
    assert all(0 <= entropy <= math.log(24) for entropy in text.entropies)


def test_resume_decodes_only_what_is_missing(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    asked: list[tuple[float, int]] = []

    def judge(temperature: float, prompt_index: int) -> JudgedText:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append((temperature, prompt_index))
        return simulated_text(rng, prompt_index, temperature, of_length=0.0, of_entropy=1.0)

    path = token_length.start(tmp_path, HEADER)
    with pytest.raises(KeyboardInterrupt):
        token_length.measure(path, HEADER, judge, on_text=lambda done: None)
    with path.open("a") as file:
        file.write('{"prompt_index": 5, "temp')  # the text under way, had the machine stopped
    again = replace(HEADER, command=("pytest", "--resume"), created="2026-11-24T10:00:00+00:00")
    assert token_length.find_resumable(tmp_path, again) == (path, ())
    first, asked[:] = asked.copy(), []
    shown: list[int] = []

    def go_on(temperature: float, prompt_index: int) -> JudgedText:
        asked.append((temperature, prompt_index))
        return simulated_text(rng, prompt_index, temperature, of_length=0.0, of_entropy=1.0)

    token_length.measure(path, again, go_on, on_text=shown.append)
    assert len(first) == 5
    assert [*first, *asked] == [(temperature, prompt) for temperature in (0.5, 1.0) for prompt in range(6)]
    assert shown == list(range(5, 13))
    final = token_length.finish(path)
    assert final.name == "20261123T100000Z-abcdef0123-reference.jsonl"
    assert final.parent == tmp_path / "example-2c" / "token_length" / "records"
    assert len(token_length.load(final).texts) == 12
    assert token_length.find_resumable(tmp_path, again) == (None, ())
    with pytest.raises(FileExistsError):
        token_length.start(tmp_path, HEADER)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "a different seed"),
        ({"temperatures": (0.5,)}, "a different temperatures"),
        ({"model_hashes": {"target": "1", "draft": "9"}}, "a different model_hashes"),
        ({"environment": {**HEADER.environment, "harness_commit": "9"}}, "harness_commit (abcdef0123 against 9)"),
        ({"environment": {**HEADER.environment, "harness_diff": "9"}}, "harness_diff (absent against 9)"),
        ({"environment": {**HEADER.environment, "torch": "9"}}, "against 9)"),
    ],
)
def test_another_plan_model_version_or_code_is_passed_over_with_a_line(
    change: dict[str, object], reason: str, tmp_path: Path
) -> None:
    path = token_length.start(tmp_path, HEADER)
    found, (line,) = token_length.find_resumable(tmp_path, replace(HEADER, **change))  # type: ignore[arg-type]
    assert found is None
    assert line.startswith(f"{path.name} is not resumable: ")
    assert line.endswith(reason)
    path.write_text("{}\n")
    assert token_length.find_resumable(tmp_path, HEADER)[0] is None


def test_a_record_is_read_back_as_it_was_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    record = simulated(12)
    path = stored(record, tmp_path)
    assert token_length.load(path) == record
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[1:]]))
    with pytest.raises(ValueError, match="is not a record of token_length"):
        token_length.load(path)


def test_the_suite_leaves_a_record_and_skips_an_engine_without_the_rule(tmp_path: Path) -> None:
    target = tiny_llama(seed=1)
    pair = ("--target", save_checkpoint(target, tmp_path / "target"))
    pair += ("--draft", save_checkpoint(nearby(target, seed=2), tmp_path / "draft"))
    asked = (*pair, "--preset", "smoke", "--chat-template", "none", "--results", str(tmp_path / "results"))
    asked += ("--temperatures", "0,1", "--backend", "reference", "--backend", "prompt-lookup")
    done = run_suites(SUITE, *asked, f"--benchmark-json={tmp_path / 'benchmark.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").rglob("*.jsonl")
    assert str(path) in done.stdout
    record = token_length.load(path)
    assert [(text.temperature, text.prompt_index) for text in record.texts] == [(t, i) for t in (0.0, 1.0) for i in range(6)]
    assert record.header.num_draft_tokens == 2
    assert str(tmp_path) not in json.dumps(asdict(replace(record.header, command=())))  # no folder of this machine
    data = positions(record)
    cold = data.temperatures == 0
    assert (data.acceptance_probs[cold] == data.accepted[cold]).all()  # greedy leaves nothing to chance
    assert "bytes" in done.stdout
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["benchmarks"]) == 1
    assert "prompt-lookup has the rules exact_match, not rejection" in done.stdout
