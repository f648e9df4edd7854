"""Acceptance within texts whose temperature changes: does it follow the temperature of the moment?

A stretch is the new tokens from `start` up to but without `end`, the first having index 0. What a schedule does in a stretch
is held against the schedule of that temperature throughout, over the same stretch, because place in the text matters too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.analysis.rows import identity, scalar_text
from bench.analysis.stretches import alpha_against, counted_alpha, expected_alpha, stretches
from bench.records.decoding import schedule_text
from bench.records.environment import machine_slug
from bench.records.runs import Cell, CellRecord
from bench.reporting import tables
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Entry, Table

FACTS = {
    "schedule": "temperature@index of the first new token it holds for, of target and draft alike",
    "while hot, while cold": "tested positions of the tokens that have the hottest and the coldest temperature of these rows",
    "constant": "alpha counted of the schedule of that temperature throughout, over the same tokens of its texts",
    "/ constant": "ratio of these two: 1 where acceptance follows the temperature of the moment and nothing else",
    "intervals": "95 % over prompts",
}


def halves_table(rows: Sequence[tables.Row]) -> Table:
    """One row a schedule: alpha while hot and while cold, each beside the constant schedule's over the same tokens.

    Args:    rows: of one suite, at least one of which has a schedule
    """
    scheduled = [row for row in rows if row.record.cell.schedule]
    constants = {_constant(row.record.cell): row.record for row in scheduled if len(row.record.cell.schedule) == 1}
    temperatures = [temperature for row in scheduled for _, temperature in row.record.cell.schedule]
    extremes = {"hot": max(temperatures), "cold": min(temperatures)}
    columns = ("alpha while {}\ncounted", "alpha while {}\nexpected", "constant {},\nsame tokens", "/ constant\n{}")
    own = {"schedule", "temperature", "draft_temperature"}
    varying = [name for name in tables.split_identity(scheduled)[0] if name not in own]
    body = []
    for row in scheduled:
        texts = [schedule_text(row.record.cell.schedule)]
        texts += [scalar_text(name, identity(row).get(name)) for name in varying]
        for temperature in extremes.values():
            texts += _alphas(row.record, temperature, constants)
        body.append(tuple(map(Entry, texts)))
    run = scheduled[0].run
    return Table(
        f"{run.suite} on {machine_slug(run.environment)}: acceptance while hot and while cold",
        ("schedule", *varying, *(column.format(state) for state in extremes for column in columns)),
        tuple(body),
        (),
        dict(FACTS),
        {},
    )


def _alphas(record: CellRecord, temperature: float, constants: dict[Cell, CellRecord]) -> tuple[str, str, str, str]:
    """Counted, expected, the constant schedule's, and the ratio, where a schedule has this temperature."""
    stretch = next((each for each in stretches(record.cell) if each.temperature == temperature), None)
    if stretch is None:
        return (MISSING,) * 4
    alphas = (counted_alpha(record, stretch), expected_alpha(record, stretch))
    constant = constants.get(_constant(replace(record.cell, temperature=temperature)))
    if constant is not None and constant is not record:
        beside = (counted_alpha(constant, stretch), alpha_against(record, constant, stretch))
    else:
        beside = (None, None)
    counted, expected, constants_own, ratio = map(interval_text, (*alphas, *beside))
    return counted, expected, constants_own, ratio


def _constant(cell: Cell) -> Cell:
    """What the constant schedule of a cell's temperature has in common with it."""
    options = tuple(option for option in cell.options if option[0] != "schedule")
    return replace(cell, draft_temperature=cell.temperature, options=options)
