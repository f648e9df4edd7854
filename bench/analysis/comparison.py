"""Two sides of the same cells, BASE and HEAD: what got faster, what got slower, and what cannot be decided.

Cells match by their full identity, prompts by their index. Every effect is HEAD against BASE, with a prompt left out of both at
once. Effects are logarithms of ratios; alpha's is a difference. Holm's method corrects the tests for a difference over all
numbers of all cells. It corrects those for SAME, two one-sided tests within the margin, as a separate family. If HEAD lacks
what BASE has, the comparison fails.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from bench.analysis import metrics
from bench.analysis.quantities import ALPHA, LOG_GAMMA, Quantity, log_quotient, prompt_sums
from bench.analysis.rows import Row, model_hashes, oldest_first, rows_of, scalar_text
from bench.errors import IncomparableResults
from bench.records.decoding import Scalar
from bench.records.environment import COMPARABLE_KEYS, check_comparable
from bench.records.files import Runs
from bench.records.runs import Cell, CellRecord
from bench.statistics.effects import (
    LEVEL,
    MARGIN,
    Effect,
    contrast,
    holm,
    left_out,
    over_launches_and_prompts,
    paired_effect,
    prompt_weights,
)
from bench.statistics.intervals import MIN_CLUSTERS, Interval, Part

# BASE INVALID: BASE itself could not measure the cell, so nothing can be concluded and nothing was lost
Status = Literal["COMPARED", "MISSING", "INVALID", "BASE INVALID", "NEW"]
Verdict = Literal["FASTER", "SLOWER", "HIGHER", "LOWER", "SAME", "INCONCLUSIVE"]

ALPHA_MARGIN = 0.02  # alphas that differ by less are SAME: 2 points
POWER = 0.8  # probability with which the smallest effect of the column "sees" is seen
NO_REGRESSION, REGRESSION, UNDECIDED = 0, 1, 3  # exit statuses; bad input is 2, as everywhere
WORSE = frozenset({"SLOWER", "LOWER"})
FAILURES = frozenset({"MISSING", "INVALID"})
_MAX_NAMED = 4  # a cell that differs in more fields is not called near
_ONE_RUN = "one run of each side does not show how far separate runs drift apart; measure both in turns, by specheat across"


@dataclass(frozen=True, slots=True)
class Side:
    """BASE or HEAD."""

    label: str
    runs: Runs  # the newest record of each cell counts
    relaunched: tuple[Runs, ...] = ()  # the same cells of further launches, each in turns with the other side's


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a cell that is compared."""

    name: str
    unit: Literal["ms/token", "ratio", "points"]
    of_cell: Callable[[CellRecord], Interval | None]
    quantity: Quantity
    verdicts: tuple[Verdict, Verdict]  # if HEAD's is less, and if it is more
    drifts: bool  # with the machine, between separate runs


@dataclass(frozen=True, slots=True)
class Outcome:
    """One number of one cell. If it was not tested, `reason` says why, and there may be no `effect`."""

    number: Number
    effect: Effect | None
    verdict: Verdict
    minimum: float | None = None  # the effect, in the same unit, that the corrected test would have seen with POWER
    p_holm: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CellComparison:
    """One cell. If there are no outcomes, `reason` says why."""

    status: Status
    base: Row | None
    head: Row | None
    reason: str = ""
    outcomes: tuple[Outcome, ...] = ()
    relaunched: tuple[tuple[Row, Row], ...] = ()  # of BASE and HEAD

    @property
    def launches(self) -> tuple[tuple[Row, Row], ...]:
        """The rows of BASE and HEAD of each launch. Only a compared cell has them."""
        if self.base is None or self.head is None:
            raise ValueError(f"expected a cell of both sides, got {self.status}")
        return ((self.base, self.head), *self.relaunched)

    @property
    def row(self) -> Row:
        """The row of BASE, or of HEAD if BASE lacks the cell."""
        found = self.base or self.head
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class Comparison:
    base: Side
    head: Side
    margin: float
    interleaved: bool  # both sides were measured in turns, so that drifts of the machine cancel
    cells: tuple[CellComparison, ...]  # in the order of BASE; new ones last

    @property
    def num_tests(self) -> int:
        """The size of each of the two families of tests: the numbers that could be tested."""
        return sum(outcome.p_holm is not None for cell in self.cells for outcome in cell.outcomes)


