"""Token length: logistic models against simulated truth, correlations, bins, and the effects of the ledger."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.token_length import (
    ALONE,
    COVARIATES,
    FULL,
    LENGTH,
    LENGTH_BINS,
    Positions,
    binned_shares,
    by_temperature,
    correlations,
    counts_elsewhere,
    fit_logistic,
    jackknifed,
    length_bins,
    length_effects,
    length_models,
    positions,
)
from tests.support.simulated_lengths import simulated, stored


def test_a_logistic_fit_of_two_groups_is_their_log_odds_ratio() -> None:
    in_group = np.repeat([0.0, 1.0], 100)
    accepted = np.array([1.0] * 20 + [0.0] * 80 + [1.0] * 70 + [0.0] * 30)
    constant, slope = fit_logistic(np.column_stack((np.ones(200), in_group)), accepted)
    assert constant == pytest.approx(math.log(20 / 80), abs=1e-5)
    assert slope == pytest.approx(math.log(70 / 30) - math.log(20 / 80), abs=1e-5)


def test_a_logistic_fit_maximises_the_likelihood_wherever_it_starts_and_recovers_the_truth() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(5)
    design = np.column_stack((np.ones(5000), rng.standard_normal((5000, 3))))
    truth = np.array([0.5, 1.0, -0.7, 0.0])
    accepted = (rng.random(5000) < 1 / (1 + np.exp(-design @ truth))).astype(float)
    found = fit_logistic(design, accepted)
    naive = minimize(lambda b: np.logaddexp(0, design @ b).sum() - accepted @ design @ b, np.zeros(4), tol=1e-10)
    assert found == pytest.approx(naive.x, abs=1e-3)  # what minimize stops at
    assert found == pytest.approx(fit_logistic(design, accepted, start=truth), abs=1e-6)
    assert found == pytest.approx(truth, abs=0.16)  # four standard errors of at most 0.04


def test_separated_acceptance_gives_finite_steps_and_no_estimate() -> None:
    data = positions(simulated(1))
    separated = replace(data, accepted=(data.column(LENGTH) > 4).astype(float))
    assert np.isfinite(fit_logistic(separated.standardised, separated.accepted)).all()
    assert math.isnan(length_models(separated).length[ALONE].estimate)
    for accepted in (np.zeros_like(data.accepted), np.ones_like(data.accepted)):
        models = length_models(replace(data, accepted=accepted))
        assert math.isnan(models.length[ALONE].interval.half_width) or abs(models.length[ALONE].estimate) < 0.01
    constant = replace(data, standardised=np.where(np.arange(len(COVARIATES)) == 5, 0.0, data.standardised))
    full = length_models(constant).full
    assert [name for name, estimate in full.items() if math.isnan(estimate.estimate)] == [COVARIATES[5]]


def test_length_that_only_goes_with_entropy_vanishes_once_entropy_is_in() -> None:
    found = length_models(positions(simulated(2, num_prompts=24)))
    alone, full = found.length[ALONE], found.length[FULL]
    assert alone.interval.excludes_zero
    assert alone.estimate > 0.2
    assert not full.interval.excludes_zero
    assert found.length["with entropy"].estimate == pytest.approx(0.0, abs=0.2)
    assert found.change.interval.excludes_zero
    assert found.change.estimate == pytest.approx(full.estimate - alone.estimate)
    assert found.full["entropy"].estimate < -0.5
    assert found.full[LENGTH] == full


def test_length_that_matters_by_itself_stays() -> None:
    full = length_models(positions(simulated(3, num_prompts=24, of_length=0.8))).length[FULL]
    assert full.interval.excludes_zero
    assert full.estimate == pytest.approx(0.8, abs=0.25)


def test_a_jackknife_of_a_mean_is_its_standard_error_over_prompts() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    prompts = np.arange(4)
    (found,) = jackknifed(lambda kept: values[kept].mean(keepdims=True), prompts)
    assert found.estimate == 4.0
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 2)
    assert found.parts[0][1] == 3
    (alone,) = jackknifed(lambda kept: values[kept].mean(keepdims=True), np.zeros(4, int))
    assert alone.interval.half_width == math.inf


def test_intervals_of_a_coefficient_cover_over_prompts_that_differ() -> None:
    """300 runs of 12 prompts with constants of their own: 95 % less three standard errors of 1.3 % is 91 %."""
    rng = np.random.default_rng(6)
    prompts = np.repeat(np.arange(12), 40)
    truth = 0.5 * 0.97  # a constant that varies by 0.4 between prompts flattens the slope over all of them by 3 %
    covered = 0
    for _ in range(300):
        length = rng.standard_normal(480) + 0.5 * rng.standard_normal(12)[prompts]
        scores = 0.5 * length + 0.4 * rng.standard_normal(12)[prompts]
        accepted = (rng.random(480) < 1 / (1 + np.exp(-scores))).astype(float)
        design = np.column_stack((np.ones(480), length))

        def slope(kept: np.ndarray, design: np.ndarray = design, accepted: np.ndarray = accepted) -> np.ndarray:
            return fit_logistic(design[kept], accepted[kept])[1:]

        (found,) = jackknifed(slope, prompts)
        covered += found.interval.low <= truth <= found.interval.high
    assert 0.91 <= covered / 300 <= 0.99


def test_bins_sum_up_to_all_positions_and_their_shares_to_the_share_of_all() -> None:
    data = positions(simulated(4))
    bins = length_bins(data)
    shares = binned_shares(data.accepted, bins, len(LENGTH_BINS), data.prompts)
    counts = np.bincount(bins, minlength=len(LENGTH_BINS))
    assert counts.sum() == len(data.accepted) == 12 * 59  # one special token a text
    summed = sum(count * share.estimate for count, share in zip(counts, shares, strict=True) if share is not None)
    assert summed == pytest.approx(data.accepted.sum())
    lengths = data.column(LENGTH)
    assert [counts[0], counts[5], counts[6]] == [
        *((lengths == 1).sum(), ((lengths == 6) | (lengths == 7)).sum(), (lengths >= 8).sum())
    ]


def test_an_empty_bin_has_no_share() -> None:
    shares = binned_shares(np.array([1.0, 0.0]), np.array([0, 0]), 2, np.array([0, 1]))
    assert shares[0] is not None
    assert shares[1] is None


def test_a_token_is_counted_at_positions_of_other_prompts_only() -> None:
    rng = np.random.default_rng(7)
    token_ids, prompts = rng.integers(0, 9, 80), rng.integers(0, 5, 80)
    naive = [sum((token_ids == token) & (prompts != prompt)) for token, prompt in zip(token_ids, prompts, strict=True)]
    assert counts_elsewhere(token_ids, prompts).tolist() == naive


def test_correlations_are_those_of_scipy_and_absent_where_nothing_varies() -> None:
    from scipy.stats import pointbiserialr, spearmanr

    data = positions(simulated(8))
    found = correlations(data)
    for name in COVARIATES:
        assert found[name].estimate == pytest.approx(spearmanr(data.column(name), data.accepted).statistic)
    biserial = found[f"{LENGTH} (point-biserial)"]
    assert biserial.estimate == pytest.approx(pointbiserialr(data.accepted, data.column(LENGTH)).statistic)
    assert found["entropy"].interval.excludes_zero
    same = correlations(replace(data, accepted=np.ones_like(data.accepted)))
    assert all(math.isnan(estimate.estimate) for estimate in same.values())


def test_every_temperature_is_a_group_and_all_together_are_one() -> None:
    groups: dict[str, Positions] = by_temperature(positions(simulated(9)))
    assert list(groups) == ["T = 0.5", "T = 1", "all T"]
    assert len(groups["T = 0.5"].accepted) + len(groups["T = 1"].accepted) == len(groups["all T"].accepted)


def test_the_effects_of_the_ledger_are_the_coefficients_over_all_temperatures(tmp_path: Path) -> None:
    record = simulated(10, num_prompts=8)
    models = length_models(positions(record))
    for effect, name in zip(length_effects(stored(record, tmp_path)), (ALONE, FULL), strict=True):
        assert effect == models.length[name]
        assert effect.parts[0][1] == 7
    alone = length_effects(stored(simulated(10, num_prompts=1), tmp_path))[0]
    assert alone.standard_error == math.inf
