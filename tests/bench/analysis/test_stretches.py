"""A temperature that changes within a text: decoded, certified, and taken apart again."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from backends.certification import scoring
from backends.certification.scoring import TargetScorer, Text, evidence_for_cell, near_tie_tolerance, slots_of
from backends.engines.assisted import Assisted
from backends.engines.reference import Options, ReferenceBackend
from backends.engines.vllm_engine import check_request
from bench.analysis import metrics
from bench.analysis.certificate import Certificate, Sample, certificates_of, certify
from bench.analysis.rows import newest_rows
from bench.analysis.stretches import Stretch, alpha_against, counted_alpha, counts_in, expected_alpha, stretches
from bench.analysis.verdict import verdict_of
from bench.measurement import cells as measured_cells
from bench.measurement.cells import check_cell_schedule, unsupported
from bench.protocols import Capabilities
from bench.records import files
from bench.records.decoding import DecodeRequest, Replay, Round, Schedule, derive_seed, parse_schedule, schedule_text
from bench.records.runs import Cell, CellRecord, Evidence, TimedArm, TimedPair
from bench.reporting.suites.dynamic_temperature import halves_table
from bench.statistics.intervals import martingale_z, two_sided_p
from suites import test_dynamic_temperature as suite
from tests.faults.decoders import verifying
from tests.studies.simulated_texts import make_target, simulate
from tests.suites.test_suites import SMALL
from tests.support.children import run_suites
from tests.support.logits_by_context import LogitsByContext
from tests.support.record_builder import make_cell, make_record, make_run
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

PROMPT = (3, 1, 4, 1, 5)
TARGET = tiny_llama(seed=1)
MODELS = (TARGET, nearby(TARGET, seed=2))
HOT_THEN_COLD: Schedule = ((0, 1.5), (20, 0.3))
COLD_THEN_HOT: Schedule = ((0, 0.3), (20, 1.5))


@pytest.fixture(scope="module")
def backend() -> ReferenceBackend:
    return reference()


@functools.cache
def reference() -> ReferenceBackend:
    # For models this small, packed weights take twice the time of plain ones.
    return ReferenceBackend(*MODELS, Options(weights="plain"))


def request(**changes: Any) -> DecodeRequest:
    return DecodeRequest(**{"prompt_ids": PROMPT, "max_new_tokens": 40, "num_draft_tokens": 3, **changes})


def scheduled_cell(schedule: Schedule, **changes: Any) -> Any:
    hottest = max(temperature for _, temperature in schedule)
    return make_cell(temperature=hottest, schedule=schedule, **changes)


# Words
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (((3, 1.0),), "first piece starts at token 0, got 3"),
        (((0, 1.0), (5, 0.5), (5, 0.7)), "pieces in ascending order, got starts 0, 5, 5"),
        (((0, 1.0), (5, -0.5)), "finite temperatures >= 0, got -0.5"),
        (((0, float("inf")),), "finite temperatures >= 0, got inf"),
    ],
)
def test_a_schedule_that_is_none_is_refused_in_one_line(schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request(schedule=schedule)


def test_a_schedule_is_read_as_it_is_written() -> None:
    assert parse_schedule("1@0,0.25@24") == ((0, 1.0), (24, 0.25))
    for text in ("1@0", "1@0,0.25@24", "0.1234567@0,2@1,0@7"):
        assert schedule_text(parse_schedule(text)) == text
    for text in ("", "1", "1@0@2", "1@0,x@3", "1@0,1@2.5"):
        with pytest.raises(ValueError, match="expected a schedule such as"):
            parse_schedule(text)


def test_a_token_has_the_temperature_of_its_place() -> None:
    asked = request(temperature=9.0, schedule=((0, 1.0), (2, 0.5), (3, 0.25)))
    assert [asked.temperature_at(index) for index in range(5)] == [1.0, 1.0, 0.5, 0.25, 0.25]
    assert [asked.draft_temperature_at(index) for index in range(3)] == [1.0, 1.0, 0.5]
    assert replace(asked, draft_temperature=0.7).draft_temperature_at(4) == 0.7
    assert request(temperature=0.8).temperature_at(3) == request(temperature=0.8).draft_temperature_at(3) == 0.8


def test_a_cell_says_its_schedule_and_one_without_says_its_temperature() -> None:
    cell = scheduled_cell(HOT_THEN_COLD)
    assert cell.schedule == HOT_THEN_COLD
    assert "T=1.5@0,0.3@20 " in cell.label
    assert make_cell().schedule == ()
    assert "T=1 " in make_cell().label


# The decoder
@pytest.mark.parametrize("num_draft_tokens", [1, 2, 3, 7])
def test_a_greedy_schedule_gives_the_ids_of_greedy_decoding(backend: ReferenceBackend, num_draft_tokens: int) -> None:
    greedy = backend.generate(request(temperature=0.0, num_draft_tokens=0)).token_ids
    asked = request(schedule=((0, 0.0), (7, 0.0)), num_draft_tokens=num_draft_tokens)
    assert backend.generate(asked).token_ids == greedy


@pytest.mark.parametrize("num_draft_tokens", [0, 1, 3])
def test_a_greedy_beginning_ends_at_the_switch_wherever_in_a_round_it_falls(
    backend: ReferenceBackend, num_draft_tokens: int
) -> None:
    greedy = backend.generate(request(temperature=0.0, num_draft_tokens=0, max_new_tokens=16)).token_ids
    for switch in range(1, 9):
        # The tokens after the switch leave room for one more round of all drafts.
        asked = request(schedule=((0, 0.0), (switch, 50.0)), num_draft_tokens=num_draft_tokens, max_new_tokens=16)
        texts = [backend.generate(replace(asked, seed=seed)).token_ids for seed in range(8)]
        assert all(text[:switch] == greedy[:switch] for text in texts)
        # At T = 50 one of 24 tokens is drawn almost evenly: 8 equal ones have a chance below 1e-9.
        assert len({text[switch] for text in texts}) > 1


def test_a_schedule_of_one_piece_is_that_temperature(backend: ReferenceBackend) -> None:
    for k in (0, 3):
        plain = backend.generate(request(temperature=0.7, num_draft_tokens=k, seed=4))
        scheduled = backend.generate(request(schedule=((0, 0.7),), num_draft_tokens=k, seed=4))
        assert (scheduled.token_ids, scheduled.rounds) == (plain.token_ids, plain.rounds)


def test_rows_of_one_temperature_are_warped_together(backend: ReferenceBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def noted(logits_NV: torch.Tensor, **how: Any) -> torch.Tensor:
        rows.append((len(logits_NV), how["temperature"]))
        return logits_NV.softmax(-1)

    monkeypatch.setattr("backends.engines.reference.warp", noted)
    logits = torch.randn(4, 24)
    backend.target.length = len(PROMPT) + 20  # the last row judges the token with index 20, the first of the new piece
    backend.target_probs(logits, request(temperature=0.7))
    backend.target_probs(logits, request(schedule=((0, 1.5),)))
    assert rows == [(4, 0.7), (4, 1.5)]
    rows.clear()
    backend.target_probs(logits, request(schedule=HOT_THEN_COLD))
    assert rows == [(1, 1.5), (1, 1.5), (1, 1.5), (1, 0.3)]


@pytest.mark.parametrize("rule", ["rejection", "one_hot", "exact_match", "block", "typical"])
def test_the_same_seed_gives_the_same_text_and_so_does_a_replay(backend: ReferenceBackend, rule: str) -> None:
    asked = request(schedule=HOT_THEN_COLD, rule=rule, seed=3)
    first, again, replay = backend.generate(asked), backend.generate(asked), backend.replay(asked)
    assert (first.token_ids, first.rounds) == (again.token_ids, again.rounds) == (replay.token_ids, replay.rounds)
    assert backend.generate(replace(asked, seed=5)).token_ids != first.token_ids


def test_a_draft_equal_to_the_target_is_always_accepted_as_its_temperature_follows() -> None:
    same = ReferenceBackend(TARGET, TARGET)
    for switch in range(1, 10):
        asked = request(schedule=((0, 1.5), (switch, 0.2)), max_new_tokens=13)
        assert all(round_.accepted == round_.drafted for round_ in same.generate(asked).rounds or ())
    given = request(schedule=HOT_THEN_COLD, draft_temperature=1.5)
    rounds = [round_ for seed in range(5) for round_ in same.generate(replace(given, seed=seed)).rounds or ()]
    assert any(round_.accepted < round_.drafted for round_ in rounds)


def test_the_engines_own_decode_has_one_temperature(backend: ReferenceBackend) -> None:
    with pytest.raises(ValueError, match=r"expected one temperature, got the schedule 1\.5@0,0\.3@20"):
        backend.generate_natively(request(schedule=HOT_THEN_COLD))


@pytest.mark.parametrize(
    ("num_draft_tokens", "rule"), [(0, "rejection"), (2, "rejection"), (2, "one_hot"), (2, "block"), (2, "exact_match")]
)
def test_texts_have_the_distribution_of_their_temperatures_with_and_without_a_draft(num_draft_tokens: int, rule: str) -> None:
    """All texts of three tokens against their exact probabilities; chi-square at p > 0.001 each, seeds fixed."""
    temperatures, num_texts, vocab_size = (2.0, 0.4, 1.2), 2000, 6
    target = tiny_llama(seed=1, vocab_size=vocab_size)
    backend = ReferenceBackend(target, tiny_llama(seed=7, vocab_size=vocab_size, num_layers=1))
    backend.target, backend.draft = LogitsByContext(backend.target.model), LogitsByContext(backend.draft.model)
    asked = request(schedule=tuple(enumerate(temperatures)), max_new_tokens=3, num_draft_tokens=num_draft_tokens, rule=rule)
    counts = np.zeros((vocab_size,) * 3)
    for seed in range(num_texts):
        counts[backend.generate(replace(asked, seed=seed)).token_ids] += 1
    expected = num_texts * exact_probabilities(target, temperatures, vocab_size)
    usual = expected > 5
    statistic = ((counts - expected)[usual] ** 2 / expected[usual]).sum()
    rest, rest_expected = counts[~usual].sum(), expected[~usual].sum()
    statistic += (rest - rest_expected) ** 2 / rest_expected
    assert chi2.sf(statistic, usual.sum()) > 0.001


def exact_probabilities(target: Any, temperatures: Sequence[float], vocab_size: int) -> np.ndarray:
    """Of every text with these temperatures, from one forward of each."""
    texts = list(itertools.product(range(vocab_size), repeat=len(temperatures)))
    with torch.inference_mode():
        logits = target(torch.tensor([(*PROMPT, *text) for text in texts])).logits[:, len(PROMPT) - 1 : -1].double()
    probs = (logits / torch.tensor(temperatures)[:, None]).softmax(-1)
    own = probs.gather(2, torch.tensor(texts)[:, :, None])[:, :, 0].prod(1)
    return own.numpy().reshape((vocab_size,) * len(temperatures))


@functools.cache
def seed_and_replay(schedule: Schedule, index: int) -> tuple[int, Replay]:
    """Replay the request of one prompt; several tests look at the same ones."""
    seed = derive_seed(0, index, *schedule)
    return seed, reference().replay(request(schedule=schedule, seed=seed))


@pytest.mark.parametrize("schedule", [HOT_THEN_COLD, COLD_THEN_HOT])
def test_counted_acceptance_is_as_the_replay_expects_it(schedule: Schedule) -> None:
    """p > 0.001, the seeds are fixed."""
    passed: list[bool] = []
    probs: list[float] = []
    for index in range(40):
        _, replay = seed_and_replay(schedule, index)
        for round_, of_round in zip(replay.rounds, replay.acceptance_probs, strict=True):
            passed += [place < round_.accepted for place in range(len(of_round))]
            probs += of_round
    assert two_sided_p(martingale_z(passed, probs)) > 0.001


# The certificate
def decode(backend: ReferenceBackend, num_texts: int, **asked: Any) -> list[Text]:
    texts = []
    for index in range(num_texts):
        prompt = (1, 5 + index % 3)
        made = backend.generate(request(prompt_ids=prompt, seed=index, **asked))
        texts.append(Text(prompt, made.token_ids, slots_of(made.rounds, len(made.token_ids)), index))
    return texts


def certificate(texts: list[Text], schedule: Schedule) -> Certificate:
    hottest = max(temperature for _, temperature in schedule)
    near_tie = near_tie_tolerance(TARGET, [text.prompt_ids for text in texts], 3)
    scored = TargetScorer(TARGET).score_texts(texts, temperature=hottest, schedule=schedule, near_tie=near_tie)
    return certify([Sample(Evidence("float32", near_tie, scored), hottest, schedule=schedule)])


@pytest.mark.parametrize("warping", [{}, {"top_k": 6}, {"top_p": 0.8}], ids=str)
def test_the_evidence_of_a_token_is_that_of_its_own_temperature(
    warping: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [Text(PROMPT, tuple(np.random.default_rng(n).integers(24, size=n).tolist()), (0,) * n) for n in (3, 25, 40)]
    scorer, schedule = TargetScorer(TARGET), ((0, 1.5), (7, 0.3), (30, 0.8))
    alone = {t: scorer.score_texts(texts, temperature=t, seed=9, **warping) for _, t in schedule}
    for rows_at_a_time in (128, 4):
        monkeypatch.setattr(scoring, "ROWS_AT_A_TIME", rows_at_a_time)
        together = scorer.score_texts(texts, temperature=1.5, schedule=schedule, seed=9, **warping)
        for i, text in enumerate(texts):
            for place in range(len(text.token_ids)):
                temperature = 1.5 if place < 7 else 0.3 if place < 30 else 0.8
                of_one = alone[temperature][i]
                for column in ("pit", "excess_surprisal", "surprisal_variance"):
                    found, expected = getattr(together[i], column)[place], getattr(of_one, column)[place]
                    assert found == pytest.approx(expected, abs=1e-6)
                assert (place in together[i].off_support) == (place in of_one.off_support)


def test_evidence_of_a_schedule_with_a_greedy_piece_is_refused() -> None:
    with pytest.raises(ValueError, match="temperatures above 0, got 1@0,0@3"):
        TargetScorer(TARGET).score_texts([], temperature=1.0, schedule=((0, 1.0), (3, 0.0)))


@pytest.mark.parametrize("schedule", [HOT_THEN_COLD, COLD_THEN_HOT])
@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_decoder_that_keeps_the_schedule_is_not_lossy(
    backend: ReferenceBackend, schedule: Schedule, num_draft_tokens: int
) -> None:
    """False-alarm rate 1 % a case; the seeds are fixed."""
    judged = certificate(decode(backend, 24, schedule=schedule, num_draft_tokens=num_draft_tokens), schedule)
    assert judged.verdict != "LOSSY", judged.words


@pytest.mark.parametrize(("schedule", "way"), [(HOT_THEN_COLD, "unlikely"), (COLD_THEN_HOT, "likely")])
def test_a_decoder_that_verifies_at_the_first_temperature_throughout_is_lossy(schedule: Schedule, way: str) -> None:
    first = schedule[0][1]
    ignoring = verifying(lambda asked: replace(asked, temperature=first, schedule=()))(*MODELS, Options(weights="plain"))
    judged = certificate(decode(ignoring, 24, schedule=schedule), schedule)
    assert judged.verdict == "LOSSY"
    assert f"too {way}" in judged.words[0]


def test_a_switch_one_round_late_is_lossy() -> None:
    """The temperature is looked up once per round, so the rows after the switch get the one before it."""

    class OnceARound(ReferenceBackend):
        def target_probs(self, logits_NV: torch.Tensor, request: DecodeRequest) -> torch.Tensor:
            first_row = self.target.length - len(request.prompt_ids) + 1 - len(logits_NV)
            temperature = request.temperature_at(first_row)
            return super().target_probs(logits_NV, replace(request, temperature=temperature, schedule=()))

    often = tuple((4 * piece, (2.0, 0.2)[piece % 2]) for piece in range(10))
    assert certificate(decode(OnceARound(*MODELS, Options(weights="plain")), 24, schedule=often), often).verdict == "LOSSY"
    assert certificate(decode(reference(), 24, schedule=often), often).verdict != "LOSSY"


def joined(samples: Sequence[Sample]) -> Sample:
    """Each sample's one text as a piece of one text, by the schedule of their temperatures."""
    texts = [sample.evidence.texts[0] for sample in samples]
    columns = ("slots", "pit", "excess_surprisal", "surprisal_variance")
    text = replace(texts[0], **{name: sum((getattr(one, name) for one in texts), ()) for name in columns})
    starts = itertools.accumulate((len(one.pit) for one in texts[:-1]), initial=0)
    schedule = tuple((start, sample.temperature) for start, sample in zip(starts, samples, strict=True))
    return Sample(replace(samples[0].evidence, texts=(text,)), max(s.temperature for s in samples), schedule=schedule)


