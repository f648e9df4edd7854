"""What a run can decide (`--plan`): the half-widths to expect, and the prompts that a smaller effect takes.

The spread over prompts comes from the newest record of the same models on this machine; `--pilot` makes one in a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tabulate import tabulate

from bench.analysis import metrics
from bench.analysis.quantities import EXPECTED_ALPHA, LOG_GAMMA, trend, weighted
from bench.analysis.rows import Row, rows_of
from bench.measurement.recording import Workload
from bench.records.runs import Cell, CellRecord, RunRecord
from bench.statistics.effects import Effect
from bench.statistics.intervals import MIN_CLUSTERS, t_half_width

WANTED = {"gamma": (0.05, 0.02), "points": (0.05, 0.02)}  # half-widths whose number of prompts is printed
MOST_PROMPTS = 100_000


@dataclass(frozen=True, slots=True)
class Contrast:
    """A number that a run will give, and how much one prompt changes it."""

    name: str
    unit: str  # gamma: a share of it; points: of alpha
    spread: float  # standard deviation of a prompt's contribution: the error over P prompts is spread / sqrt(P)

    def half_width(self, num_prompts: int) -> float:
        """Return the half-width to expect of a 95 % interval; infinite for a single prompt."""
        if num_prompts < 2:
            return math.inf
        return t_half_width([(self.spread / math.sqrt(num_prompts), num_prompts - 1.0)], 0.05)

    def prompts_for(self, half_width: float) -> int:
        """Return the fewest prompts, from those on with which intervals can be believed, that give this half-width."""
        low, high = MIN_CLUSTERS, MOST_PROMPTS
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.half_width(middle) <= half_width else (middle + 1, high)
        return low


def contrasts(rows: Sequence[Row], temperatures: Sequence[float]) -> Iterator[Contrast]:
    """Yield what a run at these temperatures will show, from measured cells of one series over T."""
    measured = {row.record.cell.temperature: row for row in rows}
    for temperature in temperatures:
        nearest = min(measured, key=lambda each: abs(each - temperature))
        found = weighted(LOG_GAMMA, [(1.0, measured[nearest])], "")
        if found is not None:
            yield _contrast(f"gamma at T = {temperature:g}", "gamma", found.effect, measured[nearest])
    ends = [measured[each] for each in (min(measured), max(measured))]
    if len(measured) > 1 and len(temperatures) > 1:
        if (slope := trend(LOG_GAMMA, list(measured.values()))) is not None:
            yield _contrast("trend of gamma for each 1.0 of T", "gamma", slope.effect, ends[0])
        cells = [(-1.0, ends[0]), (1.0, ends[1])]
        if (difference := weighted(EXPECTED_ALPHA, cells, "")) is not None:
            name = f"alpha at T = {max(measured):g} less at T = {min(measured):g}"
            yield _contrast(name, "points", difference.effect, ends[0])


def _contrast(name: str, unit: str, effect: object, row: Row) -> Contrast:
    assert isinstance(effect, Effect)
    num_prompts = len({pair.prompt_index for pair in row.record.pairs})
    return Contrast(name, unit, effect.standard_error * math.sqrt(num_prompts))


def table(found: Sequence[Contrast], num_prompts: int) -> str:
    """Return the half-widths to expect with so many prompts, and the prompts that others take."""
    wanted = WANTED["gamma"]
    headers = ("95 % half-width of", f"with {num_prompts} prompts", *(f"prompts for ± {100 * each:g}" for each in wanted))
    lines = [
        (
            each.name,
            f"± {100 * each.half_width(num_prompts):.1f} {'%' if each.unit == 'gamma' else 'points'}",
            *(each.prompts_for(half_width) for half_width in WANTED[each.unit]),
        )
        for each in found
    ]
    return tabulate(lines, headers, tablefmt="plain")


def describe(runs: Sequence[RunRecord], workload: Workload, temperatures: Sequence[float]) -> str:
    """Describe what a run at these temperatures can decide, or say how to find that out."""
    found = series_of(runs, workload)
    if found is None:
        return "what it can decide: no record of this pair on this machine; --plan --pilot measures for a minute, and tells"
    rows, run = found
    num_measured = max(row.record.cell.num_prompts for row in rows)
    source = f"spread between prompts from {num_measured} prompts of {run.suite}, measured here on {run.created[:10]}"
    return f"what it can decide ({source}):\n{table(list(contrasts(rows, temperatures)), len(workload.prompt_ids))}"


def series_of(runs: Sequence[RunRecord], workload: Workload) -> tuple[list[Row], RunRecord] | None:
    """Return the newest cells over T of these models, decoded alone by the reference, and their run; None if there are none."""
    for run in reversed(runs):
        if run.model_hashes != dict(workload.model_hashes):
            continue
        usable = [row for row in rows_of("", run) if _is_usable(row.record)]
        first = usable[0].record.cell if usable else None
        same = [
            row for row in usable if first is not None and _without_temperature(row.record.cell) == _without_temperature(first)
        ]
        if same:
            return same, run
    return None


def _is_usable(record: CellRecord) -> bool:
    ratio = metrics.gamma(record)
    return record.cell.concurrency == 1 and not record.cell.schedule and ratio is not None and ratio.adequate


def _without_temperature(cell: Cell) -> Cell:
    return replace(cell, temperature=0.0, draft_temperature=0.0)
