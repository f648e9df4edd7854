"""The table of the suite `floor`: how far each forward is above its linear layers alone, and each arm above its forwards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.analysis import metrics
from bench.analysis.rows import Row
from bench.records.runs import CellRecord
from bench.reporting.columns import Column, measured_over_predicted, shown
from bench.reporting.numbers import number_text
from bench.reporting.table import Table
from bench.reporting.tables import row_table, valid_rows

_two_decimals = partial(number_text, num_decimals=2)
_milliseconds = partial(number_text, num_decimals=2, scale=1000)


def floor_table(rows: Sequence[Row]) -> Table:
    facts = {
        "floor": "the linear layers of one forward alone, timed beside it: every weight is read once",
        "forward / floor": "median over the samples of a bare forward and its floor",
        "AR token / floor": "seconds per token of the timed AR arm, sampling and loop included",
        "gamma measured / predicted": "what is left of the gamma that bare forwards and block efficiency would give",
    }
    columns = []
    for forward in ("ar", "draft", "verify"):
        columns += [
            Column(f"{forward}_floor", f"{forward} floor\nms", shown(_milliseconds, metrics.floor_seconds, forward)),
            Column(f"{forward}_over", f"{forward} forward\n/ floor", shown(_two_decimals, metrics.over_floor, forward)),
        ]
    columns += [
        Column("ar_over_floor", "AR token\n/ floor", shown(_two_decimals, _ar_over_floor)),
        Column("over_predicted", "gamma measured\n/ predicted", shown(_two_decimals, measured_over_predicted)),
    ]
    with_floor = [row for row in valid_rows(rows) if metrics.floor_seconds(row.record, "ar") is not None]
    return row_table(rows, "above the floor", columns, facts, shown=with_floor)


def _ar_over_floor(record: CellRecord) -> float | None:
    arm, floor_s = metrics.seconds_per_token(record, "ar"), metrics.floor_seconds(record, "ar")
    return arm.estimate / floor_s if arm and floor_s else None
