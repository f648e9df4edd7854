"""Two sides of the same cells, BASE and HEAD: what got faster, what slower, and what cannot be told.

Cells match by their full identity, prompts by their index: every effect is HEAD against BASE with a prompt left out of both at
once. Effects are logarithms of ratios, alpha's is a difference. Holm's method corrects the tests for a difference over all
numbers of all cells, and those for SAME, two one-sided ones within the margin, as a family of their own. What BASE has and HEAD
lacks fails the comparison.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from bench.analysis import metrics
from bench.analysis.quantities import ALPHA, LOG_GAMMA, Columns, Quantity, compared
from bench.analysis.rows import Row, model_hashes, oldest_first, rows_of, scalar_text
from bench.errors import IncomparableResults
from bench.records.decoding import Scalar
from bench.records.environment import COMPARABLE_KEYS, check_comparable
from bench.records.files import Runs
from bench.records.runs import Cell, CellRecord
from bench.statistics.effects import LEVEL, Effect, contrast, holm
from bench.statistics.intervals import MIN_CLUSTERS, Array, Interval

# BASE INVALID: of a cell that BASE itself could not measure nothing can be said, and nothing was lost
Status = Literal["COMPARED", "MISSING", "INVALID", "BASE INVALID", "NEW"]
Verdict = Literal["FASTER", "SLOWER", "HIGHER", "LOWER", "SAME", "INCONCLUSIVE"]

ALPHA_MARGIN = 0.02  # within which alphas are SAME: 2 points
POWER = 0.8  # of the smallest effect that is said to be seen
NO_REGRESSION, REGRESSION, UNDECIDED = 0, 1, 3  # exit statuses; bad input is 2, as everywhere
WORSE = frozenset({"SLOWER", "LOWER"})
FAILURES = frozenset({"MISSING", "INVALID"})
_MAX_NAMED = 4  # fields in which a cell that is near differs


@dataclass(frozen=True, slots=True)
class Side:
    """What one of the two names stands for."""

    label: str
    runs: Runs  # of each cell the newest record counts
    relaunched: tuple[Runs, ...] = ()  # the same cells again, of further launches, each in turns with the other side's


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a cell that is compared."""

    name: str
    unit: Literal["ms/token", "ratio", "points"]
    of_cell: Callable[[CellRecord], Interval | None]
    quantity: Quantity
    verdicts: tuple[Verdict, Verdict]  # where HEAD's is less, and where it is more
    drifts: bool  # with the machine, in runs of their own


@dataclass(frozen=True, slots=True)
class Outcome:
    """One number of one cell. Where it was not tested `reason` says why, and there may be no `effect`."""

    number: Number
    effect: Effect | None
    verdict: Verdict
    minimum: float | None = (
        None  # effect that would have been seen with POWER, as the corrected test stands; like `effect`
    )
    p_holm: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CellComparison:
    """One cell. `reason` says why there are no outcomes."""

    status: Status
    base: Row | None
    head: Row | None
    reason: str = ""
    outcomes: tuple[Outcome, ...] = ()
    relaunched: tuple[tuple[Row, Row], ...] = ()  # of BASE and HEAD

    @property
    def row(self) -> Row:
        """Of BASE, where it has the cell."""
        found = self.base or self.head
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class Comparison:
    base: Side
    head: Side
    margin: float
    interleaved: bool  # both sides were measured in turns: what the machine does cancels
    cells: tuple[CellComparison, ...]  # in the order of BASE; new ones last

    @property
    def num_tests(self) -> int:
        """Numbers that could be tested: the size of each of the two families."""
        return sum(outcome.p_holm is not None for cell in self.cells for outcome in cell.outcomes)


def compare(
    base: Side, head: Side, *, margin: float = 0.02, interleaved: bool = False, suite: str | None = None
) -> Comparison:
    """HEAD against BASE, cell by cell.

    Args:    margin: ratios of 1 / (1 + margin) .. 1 + margin are SAME; interleaved: the sides were measured in turns;
             suite: only its cells. Where sides were launched several times, intervals cover other launches: the same
             code on the same machine is a few percent faster or slower from launch to launch
    Raises:  ValueError: no such suite, or no cells
             IncomparableResults: unlike machines, no common cell, or none that BASE could measure
    """
    if not margin > 0:
        raise ValueError(f"expected a margin > 0, got {margin:g}")
    of_base, of_head = _newest(base, suite), _newest(head, suite)
    _check_machines(of_base, of_head)
    cells = [_matched(key, row, of_head) for key, row in of_base.items()]
    for number, (base_runs, head_runs) in enumerate(zip(base.relaunched, head.relaunched, strict=True), start=2):
        again = _newest(Side(base.label, base_runs), suite), _newest(Side(head.label, head_runs), suite)
        cells = [_matched_again(cell, key, *again, number) for cell, key in zip(cells, of_base, strict=True)]
    if not any(cell.status in ("COMPARED", "INVALID") for cell in cells):
        raise IncomparableResults(_nothing_common(base, head, cells))
    judged = _judged([cell for cell in cells if cell.status == "COMPARED"], margin=margin, interleaved=interleaved)
    found = [next(judged) if cell.status == "COMPARED" else cell for cell in cells]
    found += [CellComparison("NEW", None, row) for key, row in of_head.items() if key not in of_base]
    return Comparison(base, head, margin, interleaved, tuple(found))


