"""Tables of one number over two names of cell identity: `T x backend`, `T x num_draft_tokens`, `draft x T`.

Cells that a pair of values does not tell apart stand in tables of their own; nothing is averaged. A name that the row or the
column alone decides, such as the prompts of a prompt set, tells nothing apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, may_be_claimed, row_groups, scalar_text, sort_key, split_identity
from bench.records.decoding import Scalar
from bench.records.runs import CellRecord
from bench.reporting import captions
from bench.reporting.captions import listing, run_facts, title
from bench.reporting.columns import AFTER_END, ALPHA, GAMMA, MAIN, MECHANISM, SHORT_NAMES, Column, identity_column
from bench.reporting.suites.backends import REFERENCE_FACTS, beside_reference
from bench.reporting.table import MISSING, Entry, Table
from bench.reporting.tables import GAMMA_FACTS, MECHANISM_FACTS, record_column, table_body
from bench.statistics.intervals import RatioInterval


# By name
def identity_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """What cells may differ in, by name."""
    return tuple(dict.fromkeys(name for row in rows for name in identity(row)))


def columns_by_name(rows: Sequence[Row]) -> Mapping[str, Column]:
    """Every column that there is for these rows."""
    of_identity = {name: identity_column(name) for name in identity_names(rows)}
    return {
        **of_identity,
        **{column.name: column for column in (*MAIN, AFTER_END, *MECHANISM, *beside_reference(rows))},
    }


def full_name(name: str, known: Sequence[str], *, what: str) -> str:
    """A name as it is stored, T and k written out.

    Raises:  ValueError: it is none of those known
    """
    full = SHORT_NAMES.get(name, name)
    if full not in known:
        raise ValueError(f"expected {what} among {', '.join((*SHORT_NAMES, *known))}, got {name!r}")
    return full


def chosen_table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """The columns of these names alone, in this order.

    Raises:  ValueError: no such column
    """
    facts, records = run_facts(rows)
    known = {**columns_by_name(rows), "record": record_column(records)}
    columns = [known[full_name(name, tuple(known), what="a column")] for name in names]
    body, notes = table_body(rows, columns)
    shown = {column.name for column in columns}
    differing, constant = split_identity(rows, always=())
    hidden = [name for name in differing if name not in shown]
    beside = {column.name for column in beside_reference(rows)} - {column.name for column in MAIN}
    caption = {
        **GAMMA_FACTS,
        **(MECHANISM_FACTS if shown & {column.name for column in MECHANISM} else {}),
        **(REFERENCE_FACTS if shown & beside else {}),
        "differ between rows, not shown": ", ".join(hidden),
        "every cell": listing(constant),
        **facts,
    }
    return Table(title(rows[0].run), tuple(column.header for column in columns), body, notes, caption, records)


VALUES = (GAMMA.name, ALPHA.name)
_HIGHER_IS_BETTER: Mapping[str, Callable[[CellRecord], RatioInterval | None]] = {
    GAMMA.name: metrics.gamma,
    ALPHA.name: metrics.counted_alpha,
}
_ALPHA_FORMULA = "alpha = accepted / (accepted + rejections), of the draft tokens that were tested"

_Place = tuple[Scalar, Scalar]  # value down, value across


def pivot_tables(rows: Sequence[Row], *, down: str, across: str, values: Sequence[str] = VALUES) -> tuple[Table, ...]:
    """A table each of the `values`, which are names of columns, for every group of cells that belong in one table.

    Raises:  ValueError: no such name of cell identity, one twice, or no such column
    """
    known = identity_names(rows)
    down, across = (full_name(name, known, what="a name of cell identity") for name in (down, across))
    if down == across:
        raise ValueError(f"expected two different names of cell identity, got {down} twice")
    names = [full_name(name, tuple(columns_by_name(rows)), what="a column") for name in values]
    groups = [part for group in row_groups(rows) for part in _parts(group, (down, across))]
    return tuple(_pivot(group, down, across, name, apart) for group, apart in groups for name in names)


def _parts(group: Sequence[Row], pivot: tuple[str, str]) -> list[tuple[list[Row], str]]:
    """Rows that the two names tell apart, and in words what tells each part from the others."""
    others = [
        name
        for name in split_identity(group, always=())[0]
        if name not in pivot and not any(_decides(group, own, name) for own in pivot)
    ]
    parts: dict[str, list[Row]] = {}
    for row in group:
        values = identity(row)
        parts.setdefault(", ".join(f"{name} {scalar_text(name, values.get(name))}" for name in others), []).append(row)
    return [(rows, apart) for apart, rows in parts.items()]


def _decides(rows: Sequence[Row], name: str, other: str) -> bool:
    """Whether the rows of one value of a name have one value of another."""
    identities = [identity(row) for row in rows]
    pairs = {(one.get(name), one.get(other)) for one in identities}
    return len(pairs) == len({one.get(name) for one in identities})


def _pivot(rows: Sequence[Row], down: str, across: str, name: str, apart: str) -> Table:
    column = columns_by_name(rows)[name]
    at: dict[_Place, Row] = {(identity(row).get(down), identity(row).get(across)): row for row in rows}
    downs, acrosses = (sorted({place[axis] for place in at}, key=sort_key) for axis in (0, 1))
    notes: dict[str, int] = {}
    body = []
    for first in downs:
        line = [at.get((first, second)) for second in acrosses]
        best = _best([row for row in line if row is not None], name)
        entries = [Entry(scalar_text(down, first))]
        for row in line:
            if row is None:
                entries.append(Entry(""))
                continue
            reasons = captions.reasons_text(row)
            note = notes.setdefault(reasons, len(notes) + 1) if reasons else None
            entries.append(Entry(column.text(row) if row.verdict.valid else MISSING, bold=row is best, note=note))
        body.append(tuple(entries))
    facts, records = captions.run_facts(rows)
    differing, constant = split_identity(rows, always=())
    decided = [other for other in differing if other not in (down, across)]
    caption = {
        "formula": _ALPHA_FORMULA if name == ALPHA.name else captions.FORMULA,
        "intervals": "95 % over prompts",
        "best": f"highest of each {down} among cells with a conclusive verdict and no doubt about their certificate"
        if name in _HIGHER_IS_BETTER
        else "",
        "empty": "not measured" if len(at) < len(downs) * len(acrosses) else "",
        f"differ with {down} or {across}, not shown": ", ".join(decided),
        "every cell": captions.listing(constant),
        **facts,
    }
    headers = (down, *(f"{across}\n{scalar_text(across, second)}" for second in acrosses))
    title = f"{captions.title(rows[0].run)}: {name}, {down} x {across}{f', {apart}' if apart else ''}"
    return Table(title, headers, tuple(body), tuple(notes), caption, records)


def _best(line: Sequence[Row], name: str) -> Row | None:
    """Of those that may be claimed, where there is more than one."""
    metric = _HIGHER_IS_BETTER.get(name, lambda record: None)
    claims = [(found.estimate, row) for row in line if may_be_claimed(row) and (found := metric(row.record))]
    return max(claims, key=lambda claim: claim[0])[1] if len(claims) > 1 else None
