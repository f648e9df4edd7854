"""Effects: estimates whose errors can be tested, the jackknife that pairs cells by prompt, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.statistics.intervals import MIN_CLUSTERS, UNKNOWN, Array, Interval, Part, jackknife, t_half_width

LEVEL = 0.05  # largest chance of any false verdict in a ledger
SMALLEST_P = 1e-12


@dataclass(frozen=True, slots=True)
class Effect:
    """An estimate and the independent parts of its error, such as over prompts and over seeds.

    Its p value is the level whose interval just reaches the threshold, so that tests and intervals always agree.
    """

    estimate: float
    parts: tuple[Part, ...]

    @property
    def standard_error(self) -> float:
        return math.hypot(*(error for error, _ in self.parts))

    @property
    def testable(self) -> bool:
        """Whether there is a spread to test against; counts that are all equal have none."""
        return math.isfinite(self.estimate) and 0 < self.standard_error < math.inf

    @property
    def interval(self) -> Interval:
        """The interval at 95 %, of this effect alone."""
        half_width = self.half_width(0.05)
        return Interval(self.estimate, self.estimate - half_width, self.estimate + half_width)

    def half_width(self, level: float) -> float:
        """Return the half-width of the interval that leaves `level` out on both sides together."""
        return t_half_width(self.parts, level)

    def p_value(self, threshold: float) -> float:
        """Return the two-sided p value if the effect were just the threshold; never below SMALLEST_P."""
        from scipy.optimize import brentq

        distance = abs(self.estimate - threshold)
        if distance >= self.half_width(SMALLEST_P):
            return SMALLEST_P
        if distance <= self.half_width(1.0):  # 0, up to rounding
            return 1.0
        return math.exp(brentq(lambda log_p: self.half_width(math.exp(log_p)) - distance, math.log(SMALLEST_P), 0.0))

    def minus(self, other: Effect) -> Effect:
        """Return the difference to an effect of independent data."""
        return Effect(self.estimate - other.estimate, (*self.parts, *other.parts))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return corrected p values, in the same order.

    The chance that any true null hypothesis gets a corrected p at or below a level is at most that level, whatever the
    dependence between tests.

    Source:  Holm 1979, A simple sequentially rejective multiple test procedure
    """
    # statsmodels' multipletests gives the same numbers, but it collects garbage at every call, which takes 0.1 s or more.
    order = np.argsort(p_values)
    scaled = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return tuple(corrected.tolist())


# Effects over seeds and prompts
def left_out_ratios(above: Sequence[float], below: Sequence[float]) -> Array:
    """Return (1 + P,): the ratio of the totals of two sums over P prompts, then the same ratio without each prompt."""
    numerators, denominators = (np.sum(sums) - np.append(0.0, sums) for sums in (above, below))
    return numerators / denominators


def over_prompts(values: Array) -> Effect:
    """Return the effect of (1 + P,) values: of all prompts, then without each prompt."""
    return Effect(float(values[0]), (jackknife(values[1:]),))


def over_seeds_and_prompts(of_seeds: Array) -> Effect:
    """Return the mean over seeds of (S, 1 + P) values, as in `over_prompts`; its error covers other seeds and other prompts."""
    num_seeds, mean = len(of_seeds), of_seeds.mean(0)
    by_seed = (math.sqrt(float(of_seeds[:, 0].var(ddof=1)) / num_seeds), num_seeds - 1.0) if num_seeds > 1 else UNKNOWN
    return Effect(float(mean[0]), (by_seed, *over_prompts(mean).parts))


# Effects of cells
Number = Callable[[Array], Array]  # of sums (..., C)
Statistic = Callable[[Sequence[Array]], float]  # of the totals (P, C) of each cell


@dataclass(frozen=True, slots=True)
class PromptSums:
    """Sums over each prompt of one cell. Cells of one prompt set have the same prompts in the same order."""

    prompt_set: str
    totals: Array  # (P, C); the last column is the weight of a prompt


def paired_effect(statistic: Statistic, cells: Sequence[PromptSums]) -> Effect:
    """Return a statistic of several cells, with its jackknife error.

    A prompt is left out of all cells of its set at once, which keeps them paired. Sets of prompts are independent parts of
    the error.
    """
    parts = []
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(statistic([cell.totals for cell in cells]))
        for prompt_set in dict.fromkeys(cell.prompt_set for cell in cells):
            own = [cell.totals for cell in cells if cell.prompt_set == prompt_set]
            if len(own[0]) < MIN_CLUSTERS:
                return Effect(estimate, (UNKNOWN,))
            left_out = np.array([statistic(_without(cells, prompt_set, prompt)) for prompt in range(len(own[0]))])
            parts.append(jackknife(left_out, np.sum([totals[:, -1] / totals[:, -1].sum() for totals in own], axis=0)))
    return Effect(estimate, tuple(parts))


def _without(cells: Sequence[PromptSums], prompt_set: str, prompt: int) -> list[Array]:
    return [np.delete(cell.totals, prompt, 0) if cell.prompt_set == prompt_set else cell.totals for cell in cells]


def contrast(of: Number, weights: Sequence[float]) -> Statistic:
    """Return the statistic that is a weighted sum of the numbers of cells."""
    return lambda cells: float(sum(weight * of(cell.sum(0)) for weight, cell in zip(weights, cells, strict=True)))


def chosen_by_others(of: Number, cells: Sequence[Array], judged_by: Sequence[Array]) -> float:
    """Return the number of a made-up cell: each prompt comes from the cell that is best on all other prompts.

    The best of several cells is better on the prompts that chose it than on new ones. Here no prompt influences its own
    choice, so cells that are alike in truth show no gain.

    Args:    judged_by: the cells that decide which of `cells` is best, in the same order
    """
    best = np.argmax([of(totals.sum(0) - totals) for totals in judged_by], axis=0)
    return float(of(np.stack(cells)[best, np.arange(len(best))].sum(0)))