def exit_status(comparison: Comparison, *, strict: bool) -> int:
    """0: no regression; 1: a number got worse, or HEAD lacks a cell; 3, if strict: neither, but something is undecided."""
    cells = comparison.cells
    verdicts = {outcome.verdict for cell in cells for outcome in cell.outcomes}
    statuses = {cell.status for cell in cells}
    if verdicts & WORSE or statuses & FAILURES:
        return REGRESSION
    return UNDECIDED if strict and ("INCONCLUSIVE" in verdicts or "BASE INVALID" in statuses) else NO_REGRESSION


# Cells
_Identity = tuple[Cell, str | None, str | None]  # with the hashes of target and draft
_Key = tuple[_Identity, tuple[Scalar, ...]]  # with the machine


def _newest(side: Side, suite: str | None) -> dict[_Key, Row]:
    """The newest record of each cell on each machine."""
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


def _check_machines(of_base: Mapping[_Key, Row], of_head: Mapping[_Key, Row]) -> None:
    """Raises: IncomparableResults: a cell of BASE was measured on HEAD's side, but under other conditions."""
    elsewhere = {identity: row for (identity, _), row in of_head.items()}
    for key, row in of_base.items():
        if key not in of_head and key[0] in elsewhere:
            check_comparable(row.run.environment, elsewhere[key[0]].run.environment)


def _matched(key: _Key, base: Row, of_head: Mapping[_Key, Row]) -> CellComparison:
    head = of_head.get(key)
    if not base.verdict.valid:
        return CellComparison("BASE INVALID", base, head, f"BASE: {_reasons(base)}")
    if head is None:
        return CellComparison("MISSING", base, None, f"HEAD has no such cell{_nearest(base, of_head.values())}")
    if not head.verdict.valid:
        return CellComparison("INVALID", base, head, f"HEAD: {_reasons(head)}")
    return CellComparison("COMPARED", base, head)


def _matched_again(
    cell: CellComparison, key: _Key, of_base: Mapping[_Key, Row], of_head: Mapping[_Key, Row], number: int
) -> CellComparison:
    """With the rows of another launch, which must have the cell as well."""
    if cell.status != "COMPARED":
        return cell
    if key not in of_base:
        return replace(cell, status="BASE INVALID", reason=f"launch {number}: BASE has no such cell")
    found = _matched(key, of_base[key], of_head)
    if found.status != "COMPARED" or found.base is None or found.head is None:
        return replace(found, reason=f"launch {number}: {found.reason}")
    return replace(cell, relaunched=(*cell.relaunched, (found.base, found.head)))


def _reasons(row: Row) -> str:
    return "; ".join(row.verdict.reasons)


def _nearest(base: Row, candidates: Iterable[Row]) -> str:
    """In what the cell that is nearest differs, where it is near: what became of a cell that was renamed."""
    differing = min((_differing(base, row) for row in candidates), key=len, default=())
    return f"; the nearest differs in {', '.join(differing)}" if 0 < len(differing) <= _MAX_NAMED else ""


def _differing(base: Row, head: Row) -> tuple[str, ...]:
    one, other = _named(base), _named(head)
    return tuple(
        f"{name} ({scalar_text(name, one[name])} against {scalar_text(name, other[name])})"
        for name in one
        if one[name] != other[name]
    )


def _named(row: Row) -> dict[str, Any]:
    """The identity of a cell by name."""
    cell = row.record.cell
    hashes = {f"{role}_hash": value for role, value in model_hashes(cell, row.run).items()}
    return {each.name: getattr(cell, each.name) for each in fields(cell)} | hashes


def _nothing_common(base: Side, head: Side, cells: Sequence[CellComparison]) -> str:
    """Why there is nothing to compare, with the reason of the first cell."""
    first = f"{cells[0].row.record.cell.label}: {cells[0].reason}"
    return f"no cell of {base.label} can be compared with one of {head.label}; {first}"


