"""Tables that `specheat tables` prints on request: chosen columns, or one number over two names of cell identity.

A pivot is `T x backend`, `T x num_draft_tokens` or `draft x T`. Cells that a pair of values does not tell apart are in separate
tables; nothing is averaged. A name that the row or the column alone decides, such as the prompts of a prompt set, tells nothing
apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, row_groups, scalar_text, sort_key, split_identity
from bench.reporting.captions import FORMULA, ONE_LAUNCH, label, listing, run_facts, title
from bench.reporting.columns import AFTER_END, ALPHA, GAMMA, MAIN, MECHANISM, SHORT_NAMES, Column, identity_column
from bench.reporting.suites.backends import REFERENCE_FACTS, beside_reference
from bench.reporting.table import Notes, Table, table_of
from bench.reporting.tables import ALPHA_FACTS, GAMMA_FACTS, MECHANISM_FACTS, best_row, entry, record_column, rows_table

VALUES = (GAMMA.name, ALPHA.name)


# By name
def identity_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the names in which cells may differ."""
    return tuple(dict.fromkeys(name for row in rows for name in identity(row)))


def columns_by_name(rows: Sequence[Row]) -> dict[str, Column]:
    """Return every column that there is for these rows."""
    others = {column.name: column for column in (*MAIN, AFTER_END, *MECHANISM, *beside_reference(rows))}
    return {name: identity_column(name) for name in identity_names(rows)} | others


def full_name(name: str, known: Sequence[str], *, what: str) -> str:
    """Return a name as it is stored, with T and k written out.

    Raises:  ValueError: it is not among the known ones
    """
    full = SHORT_NAMES.get(name, name)
    if full not in known:
        raise ValueError(f"expected {what} among {', '.join((*SHORT_NAMES, *known))}, got {name!r}")
    return full


def chosen_table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """Return a table of the columns with these names, in this order.

    Raises:  ValueError: no such column
    """
    facts, records = run_facts(rows)
    known = columns_by_name(rows) | {"record": record_column(records)}
    columns = [known[full_name(name, tuple(known), what="a column")] for name in names]
    shown = {column.name for column in columns}
    differing, constant = split_identity(rows, always=())
    beside = {column.name for column in beside_reference(rows)} - {column.name for column in MAIN}
    caption = {
        **GAMMA_FACTS,
        **(MECHANISM_FACTS if shown & {column.name for column in MECHANISM} else {}),
        **(ALPHA_FACTS if shown & {"alpha_replayed", "alpha_expected"} else {}),
        **(REFERENCE_FACTS if shown & beside else {}),
        "differ between rows, not shown": ", ".join(name for name in differing if name not in shown),
        "every cell": listing(constant),
        **facts,
    }
    return rows_table(title(rows[0].run), rows, columns, caption, records)


# Pivots
def pivot_tables(rows: Sequence[Row], *, down: str, across: str, values: Sequence[str] = VALUES) -> tuple[Table, ...]:
    """Return a table of each of the `values`, which are names of columns, for every group of cells that belong together.

    Raises:  ValueError: no such name of cell identity, one twice, or no such column
    """
    known = identity_names(rows)
    down, across = (full_name(name, known, what="a name of cell identity") for name in (down, across))
    if down == across:
        raise ValueError(f"expected two different names of cell identity, got {down} twice")
    columns = columns_by_name(rows)
    names = [full_name(name, tuple(columns), what="a column") for name in values]
    groups = [part for group in row_groups(rows) for part in _parts(group, (down, across))]
    return tuple(_pivot(group, down, across, name, apart) for group, apart in groups for name in names)


def _parts(group: Sequence[Row], pivot: tuple[str, str]) -> list[tuple[list[Row], str]]:
    """Divide rows until the two names tell them apart, and return with each part what tells it from the others."""
    differing = split_identity(group, always=())[0]
    others = [name for name in differing if name not in pivot and not any(_decides(group, own, name) for own in pivot)]
    parts: dict[str, list[Row]] = {}
    for row in group:
        parts.setdefault(label(row, others), []).append(row)
    return [(rows, apart) for apart, rows in parts.items()]


def _decides(rows: Sequence[Row], name: str, other: str) -> bool:
    """Return whether rows with the same value of a name always have the same value of another."""
    pairs = {(values.get(name), values.get(other)) for values in map(identity, rows)}
    return len(pairs) == len({value for value, _ in pairs})


def _pivot(rows: Sequence[Row], down: str, across: str, name: str, apart: str) -> Table:
    column = replace(columns_by_name(rows)[name], speculative=True)  # INVALID rows show nothing
    metric = {GAMMA.name: metrics.gamma, ALPHA.name: metrics.counted_alpha}.get(name)  # of both, a higher one is better
    at = {(values.get(down), values.get(across)): row for row in rows for values in [identity(row)]}
    downs, acrosses = (sorted({place[axis] for place in at}, key=sort_key) for axis in (0, 1))
    notes = Notes()
    lines = []
    for first in downs:
        found = [at.get((first, second)) for second in acrosses]
        best = best_row([row for row in found if row is not None], metric, at_least=2) if metric else None
        entries = ("" if row is None else entry(row, column, notes, bold=row is best) for row in found)
        lines.append((scalar_text(down, first), *entries))
    facts, records = run_facts(rows)
    differing, constant = split_identity(rows, always=())
    of_alpha = "alpha = accepted / (accepted + rejections), of the draft tokens that were tested"
    highest = f"highest of each {down} among cells with a conclusive verdict and no doubt about their certificate"
    caption = {
        "formula": of_alpha if name == ALPHA.name else FORMULA,
        "intervals": ONE_LAUNCH,
        "best": highest if metric else "",
        "empty": "not measured" if len(at) < len(downs) * len(acrosses) else "",
        f"differ with {down} or {across}, not shown": ", ".join(o for o in differing if o not in (down, across)),
        "every cell": listing(constant),
        **facts,
    }
    headers = (down, *(f"{across}\n{scalar_text(across, second)}" for second in acrosses))
    heading = f"{title(rows[0].run)}: {name}, {down} x {across}{f', {apart}' if apart else ''}"
    return table_of(heading, headers, lines, caption, notes, records)