def compare(
    base: Side, head: Side, *, margin: float = MARGIN, interleaved: bool = False, suite: str | None = None
) -> Comparison:
    """Compare HEAD with BASE, cell by cell.

    If sides were launched several times, intervals cover other launches: the same code on the same machine is a few percent
    faster or slower from launch to launch.

    Args:    margin: ratios of 1 / (1 + margin) .. 1 + margin are SAME; interleaved: the sides were measured in turns;
             suite: only its cells
    Raises:  ValueError: no such suite, or no cells
             IncomparableResults: unlike machines, no common cell, or none that BASE could measure
    """
    if not margin > 0:
        raise ValueError(f"expected a margin > 0, got {margin:g}")
    of_base, of_head = _newest(base, suite), _newest(head, suite)
    elsewhere = {identity: row for (identity, _), row in of_head.items()}
    for key, row in of_base.items():
        if key not in of_head and key[0] in elsewhere:  # HEAD has the cell, but only under other conditions
            check_comparable(row.run.environment, elsewhere[key[0]].run.environment)
    cells = [_matched(key, of_base, of_head) for key in of_base]
    for number, (base_runs, head_runs) in enumerate(zip(base.relaunched, head.relaunched, strict=True), start=2):
        again = _newest(Side(base.label, base_runs), suite), _newest(Side(head.label, head_runs), suite)
        cells = [_with_launch(cell, number, _matched(key, *again)) for cell, key in zip(cells, of_base, strict=True)]
    if not any(cell.status in ("COMPARED", "INVALID") for cell in cells):
        first = f"{cells[0].row.record.cell.label}: {cells[0].reason}"
        raise IncomparableResults(f"no cell of {base.label} can be compared with one of {head.label}; {first}")
    judged = _judged([cell for cell in cells if cell.status == "COMPARED"], margin=margin, interleaved=interleaved)
    found = [next(judged) if cell.status == "COMPARED" else cell for cell in cells]
    found += [CellComparison("NEW", None, row) for key, row in of_head.items() if key not in of_base]
    return Comparison(base, head, margin, interleaved, tuple(found))


def exit_status(comparison: Comparison, *, strict: bool) -> int:
    """Return 0: no regression; 1: a number got worse, or HEAD lacks a cell; 3, if strict: neither, but one is undecided."""
    verdicts = {outcome.verdict for cell in comparison.cells for outcome in cell.outcomes}
    statuses = {cell.status for cell in comparison.cells}
    if verdicts & WORSE or statuses & FAILURES:
        return REGRESSION
    return UNDECIDED if strict and ("INCONCLUSIVE" in verdicts or "BASE INVALID" in statuses) else NO_REGRESSION


# Cells
_Key = tuple[tuple[Cell, str | None, str | None], tuple[Scalar, ...]]  # a cell with the hashes of its models; the machine


def _newest(side: Side, suite: str | None) -> dict[_Key, Row]:
    """Return the newest row of each cell on each machine."""
    found: dict[_Key, Row] = {}
    for row in (row for one in oldest_first(side.runs) for row in rows_of(*one)):
        conditions = tuple(row.run.environment.get(key) for key in COMPARABLE_KEYS)
        target, draft = model_hashes(row.record.cell, row.run).values()
        found[(row.record.cell, target, draft), conditions] = row
    requested = {key: row for key, row in found.items() if suite in (None, row.record.cell.suite)}
    if not requested:
        suites = sorted({row.record.cell.suite for row in found.values()})
        wanted = f"cells of suite {suite}" if suite else "cells"
        raise ValueError(f"{side.label}: expected {wanted}, got {', '.join(suites) or 'none'}")
    return requested


def _matched(key: _Key, of_base: Mapping[_Key, Row], of_head: Mapping[_Key, Row]) -> CellComparison:
    base, head = of_base.get(key), of_head.get(key)
    if base is None:
        return CellComparison("BASE INVALID", None, head, "BASE has no such cell")
    if not base.verdict.valid:
        return CellComparison("BASE INVALID", base, head, f"BASE: {'; '.join(base.verdict.reasons)}")
    if head is None:
        return CellComparison("MISSING", base, None, f"HEAD has no such cell{_nearest(base, of_head.values())}")
    if not head.verdict.valid:
        return CellComparison("INVALID", base, head, f"HEAD: {'; '.join(head.verdict.reasons)}")
    return CellComparison("COMPARED", base, head)