# Numbers
def _of_arm(first: int) -> Columns:
    """Seconds and tokens of one arm: the columns of gamma from `first` on."""

    def columns(record: CellRecord) -> Iterator[tuple[int, Sequence[float]]]:
        return ((prompt, sums[first : first + 2]) for prompt, sums in LOG_GAMMA.columns(record))

    return columns


def _log_quotient(sums: Array) -> Array:
    found: Array = np.log(sums[..., 0] / sums[..., 1])
    return found


SD = Number(
    *("SD ms/token", "ms/token", lambda record: metrics.seconds_per_token(record, "sd")),
    *(Quantity(_of_arm(2), _log_quotient), ("FASTER", "SLOWER"), True),
)
AR = Number(
    *("AR ms/token", "ms/token", lambda record: metrics.seconds_per_token(record, "ar")),
    *(Quantity(_of_arm(0), _log_quotient), ("FASTER", "SLOWER"), True),
)
GAMMA = Number("gamma", "ratio", metrics.gamma, LOG_GAMMA, ("SLOWER", "FASTER"), False)
COUNTED_ALPHA = Number("alpha, counted", "points", metrics.counted_alpha, ALPHA, ("LOWER", "HIGHER"), False)
NUMBERS = (SD, AR, GAMMA, COUNTED_ALPHA)

_Measured = tuple[Number, Effect | Outcome]  # what is to be judged, or was without a test


def _judged(cells: Sequence[CellComparison], *, margin: float, interleaved: bool) -> Iterator[CellComparison]:
    """The same cells with their outcomes."""
    measured = [_measured(cell) for cell in cells]
    if not interleaved:
        measured = _with_drift(cells, measured)
    outcomes = iter(judge([one for of_cell in measured for one in of_cell], margin=margin))
    for cell, of_cell in zip(cells, measured, strict=True):
        yield replace(cell, outcomes=tuple(itertools.islice(outcomes, len(of_cell))))


def _measured(cell: CellComparison) -> list[_Measured]:
    """Each number that one of the sides has."""
    base, head = _rows(cell)
    found: list[_Measured] = []
    for number in NUMBERS:
        lacking = [side for side, row in (("BASE", base), ("HEAD", head)) if number.of_cell(row.record) is None]
        if not lacking:
            found.append((number, _effect(number, ((base, head), *cell.relaunched))))
        elif len(lacking) == 1:
            found.append((number, _undecided(number, f"{lacking[0]} has no {number.name}")))
    return found


def _effect(number: Number, launches: Sequence[tuple[Row, Row]]) -> Effect | Outcome:
    """Mean over launches, a prompt left out of all of them at once, and beside it how far launches are apart."""
    times = [metrics.times_measured(row.record) for row in launches[0]]
    if number is not COUNTED_ALPHA and times[0] != times[1]:
        return _undecided(number, f"BASE has {times[0]} seconds, HEAD {times[1]}")
    effect = _difference(number, launches)
    if effect is None or effect.standard_error == math.inf:
        return _undecided(number, f"fewer than {MIN_CLUSTERS} prompts in common")
    if len(launches) > 1:
        of_each = [one for launch in launches if (one := _difference(number, (launch,))) is not None]
        effect = clustered_twice(effect, of_each)
    if effect.testable:
        return effect
    if effect.estimate == effect.standard_error == 0:
        return Outcome(number, effect, "SAME", reason=f"{number.name} is the same on every prompt")
    return _undecided(number, "prompts show no spread to test against")


def clustered_twice(over_prompts: Effect, of_launches: Sequence[Effect]) -> Effect:
    """The mean over launches with an error that covers other prompts and other launches.

    What is left of a single text in a single launch is part of the spread over prompts and of that over launches. It is taken
    out of the former alone: a few launches may lie close together by chance, and their t must cover just that.

    Source:  Cameron, Gelbach and Miller 2011, Robust inference with multiway clustering
    """
    num = len(of_launches)
    between = statistics.stdev(one.estimate for one in of_launches) / math.sqrt(num)
    of_both = sum(one.standard_error**2 for one in of_launches) / num**2
    (error, freedom), *further = over_prompts.parts
    rest = math.sqrt(max(0.0, error**2 - of_both))
    return Effect(over_prompts.estimate, ((rest, freedom), *further, (between, num - 1.0)))


def _difference(number: Number, launches: Sequence[tuple[Row, Row]]) -> Effect | None:
    """HEAD less BASE over prompts; None where they share none."""
    columns, share = number.quantity.columns, 1 / len(launches)
    statistic = contrast(number.quantity.of, (-share, share) * len(launches))
    finding = compared(statistic, [(row, columns) for launch in launches for row in launch], "")
    return None if finding is None else finding.effect


