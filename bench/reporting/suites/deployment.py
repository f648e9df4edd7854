"""TODO: purpose."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, scalar_text
from bench.records.runs import TimedArm
from bench.reporting import tables
from bench.reporting.captions import suite_title
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Entry, Table
from bench.reporting.tables import valid_rows

COST_SECONDS = ("text_by_target_s", "text_by_draft_s", "trained_s")  # of a draft's card


# Deployment
def payback_tokens(row: Row) -> float | None:
    """Generated tokens after which the seconds saved exceed what training the draft took; None where either is unknown.

    Infinite where speculation saves nothing. Whole calls count, prefill included.
    """
    card = row.run.drafts.get(row.record.cell.draft, {})
    cost_s = sum(float(card.get(name) or 0.0) for name in COST_SECONDS)
    seconds = [sum(getattr(pair, arm).seconds for pair in row.record.pairs) for arm in ("ar", "sd")]
    tokens = [sum(len(getattr(pair, arm).token_ids) for pair in row.record.pairs) for arm in ("ar", "sd")]
    if not cost_s or not all(tokens):
        return None
    saved_s = seconds[0] / tokens[0] - seconds[1] / tokens[1]
    return cost_s / saved_s if saved_s > 0 else math.inf


def deployment_table(rows: Sequence[Row]) -> Table:
    varying = tables.split_identity(rows)[0]
    body = []
    for row in valid_rows(rows):
        texts = [scalar_text(name, identity(row).get(name)) for name in varying]
        texts += [_first_token_ms(row, "ar"), _first_token_ms(row, "sd")]
        texts += [_end_to_end(row, "ar"), _end_to_end(row, "sd"), interval_text(metrics.gamma_e2e(row.record))]
        card = row.run.drafts.get(row.record.cell.draft, {})
        cost_s = sum(float(card.get(name) or 0.0) for name in COST_SECONDS)
        texts += [f"{cost_s:,.0f}" if cost_s else MISSING, _payback_text(payback_tokens(row))]
        body.append(tuple(map(Entry, texts)))
    headers = (
        *varying,
        *("first token\nAR ms", "first token\nSD ms", "AR tokens/s\nend to end", "SD tokens/s\nend to end"),
        *("gamma_e2e", "KD\nseconds", "tokens to\npay it back"),
    )
    facts = {
        "KD seconds": "sampling and training as the draft's own card says; the draft it was started from is not in it",
        "tokens to pay it back": "KD seconds / seconds saved per generated token, end to end",
    }
    return Table(f"{suite_title(rows)}: does it pay?", headers, tuple(body), (), facts, {})


def _first_token_ms(row: Row, arm: metrics.ArmName) -> str:
    seconds = metrics.first_token_seconds(row.record, arm)
    return MISSING if seconds is None else f"{1000 * seconds.estimate:.0f}"


def _end_to_end(row: Row, arm: str) -> str:
    arms: list[TimedArm] = [getattr(pair, arm) for pair in row.record.pairs]
    return f"{sum(len(one.token_ids) for one in arms) / sum(one.seconds for one in arms):.1f}"


def _payback_text(tokens: float | None) -> str:
    if tokens is None:
        return MISSING
    return "never" if math.isinf(tokens) else f"{tokens:,.0f}"
