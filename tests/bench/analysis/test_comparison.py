"""Comparisons of two sides: which cells match, what each verdict needs, and how often it is false."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bench.analysis import comparison
from bench.analysis.comparison import (
    AR,
    COUNTED_ALPHA,
    GAMMA,
    SD,
    CellComparison,
    Comparison,
    Outcome,
    Side,
    compare,
    exit_status,
)
from bench.errors import IncomparableResults
from bench.records.runs import Cell, CellRecord, RunRecord
from bench.statistics.effects import Effect
from tests.studies.simulated_comparisons import (
    MARGIN,
    Design,
    comparisons,
    false_difference,
    is_slower,
    rate,
    same_speed,
)
from tests.support.record_builder import failed_record, make_cell, make_record, make_run

TEMPERATURES = (0.0, 0.5, 1.0)


def cells(**changes: Any) -> list[Cell]:
    return [make_cell(temperature=temperature, **changes) for temperature in TEMPERATURES]


def side(label: str, *runs: RunRecord) -> Side:
    return Side(label, {f"{label}{number}.json": run for number, run in enumerate(runs)})


def measured(*records: CellRecord, label: str = "base", **changes: Any) -> Side:
    return side(label, make_run(records, **changes))


BASE = measured(*map(make_record, cells()))


def against(*records: CellRecord, base: Side = BASE, interleaved: bool = True, **changes: Any) -> Comparison:
    return compare(base, measured(*records, label="head", **changes), interleaved=interleaved)


def verdicts(cell: CellComparison) -> dict[str, str]:
    return {outcome.number.name: outcome.verdict for outcome in cell.outcomes}


def by_status(found: Comparison) -> dict[str, list[CellComparison]]:
    groups: dict[str, list[CellComparison]] = {}
    for cell in found.cells:
        groups.setdefault(cell.status, []).append(cell)
    return groups


# What changed
def test_a_side_against_itself_is_the_same_in_every_number() -> None:
    for interleaved in (True, False):
        found = compare(BASE, BASE, interleaved=interleaved)
        assert len(found.cells) == 3
        for cell in found.cells:
            assert set(verdicts(cell).values()) == {"SAME"}
        assert exit_status(found, strict=True) == 0


@pytest.mark.parametrize(
    ("gamma", "verdict", "status"),
    [(1.0, "SLOWER", 1), (1.44, "FASTER", 0)],  # 1.2 on the other side
)
def test_a_speculative_arm_that_changes_shows_in_its_seconds_and_in_gamma(gamma: float, verdict: str, status: int) -> None:
    found = against(*(make_record(cell, gamma=gamma, noise=0.05) for cell in cells()))
    for cell in found.cells:
        assert verdicts(cell) == {SD.name: verdict, AR.name: "SAME", GAMMA.name: verdict, COUNTED_ALPHA.name: "SAME"}
    assert exit_status(found, strict=False) == exit_status(found, strict=True) == status


@pytest.mark.parametrize(("alpha", "verdict", "status"), [(0.2, "LOWER", 1), (0.9, "HIGHER", 0)])
def test_acceptance_that_changes_shows_in_alpha(alpha: float, verdict: str, status: int) -> None:
    found = against(*(make_record(cell, alpha=alpha) for cell in cells()))
    assert {verdicts(cell)[COUNTED_ALPHA.name] for cell in found.cells} == {verdict}
    outcomes = [outcome for cell in found.cells for outcome in cell.outcomes if outcome.number is COUNTED_ALPHA]
    effects = [outcome.effect.estimate for outcome in outcomes if outcome.effect is not None]
    assert effects == pytest.approx([alpha - 0.6] * 3, abs=0.15)  # of some 500 tested tokens a side: 4 standard errors
    only_alpha = replace(found, cells=tuple(replace(cell, outcomes=cell.outcomes[-1:]) for cell in found.cells))
    assert exit_status(only_alpha, strict=True) == status


def test_the_effect_is_the_ratio_of_ratios_of_totals_with_a_prompt_left_out_of_both_sides() -> None:
    found = next(comparisons(1, Design(num_cells=1, interleaved=True), seed=1))
    (cell,) = found.cells
    assert cell.base is not None
    assert cell.head is not None

    def log_token_s(without: int | None) -> float:
        totals = []
        for record in (cell.base.record, cell.head.record):
            arms = [pair.sd for pair in record.pairs if pair.prompt_index != without]
            seconds = sum(arm.seconds - arm.first_token_s for arm in arms)
            totals.append(seconds / sum(len(arm.token_ids) - 1 for arm in arms))
        return math.log(totals[1] / totals[0])

    left_out = np.array([log_token_s(prompt) for prompt in range(12)])
    effect = cell.outcomes[0].effect
    assert effect is not None
    assert effect.estimate == pytest.approx(log_token_s(None))
    assert effect.standard_error == pytest.approx(math.sqrt(11 / 12 * ((left_out - left_out.mean()) ** 2).sum()))


# Verdicts
def outcome_of(effect: Effect, *others: Effect, margin: float = 0.02) -> Outcome:
    return next(comparison.judge([(SD, one) for one in (effect, *others)], margin=margin))


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [(0.0, "SAME"), (0.01, "SAME"), (0.018, "SLOWER"), (-0.018, "FASTER"), (0.06, "SLOWER")],
)
def test_same_is_two_one_sided_tests_and_comes_before_a_difference(estimate: float, verdict: str) -> None:
    effect = Effect(estimate, ((0.004, 11.0),))
    half_width = float(stats.t.ppf(0.95, 11)) * 0.004
    inside = -math.log(1.02) < estimate - half_width and estimate + half_width < math.log(1.02)
    assert (verdict == "SAME") == inside
    assert outcome_of(effect).verdict == verdict


def test_what_is_neither_different_nor_the_same_is_inconclusive() -> None:
    assert outcome_of(Effect(0.01, ((0.02, 11.0),))).verdict == "INCONCLUSIVE"


def test_more_numbers_need_smaller_p_values() -> None:
    effect, others = Effect(0.05, ((0.02, 11.0),)), [Effect(0.0, ((0.02, 11.0),))] * 19
    assert effect.p_value(0.0) == pytest.approx(2 * stats.t.sf(2.5, 11))
    assert outcome_of(effect).verdict == "SLOWER"
    alone, among = outcome_of(effect), outcome_of(effect, *others)
    assert among.verdict == "INCONCLUSIVE"
    assert among.p_holm == pytest.approx(20 * effect.p_value(0.0))
    assert alone.minimum is not None
    assert among.minimum is not None
    assert alone.minimum < among.minimum


def test_a_difference_of_the_size_that_is_said_to_be_seen_is_seen_four_times_in_five() -> None:
    error, freedom, num_tests = 0.01, 11.0, 4
    outcome = outcome_of(Effect(0.0, ((error, freedom),)), *[Effect(0.0, ((error, freedom),))] * (num_tests - 1))
    assert outcome.minimum is not None
    threshold = stats.t.ppf(1 - 0.05 / num_tests / 2, freedom)
    power = stats.nct.sf(threshold, freedom, outcome.minimum / error)
    assert power == pytest.approx(0.8, abs=0.03)  # the sum of two t quantiles is near the non-central one


def test_alpha_has_a_margin_in_points() -> None:
    same, unlike = Effect(0.01, ((0.003, 11.0),)), Effect(0.03, ((0.003, 11.0),))
    found = comparison.judge([(COUNTED_ALPHA, same), (COUNTED_ALPHA, unlike)], margin=0.5)
    assert [outcome.verdict for outcome in found] == ["SAME", "HIGHER"]


def test_fewer_prompts_than_intervals_need_are_inconclusive() -> None:
    few = cells(num_prompts=5)
    found = against(*(make_record(cell, gamma=0.6) for cell in few), base=measured(*map(make_record, few)))
    for outcome in (outcome for cell in found.cells for outcome in cell.outcomes if outcome.number in (SD, GAMMA)):
        assert outcome.verdict == "INCONCLUSIVE"
        assert outcome.reason == "fewer than 6 prompts in common"
    assert exit_status(found, strict=False) == 0
    assert exit_status(found, strict=True) == 3


def test_a_regression_outweighs_what_is_inconclusive() -> None:
    found = against(make_record(cells()[0], gamma=0.6), make_record(cells()[1]), failed_record(cells()[2]))
    assert exit_status(found, strict=True) == 1


def test_one_run_of_its_own_a_side_compares_gamma_but_not_seconds() -> None:
    for cell in next(comparisons(1, Design(num_cells=3), seed=3)).cells:
        outcomes = {outcome.number: outcome for outcome in cell.outcomes}
        for number in (SD, AR):
            assert outcomes[number].verdict == "INCONCLUSIVE"
            assert outcomes[number].p_holm is None
            assert "one run of each side does not show how far separate runs drift apart" in outcomes[number].reason
        assert outcomes[GAMMA].p_holm is not None


def test_several_runs_of_their_own_widen_seconds_by_the_spread_of_the_autoregressive_arm() -> None:
    separate = next(comparisons(1, Design(num_cells=4, num_runs=2), seed=3))
    in_turns = compare(separate.base, separate.head, interleaved=True)
    shifts: dict[str, list[float]] = {}
    for cell in in_turns.cells:
        (ar,) = (outcome.effect for outcome in cell.outcomes if outcome.number is AR)
        assert cell.base is not None
        assert ar is not None
        shifts.setdefault(cell.base.file, []).append(ar.estimate)
    first, second = shifts.values()
    assert len(first) == len(second) == 2
    within = math.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    spread = math.hypot(np.std([np.mean(first), np.mean(second)], ddof=1), within)
    for cell, narrow in zip(separate.cells, in_turns.cells, strict=True):
        for wide, other in zip(cell.outcomes, narrow.outcomes, strict=True):
            assert wide.effect is not None
            assert other.effect is not None
            further = ((pytest.approx(spread), 1.0),) if wide.number in (SD, AR) else ()
            assert wide.effect == replace(other.effect, parts=(*other.effect.parts, *further))


def test_the_same_slow_down_in_several_runs_of_their_own_is_seen_on_a_machine_that_does_not_drift() -> None:
    design = Design(num_cells=6, num_runs=6, drift=0.0, same_texts=True, sd_slowdown=0.3, ar_slowdown=0.3)
    found = next(comparisons(1, design, seed=3))
    assert {verdicts(cell)[AR.name] for cell in found.cells} == {"SLOWER"}
    assert {verdicts(cell)[GAMMA.name] for cell in found.cells} <= {"SAME", "INCONCLUSIVE"}


def test_seconds_of_whole_calls_are_not_held_against_seconds_of_decoding() -> None:
    def without_first_token(record: CellRecord) -> CellRecord:
        return replace(record, pairs=tuple(replace(p, sd=replace(p.sd, first_token_s=None)) for p in record.pairs))

    found = against(*(without_first_token(make_record(cell)) for cell in cells()))
    for cell in found.cells:
        told = {outcome.number: outcome.reason for outcome in cell.outcomes if outcome.verdict == "INCONCLUSIVE"}
        assert told == dict.fromkeys((SD, AR, GAMMA), "BASE has decode seconds, HEAD end_to_end")


def test_rules_that_are_judged_jointly_have_no_alpha_and_one_that_got_lost_is_told() -> None:
    block = [make_record(cell) for cell in cells(rule="block")]
    found = compare(measured(*block), measured(*block, label="head"))
    assert all(COUNTED_ALPHA.name not in verdicts(cell) for cell in found.cells)
    silent = [
        replace(record, pairs=tuple(replace(p, sd=replace(p.sd, rounds=None), replay=None) for p in record.pairs))
        for record in map(make_record, cells())
    ]
    found = against(*silent)
    assert [cell.outcomes[-1].reason for cell in found.cells] == ["HEAD has no alpha, counted"] * 3


# Which cells match
def test_a_cell_that_head_lacks_fails_the_comparison() -> None:
    found = against(*map(make_record, cells()[:2]))
    (missing,) = by_status(found)["MISSING"]
    assert missing.row.record.cell.temperature == 1.0
    assert missing.reason == (
        "HEAD has no such cell; the nearest differs in temperature (1 against 0), draft_temperature (1 against 0)"
    )
    assert exit_status(found, strict=False) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts_hash": "fedcba"}, "prompts_hash (01234567 against fedcba)"),
        ({"options": (("attention", "eager"),)}, "options (() against (('attention', 'eager'),))"),
    ],
)
def test_a_renamed_cell_is_missing_and_new(changes: dict[str, Any], said: str) -> None:
    *same, renamed = cells()
    found = by_status(against(*map(make_record, same), make_record(replace(renamed, **changes))))
    assert len(found["COMPARED"]) == 2
    assert said in found["MISSING"][0].reason
    assert len(found["NEW"]) == 1


def test_cells_of_other_models_do_not_match() -> None:
    hashes = {"target": "aaaaaaaa11112222", "draft": "cccc"}
    with pytest.raises(IncomparableResults, match=r"draft_hash \(bbbbbbbb against cccc\)"):
        against(*map(make_record, cells()), model_hashes=hashes)


def test_the_hash_of_a_further_draft_counts_for_its_cells() -> None:
    records = [make_record(cell) for cell in cells(draft="other")]
    named = {"target": "aaaaaaaa11112222", "draft": "bbbbbbbb33334444", "draft other": "dddd"}
    alone = {"target": "aaaaaaaa11112222", "draft": "dddd"}
    found = compare(measured(*records, model_hashes=named), measured(*records, label="head", model_hashes=alone))
    assert set(by_status(found)) == {"COMPARED"}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (failed_record, "HEAD: error: RuntimeError: out of memory"),
        (lambda cell: make_record(cell, throttle=("thermal",)), "HEAD: throttled: thermal"),
    ],
)
def test_a_cell_that_head_could_not_measure_fails_the_comparison(broken: Callable[[Cell], CellRecord], said: str) -> None:
    *same, last = cells()
    found = against(*map(make_record, same), broken(last))
    (invalid,) = by_status(found)["INVALID"]
    assert (invalid.reason, invalid.outcomes) == (said, ())
    assert exit_status(found, strict=False) == 1
    alone = against(broken(last), base=measured(make_record(last)))
    assert exit_status(alone, strict=False) == 1


def test_a_cell_that_base_could_not_measure_is_no_regression_but_not_conclusive() -> None:
    *same, last = cells()
    base = measured(*map(make_record, same), failed_record(last))
    for head in (make_record(last), failed_record(last)):
        found = against(*map(make_record, same), head, base=base)
        assert [cell.reason for cell in by_status(found)["BASE INVALID"]] == ["BASE: error: RuntimeError: out of memory"]
        assert (exit_status(found, strict=False), exit_status(found, strict=True)) == (0, 3)


def test_a_cell_that_only_head_has_is_new_and_does_not_fail() -> None:
    found = against(*map(make_record, [*cells(), make_cell(temperature=2.0)]))
    (new,) = by_status(found)["NEW"]
    assert (new.base, new.row.record.cell.temperature) == (None, 2.0)
    assert exit_status(found, strict=True) == 0


def test_of_each_cell_the_newest_record_counts() -> None:
    old = make_run([make_record(cell, gamma=0.5) for cell in cells()], created="2026-11-01T10:00:00+00:00")
    new = make_run(list(map(make_record, cells())), created="2026-11-02T10:00:00+00:00")
    assert exit_status(compare(BASE, side("head", new, old)), strict=False) == 0
    broken = make_run(list(map(failed_record, cells()[:1])), created="2026-11-03T10:00:00+00:00")
    assert exit_status(compare(BASE, side("head", broken, new)), strict=False) == 1


def test_with_no_cell_in_common_there_is_nothing_to_compare() -> None:
    with pytest.raises(IncomparableResults, match=r"no cell of base can be compared with one of head; .*seed \(0 against 1\)"):
        against(*map(make_record, cells(seed=1)))
    with pytest.raises(IncomparableResults, match="BASE: error: RuntimeError"):
        against(*map(make_record, cells()), base=measured(*map(failed_record, cells())))


def test_unlike_machines_are_refused_and_other_versions_are_not() -> None:
    environment = make_run().environment
    with pytest.raises(IncomparableResults, match=r"cpu_model \(Example CPU against Other CPU\)"):
        against(*map(make_record, cells()), environment=environment | {"cpu_model": "Other CPU"})
    found = against(*map(make_record, cells()), environment=environment | {"torch": "2.14.0"})
    assert set(by_status(found)) == {"COMPARED"}


def test_a_machine_that_only_head_was_measured_on_is_not_mixed_in() -> None:
    other = make_run().environment | {"cpu_model": "Other CPU"}
    later = make_run([make_record(c, gamma=0.5) for c in cells()], environment=other, created="2026-12-01T10:00:00+00:00")
    found = compare(BASE, side("head", make_run(list(map(make_record, cells()))), later))
    assert {name: len(group) for name, group in by_status(found).items()} == {"COMPARED": 3, "NEW": 3}
    assert exit_status(found, strict=True) == 0


def test_one_suite_can_be_asked_for() -> None:
    several = [*map(make_record, cells()), *map(make_record, cells(suite="draft_length"))]
    base, head = measured(*several), measured(*several[:3], label="head")
    assert exit_status(compare(base, head), strict=False) == 1
    found = compare(base, head, suite="temperature_grid")
    assert (len(found.cells), exit_status(found, strict=False)) == (3, 0)
    with pytest.raises(ValueError, match=r"head: expected cells of suite draft_length, got temperature_grid"):
        compare(base, head, suite="draft_length")


def test_a_margin_must_be_positive() -> None:
    with pytest.raises(ValueError, match="expected a margin > 0, got 0"):
        compare(BASE, BASE, margin=0.0)


# Rates. Of 60 comparisons whose chance is 5 % each, more than 9 are false with a probability of 0.1 %
@pytest.mark.parametrize(
    "design",
    [Design(num_cells=6, num_runs=6), Design(interleaved=True), Design(interleaved=True, same_texts=True)],
    ids=["runs of their own", "in turns", "in turns, same texts"],
)
def test_two_sides_that_are_the_same_seldom_look_different(design: Design) -> None:
    assert rate(60, design, false_difference, seed=11) <= 0.15


def test_launches_that_are_apart_by_themselves_seldom_look_different_but_alone_they_do() -> None:
    launched = Design(2, interleaved=True, same_texts=True, launches=3, lottery=0.03)
    assert rate(60, launched, false_difference, seed=14) <= 0.15
    assert rate(60, replace(launched, launches=1), false_difference, seed=14) > 0.3


def test_a_launch_that_lacks_a_cell_fails_the_comparison() -> None:
    again = make_run(list(map(make_record, cells()))[:-1])
    found = compare(replace(BASE, relaunched=(BASE.runs,)), replace(BASE, relaunched=({"again": again},)))
    statuses = [cell.status for cell in found.cells]
    assert statuses == ["COMPARED", "COMPARED", "MISSING"]
    assert "launch 2: HEAD has no such cell" in found.cells[-1].reason
    assert exit_status(found, strict=False) == 1


def test_numbers_are_means_over_launches_and_intervals_cover_others() -> None:
    fast, slow = (make_run([make_record(gamma=gamma)]) for gamma in (1.4, 1.1))
    base = Side("base", {"a": fast}, ({"b": slow},))
    (cell,) = compare(base, base, interleaved=True).cells
    assert [len(pair) for pair in cell.relaunched] == [2]
    head = Side("head", {"a": slow}, ({"b": slow},))
    (cell,) = compare(base, head, interleaved=True).cells
    by_number = {outcome.number.name: outcome for outcome in cell.outcomes}
    alone = [one(compare(Side("", {"a": run}), Side("", {"a": slow}), interleaved=True)) for run in (fast, slow)]
    for name in ("SD ms/token", "gamma"):
        effects = [outcomes[name].effect.estimate for outcomes in alone]  # type: ignore[union-attr]
        assert by_number[name].effect is not None
        assert by_number[name].effect.estimate == pytest.approx(sum(effects) / 2)
        spread = abs(effects[0] - effects[1]) / 2  # standard error of a mean of two
        assert by_number[name].effect.parts[1] == (pytest.approx(spread), 1.0)
        assert by_number[name].verdict == "INCONCLUSIVE"


def one(found: Comparison) -> dict[str, Outcome]:
    (cell,) = found.cells
    return {outcome.number.name: outcome for outcome in cell.outcomes}


def test_sides_that_differ_by_the_margin_seldom_look_the_same() -> None:
    slower = Design(1, 96, interleaved=True, same_texts=True, sd_slowdown=math.log1p(MARGIN))
    assert rate(60, slower, same_speed, seed=12) <= 0.15
    alike = replace(slower, sd_slowdown=0.0)
    assert rate(10, alike, same_speed, seed=12) > 0.2  # so that prompts are enough to say SAME


def test_a_slow_down_of_5_percent_is_seen_in_turns_on_a_steady_machine() -> None:
    design = Design(interleaved=True, same_texts=True, drift=0.0, stalls=False, sd_slowdown=math.log(1.05))
    assert rate(20, design, is_slower, seed=13) == 1.0