def _undecided(number: Number, reason: str) -> Outcome:
    return Outcome(number, None, "INCONCLUSIVE", reason=reason)


@dataclass(slots=True)
class _Drift:
    """Of the machine between runs: how HEAD / BASE of the AR arm spreads over runs, and over the cells of one."""

    log_shifts: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # by the files of both sides

    def widened(self, effect: Effect) -> Effect | None:
        """None: one run of a side does not show how far its runs are apart."""
        num_runs = min(len(set(files)) for files in zip(*self.log_shifts, strict=True)) if self.log_shifts else 0
        if num_runs < 2:
            return None
        runs = self.log_shifts.values()
        squares = sum(sum((shift - statistics.mean(run)) ** 2 for shift in run) for run in runs)
        within = math.sqrt(squares / max(1, sum(len(run) - 1 for run in runs)))
        spread = math.hypot(statistics.stdev([statistics.mean(run) for run in runs]), within)
        return replace(effect, parts=(*effect.parts, (spread, num_runs - 1.0)))


def _with_drift(cells: Sequence[CellComparison], measured: Sequence[list[_Measured]]) -> list[list[_Measured]]:
    """With seconds widened by the drift of the machine, which runs of their own do not share.

    The AR arm does the same work in all cells of a backend and a target, so that its ratios would be equal on a steady machine.
    """
    drifts: dict[tuple[object, ...], _Drift] = {}
    for cell, of_cell in zip(cells, measured, strict=True):
        drift = drifts.setdefault(_engine(cell), _Drift())
        for number, effect in of_cell:
            if number is AR and isinstance(effect, Effect):
                base, head = _rows(cell)
                drift.log_shifts.setdefault((base.file, head.file), []).append(effect.estimate)
    return [
        [(number, _widened(number, effect, drifts[_engine(cell)])) for number, effect in of_cell]
        for cell, of_cell in zip(cells, measured, strict=True)
    ]


def _engine(cell: CellComparison) -> tuple[object, ...]:
    base, _ = _rows(cell)
    return base.record.cell.backend, base.record.cell.dtype, base.run.model_hashes.get("target")


def _widened(number: Number, effect: Effect | Outcome, drift: _Drift) -> Effect | Outcome:
    if isinstance(effect, Outcome) or not number.drifts:
        return effect
    return drift.widened(effect) or replace(_undecided(number, _ONE_RUN), effect=effect)


_ONE_RUN = (
    "one run a side does not show how far runs of their own drift apart; measure both in turns, by specheat across"
)


def _rows(cell: CellComparison) -> tuple[Row, Row]:
    if cell.base is None or cell.head is None:
        raise ValueError(f"expected a cell of both sides, got {cell.status}")
    return cell.base, cell.head


# Verdicts
def judge(measured: Sequence[_Measured], *, margin: float) -> Iterator[Outcome]:
    """The verdict on each number, all being one family of tests for a difference, and another one of tests for SAME."""
    tested = {
        place: (effect, ALPHA_MARGIN if number.unit == "points" else math.log1p(margin))
        for place, (number, effect) in enumerate(measured)
        if isinstance(effect, Effect)
    }
    differ = dict(zip(tested, holm([effect.p_value(0.0) for effect, _ in tested.values()]), strict=True))
    same = dict(zip(tested, holm([_equivalence_p(*one) for one in tested.values()]), strict=True))
    for place, (number, effect) in enumerate(measured):
        if isinstance(effect, Outcome):
            yield effect
        else:
            verdict = _verdict(number, effect, differ[place], same[place])
            yield Outcome(number, effect, verdict, _minimum(effect, len(tested)), differ[place])


def _verdict(number: Number, effect: Effect, p_differ: float, p_same: float) -> Verdict:
    """SAME comes first: a difference within the margin is none that matters, however sure it is."""
    if p_same <= LEVEL:
        return "SAME"
    return number.verdicts[effect.estimate > 0] if p_differ <= LEVEL else "INCONCLUSIVE"


def _equivalence_p(effect: Effect, margin: float) -> float:
    """Of the worse of two one-sided tests; 1 where the estimate is not within the margin.

    Source:  Schuirmann 1987, two one-sided tests
    """
    if abs(effect.estimate) >= margin:
        return 1.0
    return effect.p_value(math.copysign(margin, effect.estimate)) / 2


def _minimum(effect: Effect, num_tests: int) -> float:
    """The difference that is seen with POWER, were it the first of its family to be tested."""
    return effect.half_width(LEVEL / num_tests) + effect.half_width(2 * (1 - POWER))