def test_numerical_noise_counts_at_the_temperature_of_each_token() -> None:
    """At T = 0.02 bfloat16 noise is several times the temperature. 60 runs, false-alarm rate 1 %, the seed is fixed."""
    rng = np.random.default_rng(5)
    targets = [make_target(temperature, dtype="bfloat16") for temperature in (1.0, 0.02)]
    verdicts = []
    for _ in range(60):
        samples = [simulate(target, num_tokens, rng) for target, num_tokens in zip(targets, (64, 3200), strict=True)]
        whole = joined(samples)
        assert certify([whole]) == certify(samples)
        verdicts.append((certify([whole]).verdict, certify([replace(whole, schedule=())]).verdict))
    kept, ignored = zip(*verdicts, strict=True)
    assert kept.count("LOSSY") <= 1
    assert ignored.count("LOSSY") >= 50


def test_a_text_may_end_before_its_schedule() -> None:
    sample = simulate(make_target(1.0), 640, np.random.default_rng(6))
    assert certify([replace(sample, schedule=((0, 1.0), (10_000, 0.1)))]) == certify([sample])


def measured(schedule: Schedule, *, num_texts: int) -> CellRecord:
    """A cell as the suite would measure it, without the times."""
    cell = scheduled_cell(schedule, num_draft_tokens=3, dtype="float32", max_new_tokens=40)
    pairs = []
    for index in range(num_texts):
        seed, replay = seed_and_replay(schedule, index)  # a replay decodes what the timed call decodes
        sd = TimedArm(seed, 1.0, 0.1, replay.token_ids, "length", replay.rounds)
        pairs.append(TimedPair(index, 0, "ar_first", ar=sd, sd=sd, replay=replay))
    evidence = evidence_for_cell(pairs, [PROMPT] * num_texts, cell, TargetScorer(TARGET), 1e-5)
    return CellRecord(cell, "2026-11-20T10:00:00+00:00", (), True, tuple(pairs), evidence)


