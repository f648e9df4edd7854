"""Effects: errors that pair prompts, p values that agree with intervals, Holm's correction."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests

from bench.analysis.quantities import share_of
from bench.statistics.effects import (
    Effect,
    LargestEffect,
    PromptSums,
    contrast,
    holm,
    left_out_ratios,
    over_launches_and_prompts,
    over_prompts,
    over_seeds_and_prompts,
    paired_effect,
)
from tests.studies.error_rates import best_of_several, launches

EQUAL = functools.partial(pytest.approx, rel=1e-9)  # rounding only


def test_holm_multiplies_the_smallest_by_all_and_the_next_by_one_less() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))  # Holm 1979, by hand
    assert holm([0.9, 0.5]) == (1.0, 1.0)
    assert holm([]) == ()


def test_holm_keeps_the_order_and_makes_no_p_smaller() -> None:
    rng = np.random.default_rng(1)
    for size in range(1, 30):
        raw = rng.uniform(size=size) ** 3
        corrected = np.array(holm(raw.tolist()))
        assert (corrected >= raw).all()
        assert (corrected <= np.minimum(1, size * raw) + 1e-15).all()  # no more than Bonferroni's
        assert (np.diff(corrected[np.argsort(raw)]) >= 0).all()


def test_holm_is_that_of_statsmodels() -> None:
    p_values = np.random.default_rng(5).uniform(size=40) ** 3
    p_values[7] = p_values[3]  # a tie
    assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_p_says_whether_the_threshold_lies_in_the_interval() -> None:
    for effect in (Effect(1.0, ((0.3, 7.0),)), Effect(1.0, ((0.3, 2.0), (0.2, 15.0)))):
        for end in (effect.interval.low, effect.interval.high):
            assert effect.p_value(end) == pytest.approx(0.05, rel=1e-6)  # of a root finder
        assert effect.p_value(1.0) == 1.0


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=9)
    found = paired_effect(contrast(share_of, (1,)), [PromptSums("", np.stack((values, np.ones(9)), axis=1))])
    assert (found.estimate, found.standard_error) == EQUAL((values.mean(), values.std(ddof=1) / 3))
    assert found.parts[0][1] == EQUAL(8)


def test_prompts_of_one_set_are_paired_and_sets_are_independent() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(size=8)
    first, second = (shared + 0.1 * rng.normal(size=8) for _ in range(2))
    cells = [np.stack((values, np.ones(8)), axis=1) for values in (first, second)]
    difference = contrast(share_of, (1, -1))
    paired = paired_effect(difference, [PromptSums("one", totals) for totals in cells])
    assert paired.p_value(0.0) == pytest.approx(ttest_rel(first, second).pvalue, rel=1e-6)
    apart = paired_effect(difference, [PromptSums(str(place), totals) for place, totals in enumerate(cells)])
    assert sorted(error for error, _ in apart.parts) == EQUAL(sorted(v.std(ddof=1) / 8**0.5 for v in (first, second)))


def test_too_few_prompts_are_not_tested() -> None:
    totals = np.ones((5, 2)) * [[1.0], [0.5], [0.2], [0.9], [0.4]]
    assert not paired_effect(contrast(share_of, (1,)), [PromptSums("", totals)]).testable


def test_the_largest_of_several_effects_is_tested_as_if_all_had_been_chosen() -> None:
    small, large = (Effect(estimate, ((0.02, 9.0),)) for estimate in (0.01, 0.05))
    best = LargestEffect((small, large), num_choices=3)
    assert best.estimate == 0.05
    assert best.p_value(0.0) == EQUAL(6 * large.p_value(0.0))
    assert best.p_value(0.2) == EQUAL(3 * large.p_value(0.2))  # none is above it: the largest p value decides
    assert best.interval.low == EQUAL(large.estimate - large.half_width(0.05 / 6))
    assert best.interval.high == EQUAL(large.estimate + large.half_width(0.05 / 3))


def test_the_best_of_cells_that_are_alike_seldom_looks_better() -> None:
    # 2.5 % are allowed; 6 % is 5.5 standard errors above it.
    assert all(rate.after <= 0.06 for rate in best_of_several.rows(600))


def test_equal_sides_whose_launches_repeat_their_texts_seldom_differ() -> None:
    # 5 % are allowed; 9 % is 4.5 standard errors above it. The rule that subtracted the whole error of launches exceeds it.
    rates = list(launches.rows(600))
    assert all(rate.after <= 0.09 for rate in rates)
    assert max(rate.before for rate in rates) > 0.09


def test_noise_of_single_outputs_counts_once_and_launches_count_in_full() -> None:
    rng = np.random.default_rng(7)
    values = 0.3 * rng.standard_normal(6) + 0.1 * rng.standard_normal((4, 6))  # launches, prompts
    left_out = (values.sum(1, keepdims=True) - values) / 5
    found = over_launches_and_prompts(np.concatenate((values.mean(1, keepdims=True), left_out), axis=1), np.ones(6))
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    noise = (residuals**2).sum() / (3 * 5) / (4 * 6)  # variance of one output / all outputs
    (over_prompts_, freedom), over_launches = found.parts
    assert found.estimate == EQUAL(values.mean())
    assert over_prompts_ == EQUAL(math.sqrt(values.mean(0).var(ddof=1) / 6 - noise))
    assert freedom == EQUAL(5)
    assert over_launches == EQUAL((values.mean(1).std(ddof=1) / 2, 3))


def test_the_error_over_seeds_and_prompts_is_that_of_both_by_themselves() -> None:
    rng = np.random.default_rng(6)
    tested = rng.uniform(40, 120, 9)
    accepted = tested * rng.uniform(0.4, 0.6, (3, 9))
    found = over_seeds_and_prompts(np.stack([left_out_ratios(each, tested) for each in accepted]))
    of_seeds = accepted.sum(1) / tested.sum()
    assert found.estimate == EQUAL(of_seeds.mean())
    by_seed, by_prompt = found.parts
    assert by_seed == EQUAL((of_seeds.std(ddof=1) / math.sqrt(3), 2))
    # The tested counts are the same for all seeds, so the mean over seeds has the same ratio.
    assert by_prompt == EQUAL(over_prompts(left_out_ratios(accepted.mean(0), tested)).parts[0])
    assert not over_seeds_and_prompts(np.ones((1, 10))).testable
