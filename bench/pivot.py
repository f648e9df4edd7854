"""Tables of one number over two names of cell identity: `T x backend`, `T x num_draft_tokens`, `draft x T`.

Cells that a pair of values does not tell apart stand in tables of their own; nothing is averaged. A name that the row or the
column alone decides, such as the prompts of a prompt set, tells nothing apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench import metrics, tables
from bench.columns import ALPHA, GAMMA, columns_by_name, full_name, identity_names
from bench.records import CellRecord, Scalar
from bench.rendering import MISSING, Entry, Table
from bench.rows import Row, identity, row_groups, scalar_text, sort_key, split_identity
from bench.statistics import RatioInterval

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
            reasons = tables.reasons_text(row)
            note = notes.setdefault(reasons, len(notes) + 1) if reasons else None
            entries.append(Entry(column.text(row) if row.verdict.valid else MISSING, bold=row is best, note=note))
        body.append(tuple(entries))
    facts, records = tables.run_facts(rows)
    differing, constant = split_identity(rows, always=())
    decided = [other for other in differing if other not in (down, across)]
    caption = {
        "formula": _ALPHA_FORMULA if name == ALPHA.name else tables.FORMULA,
        "intervals": "95 % over prompts",
        "best": f"highest of each {down} among cells with a conclusive verdict and no doubt about their certificate"
        if name in _HIGHER_IS_BETTER
        else "",
        "empty": "not measured" if len(at) < len(downs) * len(acrosses) else "",
        f"differ with {down} or {across}, not shown": ", ".join(decided),
        "every cell": tables.listing(constant),
        **facts,
    }
    headers = (down, *(f"{across}\n{scalar_text(across, second)}" for second in acrosses))
    title = f"{tables.title(rows[0].run)}: {name}, {down} x {across}{f', {apart}' if apart else ''}"
    return Table(title, headers, tuple(body), tuple(notes), caption, records)


def _best(line: Sequence[Row], name: str) -> Row | None:
    """Of those that may be claimed, where there is more than one."""
    metric = _HIGHER_IS_BETTER.get(name, lambda record: None)
    claims = [(found.estimate, row) for row in line if tables.may_be_claimed(row) and (found := metric(row.record))]
    return max(claims, key=lambda claim: claim[0])[1] if len(claims) > 1 else None
