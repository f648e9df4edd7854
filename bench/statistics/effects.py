"""TODO: purpose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.statistics.intervals import MIN_CLUSTERS

LEVEL = 0.05  # chance of any false verdict in a ledger, at most
NORMAL = 1e9  # degrees of freedom from which t is as good as normal
SMALLEST_P = 1e-12


@dataclass(frozen=True, slots=True)
class Effect:
    """An estimate, its standard error, and the degrees of freedom of its t; inf: normal.

    Independent parts of an error, such as over seeds and over prompts, keep the t of each: half-widths of the parts add up as
    squares, at every confidence, and the p value is the level whose interval just reaches the threshold.
    """

    estimate: float
    standard_error: float  # inf: too little was measured to know
    freedom: float
    further: tuple[tuple[float, float], ...] = ()  # standard error and degrees of freedom of each further part

    @property
    def parts(self) -> tuple[tuple[float, float], ...]:
        return ((self.standard_error, self.freedom), *self.further)

    @property
    def testable(self) -> bool:
        """Whether there is a spread to test against; counts that are all equal have none."""
        return math.isfinite(self.estimate) and 0 < math.hypot(*(error for error, _ in self.parts)) < math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """At 95 %, of this effect alone."""
        half_width = self.half_width(0.05)
        return self.estimate - half_width, self.estimate + half_width

    def p_value(self, threshold: float) -> float:
        """Two-sided, were the effect just the threshold; never below SMALLEST_P."""
        from scipy.optimize import brentq

        distance = abs(self.estimate - threshold)
        if distance >= self.half_width(SMALLEST_P):
            return SMALLEST_P
        if distance <= self.half_width(1.0):  # 0 but for rounding
            return 1.0
        return math.exp(brentq(lambda log_p: self.half_width(math.exp(log_p)) - distance, math.log(SMALLEST_P), 0.0))

    def minus(self, other: Effect) -> Effect:
        """The difference to an effect of independent data."""
        return Effect(self.estimate - other.estimate, *self.parts[0], (*self.further, *other.parts))

    def half_width(self, level: float) -> float:
        """Of the interval that leaves `level` out on both sides together."""
        from scipy.special import stdtrit

        return math.hypot(*(stdtrit(min(freedom, NORMAL), level / 2) * error for error, freedom in self.parts))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Corrected so that the chance of any at or below a level by chance is that level, whatever depends on what.

    Source:  Holm 1979, A simple sequentially rejective multiple test procedure
    """
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    scaled = (min(1.0, (len(p_values) - rank) * p_values[place]) for rank, place in enumerate(ascending))
    corrected = dict(zip(ascending, itertools.accumulate(scaled, max), strict=True))
    return tuple(corrected[place] for place in range(len(p_values)))


Array = NDArray[np.float64]
Number = Callable[[Array], Array]  # of sums (..., C)
Statistic = Callable[[Sequence[Array]], float]  # of the totals (P, C) of each cell


@dataclass(frozen=True, slots=True)
class Sample:
    """Sums over each prompt of one cell; cells of one prompt set have the same prompts in the same order."""

    prompt_set: str
    totals: Array  # (P, C); the last column says how much a prompt weighs


def jackknife(statistic: Statistic, cells: Sequence[Sample]) -> Effect:
    """A statistic of several cells; a prompt is left out of all cells of its set at once, which keeps them paired.

    Sets of prompts are independent parts of the error. Each has Kish's effective number less one degrees of freedom, as in
    `bench.statistics.intervals`.
    """
    parts = []
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(statistic([cell.totals for cell in cells]))
        for prompt_set in dict.fromkeys(cell.prompt_set for cell in cells):
            own = [cell.totals for cell in cells if cell.prompt_set == prompt_set]
            num_prompts = len(own[0])
            if num_prompts < MIN_CLUSTERS:
                return Effect(estimate, math.inf, 1.0)
            left_out = np.array([statistic(_without(cells, prompt_set, prompt)) for prompt in range(num_prompts)])
            shares = np.sum([totals[:, -1] / totals[:, -1].sum() for totals in own], axis=0)
            error = math.sqrt((num_prompts - 1) / num_prompts * float(((left_out - left_out.mean()) ** 2).sum()))
            parts.append((error, max(float(shares.sum() ** 2 / (shares**2).sum()) - 1, 1.0)))
    return Effect(estimate, *parts[0], tuple(parts[1:]))


def _without(cells: Sequence[Sample], prompt_set: str, prompt: int) -> list[Array]:
    return [np.delete(cell.totals, prompt, 0) if cell.prompt_set == prompt_set else cell.totals for cell in cells]


def contrast(of: Number, weights: Sequence[float]) -> Statistic:
    """A weighted sum of the numbers of cells."""
    return lambda cells: float(sum(weight * of(cell.sum(0)) for weight, cell in zip(weights, cells, strict=True)))


def chosen_by_others(of: Number, cells: Sequence[Array], judged_by: Sequence[Array]) -> float:
    """The number of a cell made of prompts each of which comes from the cell that is best on all other prompts.

    The best of several cells is better on the prompts that chose it than on new ones; here no prompt has a say in its own
    choice, so that cells which are alike in truth show no gain.

    Args:    judged_by: the cells that decide which of `cells` is best, in the same order
    """
    best = np.argmax([of(totals.sum(0) - totals) for totals in judged_by], axis=0)
    return float(of(np.stack(cells)[best, np.arange(len(best))].sum(0)))