def _with_launch(cell: CellComparison, number: int, again: CellComparison) -> CellComparison:
    """Return the cell with the rows of another launch, which must have the cell as well."""
    if cell.status != "COMPARED":
        return cell
    if again.status != "COMPARED":
        return replace(cell, status=again.status, reason=f"launch {number}: {again.reason}")
    return replace(cell, relaunched=(*cell.relaunched, *again.launches))


def _nearest(base: Row, candidates: Iterable[Row]) -> str:
    """Return how the nearest cell differs, if it is near: it may be the same cell under another name."""
    differing = min((_differing(base, row) for row in candidates), key=len, default=())
    return f"; the nearest differs in {', '.join(differing)}" if 0 < len(differing) <= _MAX_NAMED else ""


def _differing(base: Row, head: Row) -> tuple[str, ...]:
    one, other = _named(base), _named(head)
    texts = {name: [scalar_text(name, each[name]) for each in (one, other)] for name in one if one[name] != other[name]}
    return tuple(f"{name} ({' against '.join(both)})" for name, both in texts.items())


def _named(row: Row) -> dict[str, Any]:
    cell = row.record.cell
    hashes = {f"{role}_hash": value for role, value in model_hashes(cell, row.run).items()}
    return {each.name: getattr(cell, each.name) for each in fields(cell)} | hashes


# Numbers
def _seconds_of(arm: metrics.ArmName, own: slice) -> Number:
    """Return seconds per token of one arm as a number; `own` are its columns of gamma."""
    quantity = Quantity(
        lambda record: ((pair, sums[own]) for pair, sums in LOG_GAMMA.columns(record)), log_quotient, timed=True
    )
    of_cell = functools.partial(metrics.seconds_per_token, arm=arm)
    return Number(f"{arm.upper()} ms/token", "ms/token", of_cell, quantity, ("FASTER", "SLOWER"), True)


AR, SD = _seconds_of("ar", slice(0, 2)), _seconds_of("sd", slice(2, 4))
GAMMA = Number("gamma", "ratio", metrics.gamma, LOG_GAMMA, ("SLOWER", "FASTER"), False)
COUNTED_ALPHA = Number("alpha, counted", "points", metrics.counted_alpha, ALPHA, ("LOWER", "HIGHER"), False)
NUMBERS = (SD, AR, GAMMA, COUNTED_ALPHA)

Testable = tuple[Number, Effect | Outcome]  # an effect to test, or an outcome that needs no test


def _judged(cells: Sequence[CellComparison], *, margin: float, interleaved: bool) -> Iterator[CellComparison]:
    measured = [_measured(cell) for cell in cells]
    if not interleaved:
        measured = _with_drift(cells, measured)
    outcomes = iter(judge([one for of_cell in measured for one in of_cell], margin=margin))
    for cell, of_cell in zip(cells, measured, strict=True):
        yield replace(cell, outcomes=tuple(itertools.islice(outcomes, len(of_cell))))


def _measured(cell: CellComparison) -> list[Testable]:
    """Return each number that at least one of the sides has."""
    found: list[Testable] = []
    sides = list(zip(("BASE", "HEAD"), cell.launches[0], strict=True))
    for number in NUMBERS:
        lacking = [side for side, row in sides if number.of_cell(row.record) is None]
        if not lacking:
            found.append((number, _effect(number, cell.launches)))
        elif len(lacking) == 1:
            found.append((number, _undecided(number, f"{lacking[0]} has no {number.name}")))
    return found


def _effect(number: Number, launches: Sequence[tuple[Row, Row]]) -> Effect | Outcome:
    """Return the mean over launches. Its error covers other prompts and, with several launches, other launches."""
    times = [metrics.times_measured(row.record) for row in launches[0]]
    if number is not COUNTED_ALPHA and times[0] != times[1]:
        return _undecided(number, f"BASE has {times[0]} seconds, HEAD {times[1]}")
    effect = _difference(number, launches)
    if effect is None or effect.standard_error == math.inf:
        return _undecided(number, f"fewer than {MIN_CLUSTERS} prompts in common")
    if effect.testable:
        return effect
    if effect.estimate == effect.standard_error == 0:
        return Outcome(number, effect, "SAME", reason=f"{number.name} is the same on every prompt")
    return _undecided(number, "prompts show no spread to test against")


