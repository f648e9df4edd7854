"""The table of suites that ran on several backends: how fast each is, and whether they accept alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.analysis import metrics
from bench.analysis.rows import Row, split_identity
from bench.records.runs import Cell, CellRecord
from bench.reporting.captions import FORMULA, listing, run_facts, title
from bench.reporting.columns import ALPHA, CERTIFICATE, GAMMA, VERDICT, Column, identity_columns, shown
from bench.reporting.numbers import interval_text, milliseconds_text, number_text
from bench.reporting.table import MISSING, Table
from bench.reporting.tables import rows_table
from bench.statistics.effects import is_same
from bench.statistics.intervals import Interval

ALPHA_MARGIN = 0.05  # alphas whose ratio lies within 1 / 1.05 .. 1.05 are the same: 2 points at an alpha of 0.4


def alpha_verdict(ratio: Interval) -> str:
    """Return what the ratio of two alphas shows. As with gamma, a sure difference within the margin is the same."""
    if ratio.adequate and is_same(ratio, ALPHA_MARGIN):
        return "same"
    return "differs" if ratio.adequate and not ratio.low <= 1 <= ratio.high else "undecided"


def beside_reference(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns of speed in tokens per second, and of each backend against the reference on the same prompts."""
    ours = (row.record for row in rows if row.record.cell.backend == "reference")
    # Of several, such as with and without a compiled forward, the one with default options counts.
    fewest_last = sorted(ours, key=lambda record: len(record.cell.options), reverse=True)
    reference = {_without_backend(record.cell): record for record in fewest_last}

    def relative(metric: Callable[[CellRecord, CellRecord], Interval | None]) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            other = reference.get(_without_backend(row.record.cell))
            if other is row.record:
                return "1"
            return interval_text(metric(row.record, other) if other else None)

        return text

    def agreement(row: Row) -> str:
        other = reference.get(_without_backend(row.record.cell))
        ratio = metrics.alpha_against(row.record, other) if other else None
        if ratio is None or other is row.record:
            return MISSING
        found, reason = alpha_verdict(ratio), row.run.backend_settings.get("gap_acceptance")
        return f"{found}: {reason}" if reason and found == "differs" else found

    ar_first, sd_first = (shown(milliseconds_text, metrics.first_token_seconds, arm) for arm in ("ar", "sd"))
    return (
        Column("ar_tokens_per_s", "AR\ntokens/s", shown(_speed_text, metrics.seconds_per_token, "ar")),
        Column("sd_tokens_per_s", "SD\ntokens/s", shown(_speed_text, metrics.seconds_per_token, "sd"), True, "SD\ntok/s"),
        Column("sd_over_reference", "SD tokens/s /\nreference's", relative(metrics.speed_against), True),
        GAMMA,
        Column("ar_first_token_ms", "first token\nAR ms", ar_first),
        Column("sd_first_token_ms", "first token\nSD ms", sd_first, True),
        Column("peak_mib", "peak\nMiB", shown(_mib_text, lambda record: record.peak_memory_bytes)),
        ALPHA,
        Column("alpha_over_reference", "alpha /\nreference's", relative(metrics.alpha_against)),
        Column("alpha_agrees", "alpha against\nthe reference", agreement),
        CERTIFICATE,
        VERDICT,
    )


def _speed_text(seconds: Interval | None) -> str:
    return number_text(1 / seconds.estimate if seconds else None, 1)


def _mib_text(peak: int | None) -> str:
    return MISSING if peak is None else f"{peak / 2**20:,.0f}"


def _without_backend(cell: Cell) -> Cell:
    return replace(cell, backend="", options=())


REFERENCE_FACTS = {
    "same": f"alpha is surely within {100 * ALPHA_MARGIN:g} % of the reference's (two one-sided tests at 5 %); differs: the "
    "interval of the ratio excludes 1; undecided: neither",
    "/ reference's": "of the same temperature, rule, draft length and prompts; 95 % over prompts. Backends ran one after "
    "the other, so a drift of the machine in between is in no interval",
    "peak": "resident memory of the process and its children; the harness and the target that scores outputs are included",
}


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return several backends on the same prompts, side by side."""
    facts, records = run_facts(rows)
    columns = (*identity_columns(rows), *beside_reference(rows))
    caption = {"formula": FORMULA, **REFERENCE_FACTS, "every cell": listing(split_identity(rows)[1]), **facts}
    return rows_table(f"{title(rows[0].run)}: side by side", rows, columns, caption, records)


def compares_backends(rows: Sequence[Row]) -> bool:
    return len({row.record.cell.backend for row in rows}) > 1
