"""Intervals of ratios over prompts, and tests of acceptances against their probabilities.

The prompt is the unit that was sampled: everything measured on one prompt is summed first. Every interval is the
leave-one-prompt-out jackknife of a ratio of totals, with a quantile of t. The degrees of freedom of t are Kish's effective
number of prompts less one, because long texts weigh more. Nothing is drawn at random: the same data give the same interval.

The method was chosen by simulation: with 8 prompts bootstraps cover less, or are 10 to 12 % wider (docs/validation.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike as Column
from numpy.typing import NDArray

Array = NDArray[np.float64]
Part = tuple[float, float]  # of an error: a standard error, and the degrees of freedom of its t

CONFIDENCE = 0.95
UNKNOWN: Part = (math.inf, 1.0)  # too little was measured to estimate the error
NORMAL_VARIANCE = 200.0  # of a count: above it, the count is treated as normal
# Fewest prompts from which, upwards, 95 % intervals of both gamma and alpha covered 93 to 97 % in simulation
# (tests/studies/simulated_runs.py, docs/validation.md). Gamma alone holds from 2 prompts; alpha fails at 5.
MIN_CLUSTERS = 6


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its interval. Infinite ends: too little was measured; NaN: the data do not determine the number."""

    estimate: float
    low: float
    high: float
    num_clusters: int = 0  # prompts that contributed; 0: not counted
    confidence: float = CONFIDENCE
    # Of the error of the logarithm, if this is a ratio of totals. Equivalence tests need them.
    parts: tuple[Part, ...] = field(default=(UNKNOWN,), repr=False)

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def adequate(self) -> bool:
        """Whether there are enough prompts for the interval to be believed."""
        return self.num_clusters >= MIN_CLUSTERS

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def transformed(self, increasing: Callable[[float], float]) -> Interval:
        """Return the interval of an increasing function of the number."""
        estimate, low, high = map(increasing, (self.estimate, self.low, self.high))
        return replace(self, estimate=estimate, low=low, high=high, parts=(UNKNOWN,))


# Errors
def jackknife(left_out: Array, weights: Array | None = None) -> Part:
    """Return the standard error of an estimate from its values without each prompt, and the degrees of freedom of its t.

    Args:    left_out: (P,); weights: (P,) how much each prompt weighs; None: all weigh the same
    Returns: UNKNOWN for a single prompt. The degrees of freedom are Kish's effective number of prompts less one, at least 1:
             with weights 1, 1, 2 they are 4^2 / 6 - 1 = 1.67
    Source:  Efron and Stein 1981 (jackknife variance); Kish 1965 (effective sample size)
    """
    num_prompts = len(left_out)
    if num_prompts < 2:
        return UNKNOWN
    standard_error = math.sqrt((num_prompts - 1) / num_prompts * float(((left_out - left_out.mean()) ** 2).sum()))
    effective_prompts = num_prompts if weights is None else float(weights.sum() ** 2 / (weights**2).sum())
    return standard_error, max(effective_prompts - 1.0, 1.0)


def t_half_width(parts: Iterable[Part], level: float) -> float:
    """Return the half-width of the interval that leaves `level` out on both sides together.

    Independent parts of an error, such as over seeds and over prompts, keep the t of each: half-widths add up as squares.
    """
    from scipy.special import stdtrit

    # The lower tail is exact for tiny levels, where 1 - level / 2 would round to 1.
    return math.hypot(*(stdtrit(freedom, level / 2) * error for error, freedom in parts))


