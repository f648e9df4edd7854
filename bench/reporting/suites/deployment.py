"""The table of the suite `deployment`: does a trained draft pay for its training?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.analysis import metrics
from bench.analysis.rows import Row
from bench.records.runs import TimedArm
from bench.reporting.columns import Column, shown
from bench.reporting.numbers import interval_text, number_text
from bench.reporting.table import MISSING, Table
from bench.reporting.tables import row_table, valid_rows
from bench.statistics.intervals import Interval

COST_SECONDS = ("text_by_target_s", "text_by_draft_s", "trained_s")  # of a draft's card


def payback_tokens(row: Row) -> float | None:
    """Return the generated tokens after which the seconds saved exceed the draft's training; None if either is unknown.

    Infinite where speculation saves nothing. Whole calls count, prefill included.
    """
    cost_s = _cost_s(row)
    ar, sd = (1 / speed if (speed := _tokens_per_s(row, arm)) else None for arm in ("ar", "sd"))
    if not cost_s or ar is None or sd is None:
        return None
    return cost_s / (ar - sd) if ar > sd else math.inf


def deployment_table(rows: Sequence[Row]) -> Table:
    facts = {
        "KD seconds": "sampling and training as the draft's own card states; the draft it started from is not in it",
        "tokens to pay it back": "KD seconds / seconds saved per generated token, end to end",
    }
    return row_table(rows, "does it pay?", _COLUMNS, facts, shown=valid_rows(rows))


def _whole_ms(seconds: Interval | None) -> str:
    return number_text(seconds.estimate if seconds else None, 0, scale=1000)


def _tokens_per_s(row: Row, arm: str) -> float:
    arms: list[TimedArm] = [getattr(pair, arm) for pair in row.record.pairs]
    return sum(len(one.token_ids) for one in arms) / sum(one.seconds for one in arms) if arms else 0.0


def _cost_s(row: Row) -> float:
    card = row.run.drafts.get(row.record.cell.draft, {})
    return sum(float(card.get(name) or 0.0) for name in COST_SECONDS)


def _payback(row: Row) -> str:
    tokens = payback_tokens(row)
    if tokens is None:
        return MISSING
    return "never" if math.isinf(tokens) else f"{tokens:,.0f}"


_COLUMNS = (
    Column("ar_first_token", "first token\nAR ms", shown(_whole_ms, metrics.first_token_seconds, "ar")),
    Column("sd_first_token", "first token\nSD ms", shown(_whole_ms, metrics.first_token_seconds, "sd")),
    Column("ar_end_to_end", "AR tokens/s\nend to end", lambda row: f"{_tokens_per_s(row, 'ar'):.1f}"),
    Column("sd_end_to_end", "SD tokens/s\nend to end", lambda row: f"{_tokens_per_s(row, 'sd'):.1f}"),
    Column("gamma_e2e", "gamma_e2e", shown(interval_text, metrics.gamma_e2e)),
    Column("kd_s", "KD\nseconds", lambda row: f"{cost_s:,.0f}" if (cost_s := _cost_s(row)) else MISSING),
    Column("payback", "tokens to\npay it back", _payback),
)
