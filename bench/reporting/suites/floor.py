"""The table of the suite `floor`: how far each forward is above its linear layers alone, and each arm above its forwards."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis import metrics
from bench.analysis.rows import Row
from bench.reporting.columns import Column
from bench.reporting.numbers import number_text
from bench.reporting.table import Table
from bench.reporting.tables import row_table, valid_rows

FORWARDS: tuple[metrics.Forward, ...] = ("ar", "draft", "verify")


def floor_table(rows: Sequence[Row]) -> Table:
    facts = {
        "floor": "the linear layers of one forward alone, timed beside it: every weight is read once",
        "forward / floor": "median over the samples of a bare forward and its floor",
        "AR token / floor": "seconds per token of the timed AR arm, sampling and loop included",
        "gamma measured / predicted": "what is left of the gamma that bare forwards and block efficiency would give",
    }
    columns = (
        *(column for forward in FORWARDS for column in _of_forward(forward)),
        Column("ar_over_floor", "AR token\n/ floor", _ar_over_floor),
        Column("over_predicted", "gamma measured\n/ predicted", _over_predicted),
    )
    shown = [row for row in valid_rows(rows) if metrics.floor_seconds(row.record, "ar") is not None]
    return row_table(rows, "above the floor", columns, facts, shown=shown)


def _of_forward(forward: metrics.Forward) -> tuple[Column, Column]:
    def floor_ms(row: Row) -> str:
        seconds = metrics.floor_seconds(row.record, forward)
        return number_text(None if seconds is None else 1000 * seconds, 2)

    def over(row: Row) -> str:
        return number_text(metrics.over_floor(row.record, forward), 2)

    return (
        Column(f"{forward}_floor", f"{forward} floor\nms", floor_ms),
        Column(f"{forward}_over", f"{forward} forward\n/ floor", over),
    )


def _ar_over_floor(row: Row) -> str:
    arm, floor_s = metrics.seconds_per_token(row.record, "ar"), metrics.floor_seconds(row.record, "ar")
    return number_text(arm.estimate / floor_s if arm and floor_s else None, 2)


def _over_predicted(row: Row) -> str:
    measured, predicted = metrics.gamma(row.record), metrics.predicted_gamma(row.record)
    return number_text(measured.estimate / predicted if measured and predicted else None, 2)