# Ratios
def ratio_of_totals(
    ar_s: Column,
    ar_tokens: Column,
    sd_s: Column,
    sd_tokens: Column,
    clusters: Column,
    *,
    groups: Column | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the relative wall-time improvement: (sum ar_s / sum ar_tokens) / (sum sd_s / sum sd_tokens).

    Args:    seconds and tokens of each arm, with one entry for each pair; clusters: the prompt of each pair
             groups: the batch of each pair, whose noise its texts share; None: decoded alone
    Returns: above 1 if SD is faster; an interval from 0 to infinity if one prompt has all tokens of an arm
    Raises:  ValueError: an arm has no tokens or no seconds
    """
    columns = (ar_s, ar_tokens, sd_s, sd_tokens)
    return _log_ratio_interval(columns, (1, -1, -1, 1), clusters, groups=groups, confidence=confidence)


def mean_ratio(numerators: Column, denominators: Column, clusters: Column, *, groups: Column | None = None) -> Interval:
    """Return the ratio of two totals, such as tokens emitted / rounds. Raise ValueError if a total is zero."""
    return _log_ratio_interval((numerators, denominators), (1, -1), clusters, groups=groups)


def geometric_mean_ratio(
    ar_s: Column, ar_tokens: Column, sd_s: Column, sd_tokens: Column, clusters: Column, *, groups: Column | None = None
) -> Interval:
    """Return the geometric mean over prompts of the geometric mean over a prompt's pairs of AR / SD seconds per token.

    Every prompt weighs the same, however long its texts. Pairs with an arm without tokens are left out; ValueError if all are.
    """
    seconds_and_tokens = np.stack([np.asarray(column, dtype=float) for column in (ar_s, ar_tokens, sd_s, sd_tokens)])
    usable = (seconds_and_tokens > 0).all(axis=0)
    if not usable.any():
        raise ValueError("expected a pair with seconds and tokens in both arms, got none")
    log_ratio = np.array([1.0, -1.0, -1.0, 1.0]) @ np.log(seconds_and_tokens[:, usable])
    means = []
    for labels in (clusters,) if groups is None else (clusters, groups):
        sums = _cluster_totals((log_ratio, np.ones_like(log_ratio)), np.asarray(labels)[usable])
        means.append(sums[:, 0] / sums[:, 1])
    parts = [jackknife((each.sum() - each) / max(1, len(each) - 1)) for each in means]
    return _exponentiated(float(means[0].mean()), parts, len(means[0]), CONFIDENCE)


def log_ratio_floor(first_s: Column, first_tokens: Column, second_s: Column, second_tokens: Column, clusters: Column) -> float:
    """Return the A/A floor: the end of the 95 % interval of log(AR / AR') that is farther from 0.

    Both arms are the same. So a difference between them is the machine's, and counts as much as the noise. The interval is
    symmetric, and the end is |estimate| + half-width: with 1 % +- 2 % the floor is 3 %.
    """
    interval = ratio_of_totals(first_s, first_tokens, second_s, second_tokens, clusters)
    return abs(math.log(interval.estimate)) + math.log(interval.high / interval.estimate)


def proportion(successes: Column, trials: Column, clusters: Column) -> Interval:
    """Return the pooled share sum(successes) / sum(trials). Its interval is symmetric in the log odds and so within 0..1.

    Args:    successes: between 0 and trials, need not be whole (expected counts)
    Returns: at a share of exactly 0 or 1 prompts show no spread, and the interval is Clopper and Pearson's over trials
    Raises:  ValueError: no trials, or a share outside 0..1
    """
    totals = _cluster_totals((successes, trials), clusters)
    num_successes, num_trials = (float(total) for total in totals.sum(axis=0))
    if num_trials <= 0 or not 0 <= num_successes <= num_trials:
        raise ValueError(f"expected 0 <= successes <= trials and trials > 0, got {num_successes:g} of {num_trials:g}")
    totals = totals[totals[:, 1] > 0]
    share = num_successes / num_trials
    if share in (0.0, 1.0):
        from scipy.stats import binomtest

        exact = binomtest(round(num_successes), round(num_trials)).proportion_ci(CONFIDENCE)
        return Interval(share, float(exact.low), float(exact.high), len(totals))
    rest = totals.sum(axis=0) - totals  # what is left without each prompt
    part = jackknife(rest[:, 0] / rest[:, 1], totals[:, 1]) if len(totals) > 1 else UNKNOWN
    # The derivative of the log odds is 1 / (share (1 - share)).
    odds, half_width = share / (1 - share), t_half_width([part], 1 - CONFIDENCE) / (share * (1 - share))
    low, high = (float(odds / (odds + np.exp(sign * half_width))) for sign in (1, -1))
    return Interval(share, low, high, len(totals))


def _cluster_totals(columns: Sequence[Column], clusters: Column) -> Array:
    """Sum each column over each cluster (clusters, columns); leave out clusters that contributed nothing."""
    labels, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = [np.bincount(index, weights=np.asarray(column, dtype=float), minlength=len(labels)) for column in columns]
    totals = np.stack(sums, axis=1).astype(np.float64)
    return totals[totals.any(axis=1)]


def _log_ratio_interval(
    columns: Sequence[Column],
    exponents: Sequence[int],
    clusters: Column,
    *,
    groups: Column | None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the interval of the product of column totals raised to +1 or -1.

    With groups, the error has two parts: over prompts, each left out of all groups, and over groups, because texts that are
    decoded together share the machine's noise. A little noise counts twice, so the interval is on the safe side.
    """
    of_prompts = _cluster_totals(columns, clusters)
    sums = of_prompts.sum(axis=0)
    if not (sums > 0).all():
        raise ValueError(f"expected positive totals, got {sums.tolist()}")
    parts = []
    for totals in (of_prompts,) if groups is None else (of_prompts, _cluster_totals(columns, groups)):
        rest = sums - totals  # what is left without each prompt, or without each group
        weights = totals[:, 1::2].sum(axis=1)  # the tokens, or whatever else the seconds are divided by
        parts.append(jackknife(np.log(rest) @ exponents, weights) if (rest > 0).all() else UNKNOWN)
    return _exponentiated(float(np.log(sums) @ exponents), parts, len(of_prompts), confidence)


def _exponentiated(log_ratio: float, parts: Sequence[Part], num_prompts: int, confidence: float) -> Interval:
    half_width = t_half_width(parts, 1 - confidence)
    low, estimate, high = np.exp([log_ratio - half_width, log_ratio, log_ratio + half_width]).tolist()
    return Interval(estimate, low, high, num_prompts, confidence, tuple(parts))


# Tests
def martingale_z(accepted: Column, expected: Column) -> float:
    """Return the standardised surplus of acceptances: sum(A - beta) / sqrt(sum beta (1 - beta)).

    Which positions are tested depends on earlier acceptances. Each difference still has mean 0 given the past.

    Args:    accepted: 0 or 1 for each tested position; expected: beta, its acceptance probability, 0..1
    Returns: plus or minus infinity if a token of probability 0 was accepted or one of probability 1 was not;
             0 if nothing was left to chance and nothing contradicts it
    """
    accepted = np.asarray(accepted, dtype=float)
    expected = np.clip(np.asarray(expected, dtype=float), 0, 1)  # sums of probabilities may round to just above 1
    surplus = accepted - expected
    certain = (expected == 0) | (expected == 1)
    if surplus[certain].any():
        return math.copysign(math.inf, surplus[certain].sum())
    variance = float((expected * (1 - expected)).sum())
    return float(surplus.sum()) / math.sqrt(variance) if variance > 0 else 0.0


def martingale_p(accepted: Column, expected: Column, z: float) -> float:
    """Return the two-sided p value of `martingale_z`.

    With few uncertain positions the number of acceptances is far from normal. Then it is compared with a sum of independent
    draws of these probabilities (Poisson binomial), and p is twice the smaller tail.
    """
    expected = np.clip(np.asarray(expected, dtype=float), 0, 1)
    uncertain = (expected > 0) & (expected < 1)
    chances = expected[uncertain]
    if math.isinf(z) or not len(chances) or float((chances * (1 - chances)).sum()) >= NORMAL_VARIANCE:
        return two_sided_p(z)
    from scipy.stats import poisson_binom

    num_accepted = int(np.asarray(accepted, dtype=float)[uncertain].sum())
    at_most = poisson_binom(chances).cdf(num_accepted)
    # The number of rejections, because 1 - cdf rounds a tiny upper tail away.
    at_least = poisson_binom(1 - chances).cdf(len(chances) - num_accepted)
    return float(min(1.0, 2 * at_most, 2 * at_least))


def self_normalised_z(observed: Column, expected: Column) -> float:
    """Return the standardised surplus if only the expectations are known: sum(d) / sqrt(sum d^2), d = observed - expected."""
    surplus = np.asarray(observed, dtype=float) - np.asarray(expected, dtype=float)
    scale = math.sqrt(float((surplus**2).sum()))
    return float(surplus.sum()) / scale if scale > 0 else 0.0


def two_sided_p(z: float) -> float:
    """Return the probability that a standard normal is at least as far from 0 as z."""
    return math.erfc(abs(z) / math.sqrt(2))
