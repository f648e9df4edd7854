"""The table of suites that ran on several backends: how fast each is, and whether they accept alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.analysis import metrics
from bench.analysis.rows import Row, split_identity
from bench.records.runs import Cell, CellRecord
from bench.reporting.captions import FORMULA, listing, run_facts, title
from bench.reporting.columns import (
    ALPHA,
    CERTIFICATE,
    GAMMA,
    VERDICT,
    Column,
    first_token,
    identity_columns,
    peak_memory,
    tokens_per_second,
)
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Table
from bench.reporting.tables import rows_table
from bench.statistics.intervals import Interval

_REFERENCE = "reference"  # the backend that others are held against


def beside_reference(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns of speed in tokens per second, and of each backend against the reference on the same prompts."""
    ours = (row.record for row in rows if row.record.cell.backend == _REFERENCE)
    # Of several, such as with and without a compiled forward, the one with default options counts.
    fewest_last = sorted(ours, key=lambda record: len(record.cell.options), reverse=True)
    reference = {_without_backend(record.cell): record for record in fewest_last}

    def against(metric: Callable[[CellRecord, CellRecord], Interval | None], row: Row) -> Interval | None:
        other = reference.get(_without_backend(row.record.cell))
        return None if other is None else metric(row.record, other)

    def relative(metric: Callable[[CellRecord, CellRecord], Interval | None]) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            is_reference = reference.get(_without_backend(row.record.cell)) is row.record
            return "1" if is_reference else interval_text(against(metric, row))

        return text

    def agreement(row: Row) -> str:
        ratio = against(metrics.alpha_against, row)
        if ratio is None or reference[_without_backend(row.record.cell)] is row.record:
            return MISSING
        if ratio.low <= 1 <= ratio.high:
            return "same"
        reason = row.run.backend_settings.get("gap_acceptance")
        return f"differs: {reason}" if reason else "differs"

    return (
        Column("ar_tokens_per_s", "AR\ntokens/s", tokens_per_second("ar"), narrow="AR\ntok/s"),
        Column("sd_tokens_per_s", "SD\ntokens/s", tokens_per_second("sd"), True, "SD\ntok/s"),
        Column("sd_over_reference", "SD tokens/s /\nreference's", relative(metrics.speed_against), True, "/ ref."),
        GAMMA,
        Column("ar_first_token_ms", "first token\nAR ms", first_token("ar")),
        Column("sd_first_token_ms", "first token\nSD ms", first_token("sd"), True, "first\nms"),
        Column("peak_mib", "peak\nMiB", peak_memory, narrow="peak\nMiB"),
        ALPHA,
        Column("alpha_over_reference", "alpha /\nreference's", relative(metrics.alpha_against)),
        Column("alpha_agrees", "alpha against\nthe reference", agreement),
        replace(CERTIFICATE, narrow="certificate"),
        VERDICT,
    )


def _without_backend(cell: Cell) -> Cell:
    return replace(cell, backend="", options=())


REFERENCE_FACTS = {
    "/ reference's": "of the same temperature, rule, draft length and prompts; 95 % over prompts. Backends ran one after "
    "the other, so a drift of the machine in between is in no interval",
    "peak": "resident memory of the process and its children; the harness and the target that scores outputs are included",
}


def comparison_table(rows: Sequence[Row], *, narrow: bool = False) -> Table:
    """Return several backends on the same prompts, side by side; narrow: for the terminal."""
    facts, records = run_facts(rows)
    columns = (*identity_columns(rows), *beside_reference(rows))
    caption = {"formula": FORMULA, **REFERENCE_FACTS, "every cell": listing(split_identity(rows)[1]), **facts}
    return rows_table(f"{title(rows[0].run)}: side by side", rows, columns, caption, records, narrow=narrow)


def compares_backends(rows: Sequence[Row]) -> bool:
    return len({row.record.cell.backend for row in rows}) > 1
