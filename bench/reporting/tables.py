"""Tables of rows: one line for each cell.

What is the same in every row goes to the caption. An INVALID row shows neither its gamma nor a number from which gamma could
be computed; a footnote gives the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.analysis import metrics
from bench.analysis.rows import Row, may_be_claimed, split_identity
from bench.records.runs import CellRecord
from bench.reporting.captions import FORMULA, ONE_LAUNCH, certificate_facts, crossings, listing, run_facts, title
from bench.reporting.columns import AFTER_END, GAMMA, MAIN, VERDICT, Column, identity_columns
from bench.reporting.table import MISSING, Entry, Facts, Notes, Table, table_of
from bench.statistics.intervals import Interval

GAMMA_FACTS = {
    "formula": FORMULA,
    "times": "decode seconds, after the first token; gamma_e2e includes prefill; end_to_end: the engine does not report the "
    "first token",
    "intervals": ONE_LAUNCH,
}
ALPHA_FACTS = {
    "alpha counted": "accepted / (accepted + rejections), over all pairs",
    "replays": "alpha counted, and alpha expected from both distributions, over the pairs that were replayed",
}
MECHANISM_FACTS = {
    "c": "seconds of one draft forward / seconds of one target forward, 1 token each",
    "gamma without luck": "the surplus of accepted draft tokens over expected ones taken out as a control variate, in the "
    "pairs that were replayed",
    "z of acceptance": "sum of accepted - expected in standard errors, over the tested positions",
    "shares": "of the seconds of the untimed replay",
}


def rows_table(
    title: str,
    rows: Sequence[Row],
    columns: Sequence[Column],
    facts: Facts,
    records: Facts | None = None,
    *,
    mark_best: bool = True,
) -> Table:
    """Return a table with one line for each row, the best gamma in bold."""
    notes = Notes()
    best = best_row(rows, metrics.gamma) if mark_best else None
    lines = []
    for row in rows:
        place = _place_of_note(row, columns)
        lines.append(
            [entry(row, column, notes, noted=column is place, bold=column is GAMMA and row is best) for column in columns]
        )
    headers = [column.header for column in columns]
    return table_of(title, headers, lines, facts, notes, records)


def entry(row: Row, column: Column, notes: Notes, *, noted: bool = True, bold: bool = False) -> Entry:
    """Return the entry of a row in a column: a dash where an INVALID row hides its number."""
    hidden = column.speculative and not row.verdict.valid
    note = notes.number("; ".join(row.verdict.reasons)) if noted else None
    return Entry(MISSING if hidden else column.text(row), bold=bold, note=note)


def _place_of_note(row: Row, columns: Sequence[Column]) -> Column | None:
    """Return the column with the footnote of a row: for an INVALID row its first dash, otherwise the verdict."""
    dashes = (GAMMA, *(column for column in columns if column.speculative))
    places = (VERDICT, *dashes) if row.verdict.valid else (*dashes, VERDICT)
    return next((column for column in places if column in columns), None)


def best_row(rows: Sequence[Row], metric: Callable[[CellRecord], Interval | None], *, at_least: int = 1) -> Row | None:
    """Return the row with the highest number among those that may be claimed; None if there are fewer than `at_least`."""
    claims = [(found.estimate, row) for row in rows if may_be_claimed(row) and (found := metric(row.record))]
    return max(claims, key=lambda claim: claim[0])[1] if len(claims) >= at_least else None


def valid_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows whose seconds may be printed."""
    return tuple(row for row in rows if row.verdict.valid)


def cell_table(rows: Sequence[Row]) -> Table:
    """Return the main table of a suite."""
    facts, records = run_facts(rows)
    columns = identity_columns(rows)
    if len(records) > 1:
        columns.append(record_column(records))
    columns += MAIN
    if any(row.record.cell.end_token == "ignored" for row in rows):
        columns.append(AFTER_END)
    caption = {
        **GAMMA_FACTS,
        **ALPHA_FACTS,
        **certificate_facts(rows),
        **crossings(rows),
        "every cell": listing(split_identity(rows)[1]),
        **facts,
    }
    return rows_table(title(rows[0].run), rows, columns, caption, records)


def record_column(records: Facts) -> Column:
    numbers = {file: f"R{number}" for number, file in enumerate(records, start=1)}
    return Column("record", "record", lambda row: numbers[row.file])


def row_table(
    rows: Sequence[Row], what: str, columns: Sequence[Column], facts: Facts, *, shown: Sequence[Row] | None = None
) -> Table:
    """Return a table of what rows differ in, then the columns; `what` ends the title, and only `shown` rows are printed."""
    columns = [*identity_columns(rows), *columns]
    return rows_table(f"{title(rows[0].run)}: {what}", rows if shown is None else shown, columns, facts)
