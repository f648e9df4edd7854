"""Tables of records: one row a cell, built once, of plain text, and then rendered (`bench.reporting.formats`).

What is equal in every row goes to the caption. A gamma that is INVALID is nowhere, nor anything it could be computed from; its
reason is a footnote.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis import metrics
from bench.analysis.rows import Row, may_be_claimed, split_identity
from bench.reporting.captions import FORMULA, crossings, listing, reasons_text, run_facts, title
from bench.reporting.columns import AFTER_END, GAMMA, MAIN, MECHANISM, VERDICT, Column, identity_column
from bench.reporting.table import MISSING, Entry, Facts, Table


def valid_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Those whose seconds may be printed."""
    return tuple(row for row in rows if row.verdict.valid)


GAMMA_FACTS = {
    "formula": FORMULA,
    "times": "decode seconds, after the first token; gamma_e2e with prefill; end_to_end where an engine cannot tell",
    "intervals": "95 % over prompts",
}
MECHANISM_FACTS = {
    "c": "seconds of one draft forward / seconds of one target forward, 1 token each",
    "z of acceptance": "sum of accepted - expected in standard errors, over the tested positions",
    "shares": "of the seconds of the untimed replay",
}


def cell_table(rows: Sequence[Row]) -> Table:
    """The main table of a suite."""
    varying, constant = split_identity(rows)
    facts, records = run_facts(rows)
    columns = [identity_column(name) for name in varying]
    if len(records) > 1:
        columns.append(record_column(records))
    columns += MAIN
    if any(row.record.cell.end_token == "ignored" for row in rows):
        columns.append(AFTER_END)
    body, notes = table_body(rows, columns)
    caption = {**GAMMA_FACTS, **crossings(rows), "every cell": listing(constant), **facts}
    return Table(title(rows[0].run), tuple(column.header for column in columns), body, notes, caption, records)


def record_column(records: Facts) -> Column:
    numbers = {file: f"R{number}" for number, file in enumerate(records, start=1)}
    return Column("record", "record", lambda row: numbers[row.file], narrow="record")


def mechanism_table(rows: Sequence[Row]) -> Table:
    """Why gamma is what it is: cost ratio, other predictions, and where the seconds of the replay went."""
    return row_table(rows, "mechanism", MECHANISM, MECHANISM_FACTS)


def row_table(
    rows: Sequence[Row], what: str, columns: Sequence[Column], facts: Facts, *, shown: Sequence[Row] | None = None
) -> Table:
    """Return a table with the names that rows differ in, then the columns.

    Args:    what: follows suite and machine in the title; shown: the rows that are printed, if not all
    """
    columns = [*map(identity_column, split_identity(rows)[0]), *columns]
    body, notes = table_body(rows if shown is None else shown, columns)
    return Table(f"{title(rows[0].run)}: {what}", tuple(column.header for column in columns), body, notes, facts, {})


def table_body(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[tuple[tuple[Entry, ...], ...], tuple[str, ...]]:
    """Entries and footnotes."""
    notes: dict[str, int] = {}
    best = _best(rows)
    body = []
    for row in rows:
        noted = _noted(row, columns)
        reasons = reasons_text(row)
        entries = []
        for column in columns:
            hidden = column.speculative and not row.verdict.valid
            note = notes.setdefault(reasons, len(notes) + 1) if column is noted and reasons else None
            text = MISSING if hidden else column.text(row)
            entries.append(Entry(text, bold=column is GAMMA and row is best, note=note))
        body.append(tuple(entries))
    return tuple(body), tuple(notes)


def _noted(row: Row, columns: Sequence[Column]) -> Column | None:
    """Where the reasons of a row stand: those of an INVALID gamma at its dash, others at the verdict."""
    dashes = (GAMMA, *(column for column in columns if column.speculative))
    wanted = (VERDICT, *dashes) if row.verdict.valid else (*dashes, VERDICT)
    return next((column for column in wanted if column in columns), None)


def _best(rows: Sequence[Row]) -> Row | None:
    """The row of the highest gamma that may be claimed."""
    claims = [
        (ratio.estimate, row)
        for row in rows
        if may_be_claimed(row) and (ratio := metrics.gamma(row.record)) is not None
    ]
    return max(claims, key=lambda claim: claim[0])[1] if claims else None
