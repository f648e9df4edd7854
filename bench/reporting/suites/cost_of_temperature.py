"""The table of the suite `cost_of_temperature`: why speculative decoding is slower when hot.

Seconds per token = seconds per round / tokens per round, so the logarithms of the two parts add up to the slow-down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bench.analysis import metrics
from bench.analysis.metrics import ROUND_PHASES, round_costs
from bench.analysis.rows import Row, identity
from bench.reporting.columns import Column
from bench.reporting.table import Table
from bench.reporting.tables import row_table, valid_rows


def cost_table(rows: Sequence[Row]) -> Table:
    shown = [row for row in valid_rows(rows) if round_costs(row.record) is not None]
    coldest: dict[tuple[object, ...], Row] = {}
    for row in sorted(shown, key=lambda row: row.record.cell.temperature):
        coldest.setdefault(_without_temperature(row), row)  # the first one of each setting stays

    def percent(of_row: Callable[[Row], float]) -> Callable[[Row], str]:
        """Return 100 times the logarithm of a value over that of the coldest row, as text."""
        return lambda row: f"{100 * math.log(of_row(row) / of_row(coldest[_without_temperature(row)])):+.1f}"

    columns = (
        *(Column(name, f"{name}\nms/round", _phase_ms(name)) for name in ROUND_PHASES),
        Column("all", "all\nms/round", lambda row: f"{1000 * _round_seconds(row):.2f}"),
        Column("tokens", "tokens\n/ round", lambda row: f"{_round_tokens(row):.2f}"),
        Column("sd_ms", "SD\nms/token", lambda row: f"{1000 * _round_seconds(row) / _round_tokens(row):.2f}"),
        Column("slower", "slower than\ncoldest", percent(lambda row: _round_seconds(row) / _round_tokens(row))),
        Column("fewer", "of it: fewer\ntokens a round", percent(lambda row: 1 / _round_tokens(row))),
        Column("dearer", "of it:\ndearer rounds", percent(_round_seconds)),
    )
    facts = {
        "seconds": "of the replays, synchronised at every phase: a round costs more there than in the timed arm",
        "slower": "logarithm of seconds per token over those of the coldest row, in hundredths; the two parts add up to it",
    }
    return row_table(rows, "why it is slower", columns, facts, shown=shown)


def _without_temperature(row: Row) -> tuple[object, ...]:
    values = identity(row).items()
    return tuple((name, value) for name, value in values if name not in ("temperature", "draft_temperature"))


def _phase_ms(name: str) -> Callable[[Row], str]:
    return lambda row: f"{1000 * (round_costs(row.record) or {})[name]:.2f}"


def _round_seconds(row: Row) -> float:
    return sum((round_costs(row.record) or {}).values())


def _round_tokens(row: Row) -> float:
    efficiency = metrics.block_efficiency(row.record)
    return efficiency.estimate if efficiency else math.nan
