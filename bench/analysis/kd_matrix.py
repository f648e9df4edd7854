"""TODO: purpose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from bench.records.kd_matrix import START, Matrix, MatrixCell, MeasuredDraft

CONFIDENCE = 0.95
ARMS_OF_ONE_TEMPERATURE = ("offline", "soft", "online")


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and half the width of its 95 % interval; no width from a single seed."""

    estimate: float
    half_width: float | None


Kind = tuple[str, float, float | None]  # arm, lambda, KD temperature
Row = list[Interval | None]  # one entry a decode temperature


def estimate(of_seeds: Sequence[MatrixCell], against: Sequence[MatrixCell] = ()) -> Interval:
    """Alpha, or how much higher it is than that of other drafts on the same texts, with other seeds and other prompts in mind.

    Both kinds of chance are added up as squares of half-widths: the spread between seeds, with t on seeds less one, and the
    jackknife over prompts of the seeds' mean, with t on prompts less one.

    Args:    against: one draft, or one of each seed in the same order
    """
    of_each, left_out = _ratios(of_seeds)
    if against:
        other, other_left_out = _ratios(against)
        of_each, left_out = of_each - other, left_out - other_left_out
    num_seeds, num_prompts = len(of_each), len(left_out)
    if num_seeds == 1:
        return Interval(float(of_each.mean()), None)
    by_prompt = math.sqrt((num_prompts - 1) / num_prompts * ((left_out - left_out.mean()) ** 2).sum())
    by_seed = math.sqrt(of_each.var(ddof=1) / num_seeds)
    half_width = math.hypot(_t(num_seeds - 1) * by_seed, _t(num_prompts - 1) * by_prompt)
    return Interval(float(of_each.mean()), half_width)


def _ratios(of_seeds: Sequence[MatrixCell]) -> tuple[np.ndarray, np.ndarray]:
    """accepted / tested of each seed; and the mean over seeds without each prompt."""
    accepted, tested = (np.array([getattr(cell, name) for cell in of_seeds], float) for name in ("accepted", "tested"))
    totals = accepted.sum(1, keepdims=True), tested.sum(1, keepdims=True)
    return (totals[0] / totals[1]).ravel(), ((totals[0] - accepted) / (totals[1] - tested)).mean(0)


def _t(freedom: int) -> float:
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def alphas(matrix: Matrix) -> dict[Kind, Row]:
    """Of each kind of draft; `matched` takes, for each decode temperature, the offline draft of that temperature."""
    kinds, columns = kinds_of(matrix), decode_temperatures(matrix)
    found: dict[Kind, Row] = {
        kind: [estimate([line.cells[place] for line in lines]) for place in range(len(columns))]
        for kind, lines in kinds.items()
    }
    return _with_matched(found, columns)


def changes(matrix: Matrix) -> dict[Kind, Row]:
    """Alpha of each kind less that of the start at the same decode temperature, along the same texts."""
    kinds, columns = kinds_of(matrix), decode_temperatures(matrix)
    (start,) = kinds.pop((START, 0.0, None))
    found: dict[Kind, Row] = {
        kind: [estimate([line.cells[place] for line in lines], [start.cells[place]]) for place in range(len(columns))]
        for kind, lines in kinds.items()
    }
    return _with_matched(found, columns)


def kinds_of(matrix: Matrix) -> dict[Kind, list[MeasuredDraft]]:
    kinds: dict[Kind, list[MeasuredDraft]] = {}
    for line in matrix.measured:
        kinds.setdefault((line.arm, line.on_policy, line.kd_temperature), []).append(line)
    return kinds


def _with_matched(found: dict[Kind, Row], columns: Sequence[float]) -> dict[Kind, Row]:
    rows = [found.get(("offline", 0.0, column)) for column in columns]
    matched: Row = [None if row is None else row[place] for place, row in enumerate(rows)]
    return found | {("matched", 0.0, None): matched} if any(matched) else found


def decode_temperatures(matrix: Matrix) -> list[float]:
    return [cell.temperature for cell in matrix.measured[0].cells]


def regrets(found: Mapping[Kind, Row]) -> dict[Kind, tuple[float, float]]:
    """For each kind measured everywhere, how much alpha it gives away against the best of a column: mean and largest."""
    best = [max(value.estimate for value in of_column if value) for of_column in zip(*found.values(), strict=True)]
    given_away = {
        kind: [at_best - value.estimate for at_best, value in zip(best, row, strict=True) if value]
        for kind, row in found.items()
    }
    return {
        kind: (sum(given) / len(given), max(given)) for kind, given in given_away.items() if len(given) == len(best)
    }


def is_sure(value: Interval) -> bool:
    return value.half_width is not None and abs(value.estimate) > value.half_width


def best_kd_temperatures(matrix: Matrix) -> dict[tuple[str, float], list[tuple[float, list[float]]]]:
    """For each arm and decode temperature: the KD T of the highest alpha, and the others that are not surely below it."""
    kinds = {kind: sorted(lines, key=lambda line: line.seed or 0) for kind, lines in kinds_of(matrix).items()}
    found: dict[tuple[str, float], list[tuple[float, list[float]]]] = {}
    for arm in dict.fromkeys(kind[:2] for kind in kinds if kind[0] in ARMS_OF_ONE_TEMPERATURE):
        of_arm = {at: lines for (name, share, at), lines in kinds.items() if (name, share) == arm and at is not None}
        found[arm] = []
        for place in range(len(decode_temperatures(matrix))):
            cells = {at: [line.cells[place] for line in lines] for at, lines in of_arm.items()}
            best = max(cells, key=lambda at: estimate(cells[at]).estimate)
            behind = {at: estimate(cells[at], cells[best]) for at in cells if len(cells[at]) == len(cells[best])}
            found[arm].append((best, [at for at, value in behind.items() if at != best and not is_sure(value)]))
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """How alpha_text of the start gets from the first decode T to another one."""

    temperature: float
    alpha_text: Interval
    rescaling: Interval  # the same contexts, another softmax
    context_shift: Interval  # then the contexts of that T


def split(matrix: Matrix) -> list[Step]:
    """Empty where the record has not what it takes. It is one of alpha_text: slots of rounds have no frozen contexts."""
    start = next(line for line in matrix.measured if line.arm == START)
    coldest = start.cells[0]
    if not coldest.rescaled:
        return []
    frozen = _left_out(coldest.overlap, coldest.tokens)
    steps = []
    for cell in start.cells:
        same_contexts, own = _left_out(cell.rescaled, coldest.tokens), _left_out(cell.overlap, cell.tokens)
        steps.append(Step(cell.temperature, *map(_over_prompts, (own, same_contexts - frozen, own - same_contexts))))
    return steps


def _left_out(above: Sequence[float], below: Sequence[float]) -> np.ndarray:
    """(1 + P,): the ratio of totals, then without each prompt."""
    totals = (np.sum(values) - np.append(0.0, values) for values in (above, below))
    numerators, denominators = totals
    return numerators / denominators


def _over_prompts(values: np.ndarray) -> Interval:
    """Estimate and jackknife, from an estimate and what it is without each prompt."""
    whole, left_out = float(values[0]), values[1:]
    spread = math.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum())
    return Interval(whole, _t(len(left_out) - 1) * spread)
