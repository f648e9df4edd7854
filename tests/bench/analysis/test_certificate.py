"""The certificate on simulated texts: its error rates, its power, its words. Rates are measured, with fixed seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from backends.commands.certify import GREEDY_TOKENS
from bench.analysis.certificate import (
    CELL_MARGIN,
    FALSE_ALARM,
    MARGIN,
    UPPER_BOUND_LEVEL,
    Certificate,
    Sample,
    certificates_of,
    certify,
    tokens_for_lossless,
)
from bench.records.decoding import BONUS
from bench.records.runs import CellRecord, Evidence, TextEvidence
from tests.studies.simulated_texts import Array, Target, make_target, simulate
from tests.support import ROOT
from tests.support.record_builder import make_cell, make_record

CELL_TOKENS = 768  # 12 prompts of 64 tokens
NEEDED = tokens_for_lossless()
assert NEEDED


def certificates(target: Target, num_tokens: int, runs: int, *, seed: int) -> list[Certificate]:
    rng = np.random.default_rng(seed)
    return [certify([simulate(target, num_tokens, rng)]) for _ in range(runs)]


def share(verdict: str, judged: Sequence[Certificate]) -> float:
    return sum(certificate.verdict == verdict for certificate in judged) / len(judged)


def sample_of(pit: Array, *, slots: Sequence[int] | None = None, dtype: str = "float32", **changes: object) -> Sample:
    """Given transforms, and surprisal that is exactly as it should be."""
    num_tokens = len(pit)
    text = TextEvidence(
        prompt_index=0,
        repeat=0,
        slots=tuple(slots or (0,) * num_tokens),
        pit=tuple(pit.tolist()),
        excess_surprisal=(0.0,) * num_tokens,
        surprisal_variance=(1.0,) * num_tokens,
    )
    return Sample(Evidence(dtype, 0.0, (replace(text, **changes),)), temperature=1.0)


def greedy(gaps: Sequence[float], *, near_tie: float = 0.1, differing: int = 0) -> Sample:
    text = TextEvidence(prompt_index=0, repeat=0, slots=(0,) * len(gaps), logit_gap=tuple(gaps))
    return Sample(Evidence("float32", near_tie, (text,)), temperature=0.0, differing_texts=differing)


@cache
def bare_record(temperature: float, rule: str) -> CellRecord:
    return make_record(make_cell(temperature=temperature, rule=rule))


def record_of(sample: Sample, *, rule: str = "rejection") -> CellRecord:
    return replace(bare_record(sample.temperature, rule), evidence=sample.evidence)


# False alarms. A certificate promises at most 1 %; Holm's correction and the numerical allowance keep it at about half.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.25, 0.1])
def test_a_lossless_decoder_is_lossy_in_at_most_1_percent_of_500_runs(temperature: float, dtype: str) -> None:
    judged = certificates(make_target(temperature, dtype=dtype), CELL_TOKENS, 500, seed=11)
    assert share("LOSSY", judged) <= 0.01


def test_a_run_of_four_cells_has_one_false_alarm_rate() -> None:
    rng = np.random.default_rng(12)
    targets = [make_target(temperature, dtype="bfloat16") for temperature in (0.25, 0.5, 0.75, 1.0)]
    runs, alarms = 500, 0
    for _ in range(runs):
        judged = certificates_of([record_of(simulate(target, CELL_TOKENS, rng)) for target in targets])
        alarms += any(certificate is not None and certificate.verdict == "LOSSY" for certificate in judged)
    assert alarms / runs <= 0.01


def test_numerical_noise_alone_is_not_lossy_even_where_it_shifts_the_surprisal_by_many_standard_errors() -> None:
    """At T = 0.02 bfloat16 noise is several times the temperature."""
    judged = certificates(make_target(0.02, dtype="bfloat16"), CELL_TOKENS, 300, seed=13)
    assert np.mean([certificate.slots[0].surprisal_z for certificate in judged]) > 3
    assert share("LOSSY", judged) <= 0.01


# Bounds and sample size
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_decoder_at_the_margin_is_called_lossless_in_at_most_1_percent(place: float) -> None:
    """The law of its transforms has D = 0.05, reached at `place`; 2,000 runs, standard error 0.2 %."""
    rng = np.random.default_rng(14)
    margin, runs = MARGIN, 2000
    below = 0
    for _ in range(runs):
        uniform = rng.random(NEEDED)
        # Mass `margin` moves from above `place` to below it.
        pit = np.where(rng.random(NEEDED) < place + margin, uniform * place, place + uniform * (1 - place))
        ordered, ranks = np.sort(pit), np.arange(NEEDED)
        distance = max(((ranks + 1) / NEEDED - ordered).max(), (ordered - ranks / NEEDED).max())
        below += distance + UPPER_BOUND_LEVEL / NEEDED**0.5 + 0.5 / NEEDED < margin
    assert below / runs <= 0.01 + 3 * 0.0022


def test_the_bounds_of_a_result_are_those_of_the_docstring() -> None:
    result = certify([sample_of((np.arange(1000) + 0.5) / 1000 * 0.9)]).slots[0]
    assert result.distance == pytest.approx(0.1, abs=0.001)
    assert result.distance_low == pytest.approx(result.distance - np.sqrt(np.log(200) / 2000))
    assert result.distance_high == pytest.approx(result.distance + 2.3263 / 2 / np.sqrt(1000) + 0.0005, abs=1e-5)


def test_the_tokens_needed_are_enough_99_times_in_100_for_a_decoder_that_is_exact() -> None:
    rng = np.random.default_rng(15)
    judged = [certify([sample_of(rng.random(NEEDED))]) for _ in range(500)]
    assert share("LOSSLESS", judged) >= 0.98  # 99 % less two standard errors
    assert tokens_for_lossless(0.1) == pytest.approx(NEEDED / 4, abs=1)
    assert tokens_for_lossless(0.05, distance=0.05) is None


def test_the_docs_give_the_tokens_needed() -> None:
    page = (ROOT / "docs" / "validation.md").read_text()
    assert re.findall(r"(?:with the|takes) ([0-9,]+) tokens (?:that|of a lossless)", page) == [f"{NEEDED:,}"] * 2


def test_too_few_tokens_are_inconclusive_and_the_number_needed_is_said() -> None:
    judged = certify([sample_of((np.arange(500) + 0.5) / 500)])
    assert (judged.verdict, judged.tokens_needed) == ("INCONCLUSIVE", NEEDED)
    assert judged.words[1] == f"about {NEEDED} tokens are needed"


# Power. `detected` is the least share of 100 runs; the standard error of a share is at most 5 %.
@pytest.mark.parametrize(
    ("temperature", "decoder_temperature", "num_tokens", "detected"),
    [
        (1.0, 0.9, 3200, 0.9),  # 10 % off
        (1.0, 1.1, 3200, 0.9),
        (1.0, 0.5, 768, 1.0),
        (0.5, 0.25, 768, 1.0),  # T applied twice
        (0.5, 1.0, 768, 1.0),  # verified at T = 1 whatever was requested
        (0.25, 0.2, 3200, 0.8),
        (0.1, 1e-6, 3200, 1.0),  # greedy
        (1.0, 20.0, 128, 1.0),  # word salad of an uninitialised temperature
    ],
)
def test_a_wrong_temperature_is_found_and_named(
    temperature: float, decoder_temperature: float, num_tokens: int, detected: float
) -> None:
    target = make_target(temperature, decoder_temperature=decoder_temperature)
    judged = certificates(target, num_tokens, 100, seed=16)
    assert share("LOSSY", judged) >= detected
    way = "likely" if decoder_temperature < temperature else "unlikely"
    words = [certificate.words[0] for certificate in judged if certificate.verdict == "LOSSY"]
    assert sum(f"too {way}" in text for text in words) >= 0.95 * len(words)


def flattened(probs_CV: Array) -> Array:
    return np.sqrt(probs_CV) / np.sqrt(probs_CV).sum(1, keepdims=True)


def without_the_best(probs_CV: Array) -> Array:
    rest = probs_CV.copy()
    rest[:, 0] *= 0.5
    return rest / rest.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("fault", "slots", "words"),
    [
        (flattened, (BONUS,), "departing: bonus slot; "),
        (
            flattened,
            (1, 2),
            "departing: slot 1 and slot 2; not departing: first token and bonus slot; suspect the acceptance test",
        ),
        (
            without_the_best,
            (2,),
            "departing: slot 2; not departing: first token, slot 1 and bonus slot; suspect the position",
        ),
    ],
)
def test_a_fault_of_some_slots_is_found_and_placed(fault, slots: tuple[int, ...], words: str) -> None:
    judged = certificates(make_target(1.0, fault=fault, faulty_slots=slots), 6400, 40, seed=17)
    assert share("LOSSY", judged) == 1
    # A healthy slot is named beside a broken one no more often than the level allows, but a broken one may escape.
    assert sum(any(words in line for line in certificate.words) for certificate in judged) >= 30


def test_a_greedy_decoder_is_not_lossless_at_a_low_temperature_where_D_cannot_see_it() -> None:
    judged = certificates(make_target(0.1, decoder_temperature=1e-6), 3200, 50, seed=18)
    assert max(certificate.slots[0].distance for certificate in judged) < MARGIN
    assert share("LOSSLESS", judged) == 0


# Truncation
def test_tokens_that_truncation_forbids_are_lossy_beyond_one_in_a_thousand() -> None:
    pit = np.random.default_rng(19).random(2000)
    few = certify([sample_of(pit, off_support=(3, 5))])
    many = certify([sample_of(pit, off_support=tuple(range(20)))])
    assert (few.verdict, few.off_support) == ("LOSSLESS", 2)
    assert (many.verdict, many.off_support) == ("LOSSY", 20)
    assert many.words[0].startswith("20 tokens lie outside")


def test_tokens_at_the_boundary_are_counted_apart() -> None:
    pit = np.random.default_rng(20).random(1000)
    pit[:4] = 1.0
    judged = certify([sample_of(pit, off_support=(0,))])
    assert (judged.off_support, judged.at_boundary, judged.verdict) == (1, 3, "INCONCLUSIVE")


# Temperature 0
def test_greedy_tokens_within_tau_are_lossless_and_near_ties_are_counted() -> None:
    judged = certify([greedy([0.0] * 98 + [0.05, 0.1])])
    assert (judged.verdict, judged.near_ties, judged.largest_gap) == ("LOSSLESS", 2, 0.1)
    assert judged.words[-1] == "2 near-ties"


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([0.11], "LOSSLESS"),  # noise explains one token in a thousand
        ([0.11] * 6, "LOSSLESS"),  # p = 0.017, before the correction
        ([0.11] * 8, "LOSSY"),  # p = 0.001
        ([0.41], "LOSSLESS"),  # p = 0.02: one in 100,000 lies beyond four times tau
        ([0.41] * 2, "LOSSY"),  # p = 0.0002
    ],
)
def test_greedy_tokens_beyond_tau_are_lossy_if_noise_does_not_explain_their_number(gaps: list[float], verdict: str) -> None:
    judged = certify([greedy([0.0] * (2000 - len(gaps)) + gaps)])
    assert (judged.verdict, judged.beyond_tau) == (verdict, len(gaps))
    assert judged.far_beyond_tau == sum(gap > 0.4 for gap in gaps)
    assert judged.words[0].startswith(f"{len(gaps)} of 2000 tokens are not the target's best")


@pytest.mark.parametrize(("share", "least"), [(0.01, 0.99), (0.05, 1.0)])
def test_the_default_number_of_greedy_tokens_finds_one_wrong_token_in_a_hundred(share: float, least: float) -> None:
    """1,000 runs; the standard error of 99 % is 0.3 %. All wrong tokens lie close beyond tau."""
    rng = np.random.default_rng(24)
    wrong = rng.binomial(GREEDY_TOKENS, share, 1000)
    verdicts = [certify([greedy([0.11] * count + [0.0] * (GREEDY_TOKENS - count))]).verdict for count in wrong]
    assert verdicts.count("LOSSY") / 1000 >= least - 3 * 0.003


def test_a_sound_greedy_decoder_whose_noise_exceeds_tau_as_often_as_assumed_is_rarely_lossy() -> None:
    """1,000 runs of 5,000 tokens; FALSE_ALARM and three standard errors of 0.3 %."""
    beyond = np.random.default_rng(25).binomial(5000, 0.001, 1000)
    verdicts = [certify([greedy([0.11] * count + [0.0] * (5000 - count))]).verdict for count in beyond]
    assert verdicts.count("LOSSY") / 1000 <= FALSE_ALARM + 3 * 0.003


def test_greedy_texts_that_differ_from_autoregressive_ones_within_tau_are_reported_and_no_loss() -> None:
    judged = certify([greedy([0.0] * 999 + [0.05], differing=2)])
    assert (judged.verdict, judged.differing_texts) == ("LOSSLESS", 2)
    assert judged.words[-1] == "2 texts differ from the autoregressive ones"


def test_few_greedy_tokens_are_inconclusive() -> None:
    """90 tokens without a fault bound the share of wrong ones below 5 % at 99 %: 0.95 ^ 90 < 0.01. With one, 130 tokens do."""
    assert certify([greedy([0.0] * 89)]).verdict == "INCONCLUSIVE"
    assert certify([greedy([0.0] * 90)]).verdict == "LOSSLESS"
    needed = certify([greedy([0.0] * 89)]).tokens_needed
    assert needed == 130
    assert certify([greedy([0.0] * 128 + [0.11])]).verdict == "INCONCLUSIVE"
    assert certify([greedy([0.0] * 129 + [0.11])]).verdict == "LOSSLESS"


# Pooling
def test_cells_of_other_temperatures_are_judged_together() -> None:
    rng = np.random.default_rng(21)
    samples = [simulate(make_target(temperature), 896, rng) for temperature in (0.25, 0.5, 0.75, 1.0)]
    records = [record_of(sample) for sample in samples]
    assert certify(samples[:1]).verdict == "INCONCLUSIVE"
    together = certify(samples, false_alarm=FALSE_ALARM / 5)
    for sample, judged in zip(samples, certificates_of(records), strict=True):
        assert judged is not None
        assert (judged.verdict, judged.slots, judged.num_cells) == ("LOSSLESS", together.slots, 4)
        assert judged.num_tokens == sum(len(s.evidence.texts[0].pit) for s in samples)
        assert judged.words[0] == f"4 cells are judged together: {together.words[0]}"
        assert judged.words[-1].startswith(
            f"the {len(sample.evidence.texts[0].pit)} tokens of this cell alone: D is at most 0.0"
        )


def test_a_cell_that_is_lossy_alone_condemns_itself_and_not_the_others() -> None:
    rng = np.random.default_rng(22)
    healthy = [record_of(simulate(make_target(temperature), 1600, rng)) for temperature in (0.5, 0.75, 1.0)]
    broken = record_of(simulate(make_target(1.25, decoder_temperature=0.5), 1600, rng))
    verdicts = [certificate.verdict for certificate in certificates_of([*healthy, broken])]  # type: ignore[union-attr]
    assert verdicts == ["LOSSLESS", "LOSSLESS", "LOSSLESS", "LOSSY"]


def with_distance(sample: Sample, distance: float) -> Sample:
    """Move transforms from the upper half to the lower one, evenly, so that D grows by about `distance`."""
    (text,) = sample.evidence.texts
    pit = np.array(text.pit)
    upper = np.flatnonzero(pit > 0.5)
    pit[upper[:: round(1 / (2 * distance))]] -= 0.5
    return replace(sample, evidence=replace(sample.evidence, texts=(replace(text, pit=tuple(pit.tolist())),)))


def test_a_cell_that_misses_the_bound_of_a_single_cell_is_not_lossless_whatever_the_others_are() -> None:
    rng = np.random.default_rng(26)
    samples = [simulate(make_target(temperature), 1600, rng) for temperature in (0.25, 0.5, 0.75, 1.0)]
    samples[2] = with_distance(simulate(make_target(0.75), 768, rng), 0.06)
    judged = certificates_of([record_of(sample) for sample in samples])
    assert [one.verdict for one in judged if one] == ["LOSSLESS", "LOSSLESS", "INCONCLUSIVE", "LOSSLESS"]
    faulty = judged[2]
    assert faulty is not None
    assert faulty.words[-1].endswith("(D of each cell has to be below 0.1)")
    alone = certify([samples[2]])
    assert alone.slots[0].distance_high >= CELL_MARGIN
    assert not alone.passes_alone
    assert faulty.tokens_needed == tokens_for_lossless(CELL_MARGIN, distance=alone.slots[0].distance_low)


def test_a_cell_whose_tokens_alone_exclude_the_requested_temperature_is_not_lossless() -> None:
    rng = np.random.default_rng(27)
    samples = [simulate(make_target(temperature), 1600, rng) for temperature in (0.25, 0.5, 0.75)]
    # Surprisal is off by 2.9 standard errors: too little for LOSSY, and more than the 99 % bound of an interval.
    samples.append(sample_of((np.arange(800) + 0.5) / 800, excess_surprisal=(-0.0835,) * 800))
    judged = certificates_of([record_of(sample) for sample in samples])
    assert [one.verdict for one in judged if one] == ["LOSSLESS"] * 3 + ["INCONCLUSIVE"]
    alone = certify([samples[-1]])
    assert alone.slots[0].distance_high < CELL_MARGIN
    assert alone.slots[0].temperature_high < 0


@pytest.mark.parametrize(
    "change",
    [
        *({"num_draft_tokens": 5}, {"concurrency": 4}, {"draft": "another"}, {"draft_length": "adaptive"}, {"top_k": 5}),
        *({"top_p": 0.9}, {"draft_temperature": 0.8}, {"options": (("forward", "fused"),)}, {"seed": 1}, {"pair": "another"}),
    ],
    ids=str,
)
def test_cells_that_differ_in_more_than_temperature_and_prompts_are_not_pooled(change: dict[str, object]) -> None:
    rng = np.random.default_rng(28)
    bare = bare_record(1.0, "rejection")
    records = []
    for place, cell in enumerate(
        (bare.cell, replace(bare.cell, prompt_set="other", num_prompts=5), replace(bare.cell, **change))
    ):
        pairs = tuple(replace(pair, sd=replace(pair.sd, seed=100 * place + i)) for i, pair in enumerate(bare.pairs))
        records.append(replace(bare, cell=cell, pairs=pairs, evidence=simulate(make_target(1.0), 640, rng).evidence))
    assert [one.num_cells for one in certificates_of(records) if one] == [2, 2, 1]


def test_cells_that_share_random_numbers_as_in_older_records_are_not_pooled() -> None:
    rng = np.random.default_rng(29)
    records = [record_of(simulate(make_target(temperature), 640, rng)) for temperature in (0.5, 1.0, 0.5, 1.0)]
    assert records[0].pairs == records[2].pairs
    assert [one.num_cells for one in certificates_of(records) if one] == [2, 2, 2, 2]


def test_cells_of_another_rule_or_at_temperature_0_are_judged_apart() -> None:
    rng = np.random.default_rng(23)
    sampled = record_of(simulate(make_target(1.0), 640, rng))
    other = record_of(simulate(make_target(1.0), 640, rng), rule="block")
    at_zero = record_of(greedy([0.0] * 200))
    at_zero = replace(at_zero, pairs=tuple(replace(pair, ar=pair.sd) for pair in at_zero.pairs))
    records = [sampled, other, at_zero]
    judged = certificates_of(records)
    assert [certificate.num_tokens for certificate in judged] == [  # type: ignore[union-attr]
        len(record.evidence.texts[0].slots)
        for record in records  # type: ignore[union-attr]
    ]
    assert judged[2].verdict == "LOSSLESS"  # type: ignore[union-attr]


def test_float32_cells_at_temperature_0_count_texts_that_differ_between_the_arms() -> None:
    record = record_of(greedy([0.0] * 200))
    assert any(pair.ar.token_ids != pair.sd.token_ids for pair in record.pairs)  # made of random ids
    same = replace(record, pairs=tuple(replace(pair, ar=pair.sd) for pair in record.pairs))
    judged = certificates_of([record, same])
    assert [(one.verdict, one.differing_texts) for one in judged if one] == [("LOSSLESS", len(record.pairs)), ("LOSSLESS", 0)]


def test_a_cell_without_evidence_has_no_certificate() -> None:
    assert certificates_of([make_record()]) == (None,)


# Refusals
def test_temperature_0_and_above_are_not_judged_together() -> None:
    with pytest.raises(ValueError, match="got both"):
        certify([greedy([0.0]), sample_of(np.array([0.5]))])


def test_evidence_without_tokens_or_of_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        certify([])
    with pytest.raises(ValueError, match="float32 or bfloat16, got 'float8'"):
        certify([sample_of(np.array([0.5]), dtype="float8")])