def _difference(number: Number, launches: Sequence[tuple[Row, Row]]) -> Effect | None:
    """Return HEAD less BASE, the mean over launches; None if they have no prompt in common."""
    cells = [(row, number.quantity) for launch in launches for row in launch]
    sums = prompt_sums(cells)
    if sums is None:
        return None
    head_less_base = contrast(number.quantity.of, (-1, 1))
    if len(launches) == 1 or len(sums[0].totals) < MIN_CLUSTERS:
        return paired_effect(head_less_base, sums[:2])
    of_launches = [left_out(head_less_base, sums[first : first + 2]) for first in range(0, len(sums), 2)]
    return over_launches_and_prompts(np.stack(of_launches), prompt_weights([each.totals for each in sums]))


def _undecided(number: Number, reason: str) -> Outcome:
    return Outcome(number, None, "INCONCLUSIVE", reason=reason)


def _with_drift(cells: Sequence[CellComparison], measured: Sequence[list[Testable]]) -> list[list[Testable]]:
    """Widen the effects on seconds by the drift of the machine, because separate runs do not share it.

    The AR arm does the same work in all cells of a backend and a target. On a steady machine its ratios would be equal.
    """
    log_shifts: dict[tuple[object, ...], dict[tuple[str, str], list[float]]] = {}  # by engine, then by files of both sides
    for cell, of_cell in zip(cells, measured, strict=True):
        base, head = cell.launches[0]
        of_runs = log_shifts.setdefault(_engine(cell), {})
        for number, effect in of_cell:
            if number is AR and isinstance(effect, Effect):
                of_runs.setdefault((base.file, head.file), []).append(effect.estimate)
    drifts = {engine: _drift(of_runs) for engine, of_runs in log_shifts.items()}
    return [
        [(number, _widened(number, effect, drifts[_engine(cell)])) for number, effect in of_cell]
        for cell, of_cell in zip(cells, measured, strict=True)
    ]


def _drift(log_shifts: Mapping[tuple[str, str], Sequence[float]]) -> Part | None:
    """Return how HEAD / BASE of the AR arm spreads over runs and over the cells of one run; None if a side has one run."""
    num_runs = min(len(set(files)) for files in zip(*log_shifts, strict=True)) if log_shifts else 0
    if num_runs < 2:
        return None
    runs = log_shifts.values()
    squares = sum(sum((shift - statistics.mean(run)) ** 2 for shift in run) for run in runs)
    within = math.sqrt(squares / max(1, sum(len(run) - 1 for run in runs)))
    return math.hypot(statistics.stdev([statistics.mean(run) for run in runs]), within), num_runs - 1.0


def _engine(cell: CellComparison) -> tuple[object, ...]:
    of_base = cell.row.record.cell
    return of_base.backend, of_base.dtype, cell.row.run.model_hashes.get("target")


def _widened(number: Number, effect: Effect | Outcome, drift: Part | None) -> Effect | Outcome:
    if isinstance(effect, Outcome) or not number.drifts:
        return effect
    if drift is None:
        return replace(_undecided(number, _ONE_RUN), effect=effect)
    return replace(effect, parts=(*effect.parts, drift))


# Verdicts
def judge(measured: Sequence[Testable], *, margin: float) -> Iterator[Outcome]:
    """Yield the verdict on each number. All tests for a difference are one family, and all tests for SAME another."""
    tested = {
        place: (effect, ALPHA_MARGIN if number.unit == "points" else math.log1p(margin))
        for place, (number, effect) in enumerate(measured)
        if isinstance(effect, Effect)
    }
    differ = dict(zip(tested, holm([effect.p_value(0.0) for effect, _ in tested.values()]), strict=True))
    same = dict(zip(tested, holm([effect.equivalence_p(margin) for effect, margin in tested.values()]), strict=True))
    for place, (number, effect) in enumerate(measured):
        if isinstance(effect, Outcome):
            yield effect
            continue
        verdict: Verdict = number.verdicts[effect.estimate > 0] if differ[place] <= LEVEL else "INCONCLUSIVE"
        if same[place] <= LEVEL:  # a difference within the margin does not matter, however sure it is
            verdict = "SAME"
        # The difference that is seen with POWER if it is the first of its family to be tested.
        minimum = effect.half_width(LEVEL / len(tested)) + effect.half_width(2 * (1 - POWER))
        yield Outcome(number, effect, verdict, minimum, differ[place])
