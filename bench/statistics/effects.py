"""Effects: estimates whose errors can be tested, the jackknife that pairs cells by prompt, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.statistics.intervals import MIN_CLUSTERS, UNKNOWN, Array, Interval, Part, jackknife, t_half_width

LEVEL = 0.05  # largest chance of any false verdict in a family of claims
SMALLEST_P = 1e-12
MARGIN = 0.02  # ratios of 1 / (1 + MARGIN) .. 1 + MARGIN are the same


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

    def equivalence_p(self, margin: float) -> float:
        """Return the larger p of two one-sided tests that the effect lies within plus or minus the margin.

        It is at or below 0.05 exactly if the 90 % interval lies within the margin.

        Source:  Schuirmann 1987, A comparison of the two one-sided tests procedure
        """
        if abs(self.estimate) >= margin or math.isinf(self.standard_error):
            return 1.0
        return self.p_value(math.copysign(margin, self.estimate)) / 2  # two-sided p values, halved


def is_same(ratio: Interval, margin: float = MARGIN) -> bool:
    """Return whether a ratio of totals lies within 1 / (1 + margin) .. 1 + margin, tested at 5 %."""
    return Effect(math.log(ratio.estimate), ratio.parts).equivalence_p(math.log1p(margin)) <= LEVEL


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


@dataclass(frozen=True, slots=True)
class LargestEffect:
    """The largest of several effects, where the data choose which one is the largest.

    A jackknife does not estimate the error of such a choice. Instead all effects are tested at once. "Some effect is above the
    threshold" is tested by the smallest p value times the number of tests: Bonferroni's bound of the max-t test. "No effect is
    above it" is tested by the largest p value (an intersection-union test).

    Source:  Berger 1982, Multiparameter hypothesis testing and acceptance sampling
    """

    effects: tuple[Effect, ...]
    num_choices: int = 1  # how many such families the data chose from

    @property
    def estimate(self) -> float:
        return max(effect.estimate for effect in self.effects)

    @property
    def testable(self) -> bool:
        return all(effect.testable for effect in self.effects)

    @property
    def interval(self) -> Interval:
        """The interval at 95 %: some effect is above its low end, and none is above its high end."""
        above, below = 0.05 / (len(self.effects) * self.num_choices), 0.05 / self.num_choices
        low = max(effect.estimate - effect.half_width(above) for effect in self.effects)
        return Interval(self.estimate, low, max(effect.estimate + effect.half_width(below) for effect in self.effects))

    def p_value(self, threshold: float) -> float:
        """Return the two-sided p value if the largest effect were just the threshold."""
        p_values = [effect.p_value(threshold) for effect in self.effects if effect.estimate > threshold]
        if p_values:
            return min(1.0, min(p_values) * len(self.effects) * self.num_choices)
        return min(1.0, max(effect.p_value(threshold) for effect in self.effects) * self.num_choices)

    def equivalence_p(self, margin: float) -> float:
        """Return the larger p of two one-sided tests that the largest effect lies within plus or minus the margin."""
        if abs(self.estimate) >= margin:
            return 1.0
        return max(self.p_value(border) for border in (-margin, margin)) / 2  # two-sided p values, halved


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


def over_launches_and_prompts(of_launches: Array, weights: Array) -> Effect:
    """Return the mean over launches of the same prompts; its error covers other launches and other prompts.

    The spread over launches counts in full. The noise of a single output in a single launch is in it, and also in the spread
    over prompts. It is subtracted from the latter, but what all launches have in common on a prompt is not:

        noise[l, p] = value[l, p] - mean over launches[p] - mean over prompts[l] + mean of all

    Args:    of_launches: (L, 1 + P), L > 1: for each launch the value of all prompts, then without each prompt
             weights: (P,) as for `jackknife`
    Source:  two-way analysis of variance; Cameron, Gelbach and Miller 2011, Robust inference with multiway clustering
    """
    num_launches, left_out = len(of_launches), of_launches[:, 1:]
    num_prompts, mean = left_out.shape[1], of_launches.mean(0)
    noise = left_out - left_out.mean(0) - left_out.mean(1, keepdims=True) + left_out.mean()
    noise_variance = (num_prompts - 1) / num_prompts * float((noise**2).sum()) / (num_launches * (num_launches - 1))
    error, freedom = jackknife(mean[1:], weights)
    over_launches = math.sqrt(float(of_launches[:, 0].var(ddof=1)) / num_launches)
    rest = math.sqrt(max(0.0, error**2 - noise_variance))
    return Effect(float(mean[0]), ((rest, freedom), (over_launches, num_launches - 1.0)))


# Effects of cells
Number = Callable[[Array], Array]  # of sums (..., C)
Statistic = Callable[[Sequence[Array]], float]  # of the totals (P, C) of each cell


@dataclass(frozen=True, slots=True)
class PromptSums:
    """Sums over each prompt of one cell. Cells of one prompt set have the same prompts in the same order."""

    prompt_set: str
    totals: Array  # (P, C); the last column is the weight of a prompt
    batches: Array | None = None  # (B, C): the same summed over each batch, if the seconds are of texts decoded together


def paired_effect(statistic: Statistic, cells: Sequence[PromptSums]) -> Effect:
    """Return a statistic of several cells, with its jackknife error.

    A prompt is left out of all cells of its set at once, which keeps them paired. Sets of prompts are independent parts of
    the error. So are the batches of each cell: the texts of a batch share the noise of its machine.
    """
    parts = []
    totals = [cell.totals for cell in cells]
    with np.errstate(divide="ignore", invalid="ignore"):
        for prompt_set in dict.fromkeys(cell.prompt_set for cell in cells):
            own = [cell.totals for cell in cells if cell.prompt_set == prompt_set]
            if len(own[0]) < MIN_CLUSTERS:
                return Effect(float(statistic(totals)), (UNKNOWN,))
            parts.append(jackknife(left_out(statistic, cells, prompt_set)[1:], prompt_weights(own)))
        for place, cell in enumerate(cells):
            if cell.batches is not None:
                rest = [np.delete(cell.batches, batch, 0) for batch in range(len(cell.batches))]
                values = [statistic([*totals[:place], each, *totals[place + 1 :]]) for each in rest]
                parts.append(jackknife(np.array(values)))
        return Effect(float(statistic(totals)), tuple(parts))


def left_out(statistic: Statistic, cells: Sequence[PromptSums], prompt_set: str | None = None) -> Array:
    """Return (1 + P,): a statistic of cells, then the same without each prompt of a set; None: the set of the first cell."""
    prompt_set = cells[0].prompt_set if prompt_set is None else prompt_set
    num_prompts = next(len(cell.totals) for cell in cells if cell.prompt_set == prompt_set)
    rests = (_without(cells, prompt_set, prompt) for prompt in range(num_prompts))
    return np.array([statistic(totals) for totals in ([cell.totals for cell in cells], *rests)])


def prompt_weights(totals: Sequence[Array]) -> Array:
    """Return how much each prompt weighs: its shares of the last columns, summed over cells of one prompt set (P,)."""
    weights: Array = np.sum([each[:, -1] / each[:, -1].sum() for each in totals], axis=0)
    return weights


def _without(cells: Sequence[PromptSums], prompt_set: str, prompt: int) -> list[Array]:
    return [np.delete(cell.totals, prompt, 0) if cell.prompt_set == prompt_set else cell.totals for cell in cells]


def contrast(of: Number, weights: Sequence[float]) -> Statistic:
    """Return the statistic that is a weighted sum of the numbers of cells."""
    return lambda cells: float(sum(weight * of(cell.sum(0)) for weight, cell in zip(weights, cells, strict=True)))
