"""The table of the suite `dynamic_temperature`: does acceptance follow the temperature of the moment?

A stretch is the new tokens from `start` up to but without `end`, the first having index 0. A schedule in a stretch is compared
with the schedule of that temperature throughout, over the same stretch, because the place in the output matters too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, scalar_text, split_identity
from bench.analysis.stretches import alpha_against, counted_alpha, expected_alpha, stretches
from bench.records.decoding import schedule_text
from bench.records.runs import Cell, CellRecord
from bench.reporting.captions import ONE_LAUNCH, title
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Table, table_of

FACTS = {
    "schedule": "temperature@index of the first new token it holds for, of target and draft alike",
    "while hot, while cold": "tested positions of the tokens that have the hottest and the coldest temperature of these rows",
    "constant": "alpha counted of the schedule of that temperature throughout, over the same tokens",
    "/ constant": "ratio of these two: 1 where only the temperature of the moment decides acceptance",
    "intervals": f"{ONE_LAUNCH}; all numbers are over the pairs that were replayed, if any were",
}


def halves_table(rows: Sequence[Row]) -> Table:
    """Return one row per schedule: alpha while hot and while cold, each beside the constant schedule's over the same tokens.

    Args:    rows: of one suite, at least one of which has a schedule
    """
    scheduled = [replace(row, record=metrics.replayed(row.record)) for row in rows if row.record.cell.schedule]
    constants = {_constant(row.record.cell): row.record for row in scheduled if len(row.record.cell.schedule) == 1}
    temperatures = [temperature for row in scheduled for _, temperature in row.record.cell.schedule]
    extremes = {"hot": max(temperatures), "cold": min(temperatures)}
    columns = ("alpha while {}\ncounted", "alpha while {}\nexpected", "constant {},\nsame tokens", "/ constant\n{}")
    own = {"schedule", "temperature", "draft_temperature"}
    varying = [name for name in split_identity(scheduled)[0] if name not in own]
    lines = []
    for row in scheduled:
        of_row = (scalar_text(name, identity(row).get(name)) for name in varying)
        alphas = [text for at in extremes.values() for text in _alphas(row.record, at, constants)]
        lines.append((schedule_text(row.record.cell.schedule), *of_row, *alphas))
    headers = ("schedule", *varying, *(column.format(state) for state in extremes for column in columns))
    return table_of(f"{title(scheduled[0].run)}: acceptance while hot and while cold", headers, lines, FACTS)


def _alphas(record: CellRecord, temperature: float, constants: dict[Cell, CellRecord]) -> list[str]:
    """Return alpha counted, expected, the constant schedule's, and the ratio; dashes if the schedule lacks the temperature."""
    stretch = next((each for each in stretches(record.cell) if each.temperature == temperature), None)
    if stretch is None:
        return [MISSING] * 4
    found = [counted_alpha(record, stretch), expected_alpha(record, stretch)]
    constant = constants.get(_constant(replace(record.cell, temperature=temperature)))
    if constant is None or constant is record:
        found += [None, None]
    else:
        found += [counted_alpha(constant, stretch), alpha_against(record, constant, stretch)]
    return list(map(interval_text, found))


def _constant(cell: Cell) -> Cell:
    """Return what the constant schedule of a cell's temperature has in common with it."""
    return replace(cell, draft_temperature=cell.temperature, schedule=())