def test_cells_of_several_schedules_are_certified_together_each_token_at_its_temperature() -> None:
    records = [measured(schedule, num_texts=12) for schedule in (HOT_THEN_COLD, COLD_THEN_HOT, ((0, 1.5),))]
    judged = certificates_of(records)
    assert {one.num_tokens for one in judged if one} == {3 * 12 * 40}
    assert all(one and one.verdict != "LOSSY" for one in judged)
    # Scored with other uniform numbers, or the transforms of certain tokens would be the same in every cell.
    certain = [[t.pit[0] for t in record.evidence.texts] for record in records if record.evidence]
    assert len(set(map(tuple, certain))) == 3


# The measuring side
def pit_of(cell: Cell) -> tuple[float, ...]:
    """Return the randomised transforms of a fixed output."""
    arm = TimedArm(0, 1.0, 0.1, (3, 4, 5), "length", None)
    (text,) = evidence_for_cell([TimedPair(0, 0, "ar_first", arm, arm)], [PROMPT], cell, TargetScorer(TARGET), 1e-5).texts
    return text.pit


def request_of(cell: Any) -> DecodeRequest:
    return measured_cells.request_of(cell, PROMPT, (2,))


def test_cells_that_differ_in_any_field_draw_other_random_numbers() -> None:
    cell = make_cell(temperature=1.5)
    without = request_of(cell)
    assert without.seed == request_of(make_cell(temperature=1.5)).seed
    seeds = {without.seed}
    for field in fields(cell):
        value = getattr(cell, field.name)
        other = {str: "another", int: 97, float: 0.37, tuple: (("forward", 1.0),)}[type(value)]
        if field.name == "schedule":
            other = ((0, 1.5),)
        seeds.add(request_of(replace(cell, **{field.name: other})).seed)
    assert len(seeds) == 1 + len(fields(cell))
    assert len({pit_of(each) for each in (cell, replace(cell, prompt_set="another"), replace(cell, options=(("a", 1),)))}) == 3
    assert (without.schedule, without.draft_temperature) == ((), 1.5)
    asked = [request_of(scheduled_cell(each)) for each in (HOT_THEN_COLD, COLD_THEN_HOT, ((0, 1.5),))]
    assert len({without.seed, *(each.seed for each in asked)}) == 4
    assert [each.schedule for each in asked] == [HOT_THEN_COLD, COLD_THEN_HOT, ((0, 1.5),)]
    assert all(each.draft_temperature is None for each in asked)


def test_engines_of_one_temperature_say_so_in_one_line() -> None:
    able: Any = SimpleNamespace(capabilities=Capabilities(frozenset({"rejection"}), schedules=True))
    unable: Any = SimpleNamespace(capabilities=Capabilities(frozenset({"rejection"})))
    cell = scheduled_cell(HOT_THEN_COLD)
    assert unsupported(cell, able) is None
    assert unsupported(cell, unable) == "decodes at one temperature only, from the first token to the last"
    assert unsupported(make_cell(), unable) is None
    assert ReferenceBackend.capabilities.schedules
    with pytest.raises(ValueError, match="backend assisted: expected one temperature, got a schedule of them"):
        Assisted(TARGET, nearby(TARGET, seed=2)).generate(request(schedule=HOT_THEN_COLD))
    with pytest.raises(ValueError, match="vLLM decodes a text at one temperature"):
        check_request(request(schedule=HOT_THEN_COLD), unable.capabilities, context=100)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (scheduled_cell(((0, 1.0), (4, 0.0))), "expected a schedule of temperatures above 0, got"),
        (replace(scheduled_cell(HOT_THEN_COLD), temperature=1.0), "hottest temperature is 1, got"),
        (
            replace(scheduled_cell(HOT_THEN_COLD), draft_temperature=0.5),
            "no draft temperature beside a schedule, got 0.5",
        ),
    ],
    ids=["greedy piece", "another temperature", "draft temperature"],
)
def test_a_cell_whose_schedule_contradicts_it_is_refused(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_cell_schedule(cell)


# Acceptance while hot and while cold
ROUNDS = (Round(2, 2, 3), Round(2, 0, 1), Round(2, 1, 2), Round(2, 1, 1), Round(0, 0, 1), Round(2, 2, 3))


def by_token(rounds: Sequence[Round], num_tokens: int, probs: Sequence[Sequence[float]]) -> list[tuple[int, bool, float]]:
    """Index, outcome and probability of every tested token, written from the definition."""
    found, index = [], num_tokens - sum(round_.emitted for round_ in rounds)
    for round_, of_round in zip(rounds, probs, strict=True):
        for place in range(round_.emitted):
            if place < round_.accepted:
                found.append((index, True, of_round[place]))
            elif place < round_.drafted:
                found.append((index, False, of_round[place]))
            index += 1
    return found


@pytest.mark.parametrize("first_token_apart", [True, False])
def test_alpha_of_a_stretch_is_over_the_tokens_in_it(first_token_apart: bool) -> None:
    probs = ((0.9, 0.8), (0.3,), (0.7, 0.2), (0.6,), (), (0.5, 0.4))
    num_tokens = 11 + first_token_apart
    record = make_record(make_cell(num_prompts=1))
    pair = record.pairs[0]
    assert pair.replay is not None
    ids = tuple(range(num_tokens))
    replay = replace(pair.replay, rounds=ROUNDS, acceptance_probs=probs, token_ids=ids)
    record = replace(record, pairs=(replace(pair, sd=replace(pair.sd, rounds=ROUNDS, token_ids=ids), replay=replay),))
    every = by_token(ROUNDS, num_tokens, probs)
    assert len(every) == 8
    for start, end in itertools.combinations(range(num_tokens + 2), 2):
        stretch = Stretch(start, end, 1.0)
        inside = [(passed, prob) for index, passed, prob in every if start <= index < end]
        counted, expected = counted_alpha(record, stretch), expected_alpha(record, stretch)
        if not inside:
            assert counted is expected is None
            continue
        assert counted is not None
        assert expected is not None
        assert counted.estimate == pytest.approx(np.mean([passed for passed, _ in inside]))
        assert expected.estimate == pytest.approx(np.mean([prob for _, prob in inside]))


def test_a_stretch_over_everything_has_the_alpha_of_the_cell() -> None:
    record = make_record(scheduled_cell(((0, 1.0),)))
    everything = Stretch(0, 10_000, 1.0)
    assert counted_alpha(record, everything) == metrics.counted_alpha(record)
    assert expected_alpha(record, everything) == metrics.expected_alpha(record)
    joint = make_record(make_cell(rule="block"))
    assert counted_alpha(joint, everything) is expected_alpha(joint, everything) is None


def test_a_stretch_counts_the_tested_tokens_that_lie_in_it() -> None:
    # Prefill gives token 0, the first round 1..3 (two accepted, one recovered), the second 4 and 5.
    record = make_record(make_cell(num_prompts=1))
    (pair,) = record.pairs
    rounds = (Round(4, 2, 3), Round(4, 1, 2))
    told = replace(record, pairs=(replace(pair, sd=replace(pair.sd, token_ids=(7,) * 6, rounds=rounds)),))
    assert [[counts for _, counts in counts_in(told, Stretch(*ends, 1.0))] for ends in ((0, 3), (3, 6))] == [[(2, 2)], [(1, 3)]]
    silent = replace(record, pairs=(replace(pair, sd=replace(pair.sd, rounds=None)),))
    assert not list(counts_in(silent, Stretch(0, 6, 1.0)))


def test_the_stretches_of_a_schedule_end_with_the_longest_text() -> None:
    cell = scheduled_cell(((0, 1.0), (24, 0.25), (90, 2.0)), max_new_tokens=64)
    assert stretches(cell) == (Stretch(0, 24, 1.0), Stretch(24, 64, 0.25))
    assert stretches(make_cell()) == ()


def test_a_draft_that_follows_the_moment_stands_beside_the_constant_schedules_with_the_same_alpha() -> None:
    """At T = 0.3 alpha is lower than at 1.5, with these models. Ratios cover 1: 95 % intervals, fixed seeds."""
    order = (((0, 1.5),), ((0, 0.3),), HOT_THEN_COLD, COLD_THEN_HOT)
    records = {schedule: measured(schedule, num_texts=40) for schedule in order}
    for schedule in (HOT_THEN_COLD, COLD_THEN_HOT):
        for stretch in stretches(records[schedule].cell):
            ratio = alpha_against(records[schedule], records[((0, stretch.temperature),)], stretch)
            assert ratio is not None
            assert ratio.low < 1 < ratio.high
    hot, cold = (metrics.counted_alpha(records[((0, temperature),)]) for temperature in (1.5, 0.3))
    assert hot is not None
    assert cold is not None
    assert cold.high < hot.low

    table = halves_table(newest_rows({"m/dynamic_temperature/1-a-reference.json": make_run(list(records.values()))}))
    assert table.headers[:3] == ("schedule", "alpha while hot\ncounted", "alpha while hot\nexpected")
    assert table.headers[3:5] == ("constant hot,\nsame tokens", "/ constant\nhot")
    shown = {row[0].text: [entry.text != "–" for entry in row[1:]] for row in table.body}
    assert shown == {
        "1.5@0": [True, True, False, False, False, False, False, False],
        "0.3@0": [False, False, False, False, True, True, False, False],
        "1.5@0,0.3@20": [True] * 8,
        "0.3@0,1.5@20": [True] * 8,
    }


# The suite
@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("pair")
    draft = save_checkpoint(nearby(TARGET, seed=2), folder / "draft")
    return ("--target", save_checkpoint(TARGET, folder / "target"), "--draft", draft)


def test_the_suite_measures_four_schedules_of_two_temperatures(pair: tuple[str, ...], tmp_path: Path) -> None:
    done = run_suites(
        "suites/test_dynamic_temperature.py", *pair, *SMALL, "--instrument-every", "1", "--results", str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = files.load_runs(tmp_path)
    cells = {schedule_text(each.cell.schedule): each for each in record.cells}
    assert list(cells) == ["1@0", "0.25@0", "1@0,0.25@8", "0.25@0,1@8"]
    assert [each.cell.temperature for each in record.cells] == [1.0, 0.25, 1.0, 1.0]
    for each in record.cells:
        assert each.error is None
        assert len(each.pairs) == 6
        assert all(pair.replay and pair.replay.token_ids == pair.sd.token_ids for pair in each.pairs)
        assert (verdict := verdict_of(each, record)).certificate != "LOSSY", verdict
    assert len(halves_table(newest_rows({"m/s/1-a-reference.json": record})).body) == 4


def asked_of(order: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """Return what the suite requests from a run with these settings."""
    settings = {"temperatures": (0.0, 0.5, 2.0), "draft_temperatures": (None,), "max_new_tokens": 25, **changes}
    asked: list[dict[str, Any]] = []
    of_run: Any = SimpleNamespace(settings=SimpleNamespace(**settings), measure=lambda _, **how: asked.append(how))
    suite.test_dynamic_temperature(None, of_run, order, "rejection", 2)
    return asked[0]


def test_hot_and_cold_are_the_extremes_above_0_and_change_at_half_of_the_text() -> None:
    schedules = [schedule_text(asked_of(order)["schedule"]) for order in suite.ORDERS]
    assert schedules == ["2@0", "0.5@0", "2@0,0.5@13", "0.5@0,2@13"]
    assert [asked_of(order)["temperature"] for order in suite.ORDERS] == [2.0, 0.5, 2.0, 2.0]
    assert schedule_text(asked_of(("hot", "cold"), max_new_tokens=1)["schedule"]) == "2@0,0.5@1"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"temperatures": (0.0, 1.0)}, "needs two temperatures above 0"),
        ({"draft_temperatures": (1.0,)}, "leave --draft-temperature out"),
    ],
)
def test_the_suite_is_skipped_in_one_line_where_there_is_nothing_to_change(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(pytest.skip.Exception, match=reason):
        asked_of(("hot", "cold"), **changes)
