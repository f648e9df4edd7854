"""The rows of tables and figures: the newest record of each cell, and what tells one from another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from bench.analysis import metrics
from bench.analysis.verdict import UNCERTIFIED, Verdict, verdict_of
from bench.records.decoding import Scalar
from bench.records.files import Runs
from bench.records.runs import Cell, CellRecord, RunRecord


def model_hashes(cell: Cell, run: RunRecord) -> dict[str, str | None]:
    """Of the target and of this cell's own draft: a run may have several."""
    hashes = run.model_hashes
    return {"target": hashes.get("target"), "draft": hashes.get(f"draft {cell.draft}", hashes.get("draft"))}


def may_be_claimed(row: Row) -> bool:
    """Whether it is valid, conclusive and not known to be lossy."""
    known = row.verdict.certificate in ("LOSSLESS", UNCERTIFIED)
    return row.verdict.valid and row.verdict.label != "INCONCLUSIVE" and known and not row.lossy


_HASH_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One cell, with the run it was measured in."""

    record: CellRecord
    run: RunRecord
    file: str
    verdict: Verdict

    @property
    def lossy(self) -> bool:
        """Whether the rule is lossy by design: its gamma is shown, marked, and never the best."""
        return self.verdict.certificate == "LOSSY-DECLARED"


def newest_rows(runs: Runs) -> tuple[Row, ...]:
    """The newest record of each cell, sorted, temperature fastest."""
    newest: dict[Cell, tuple[RunRecord, str, CellRecord]] = {}
    for file, run in sorted(runs.items(), key=lambda item: (item[1].created, item[0])):
        newest.update((record.cell, (run, file, record)) for record in run.cells)
    rows = [Row(record, run, file, verdict_of(record, run)) for run, file, record in newest.values()]
    names = sorted(
        split_identity(rows)[0], key=lambda name: name == "temperature"
    )  # stable: the others keep their order
    return tuple(sorted(rows, key=lambda row: [sort_key(identity(row).get(name)) for name in names]))


def row_groups(rows: Sequence[Row]) -> tuple[tuple[Row, ...], ...]:
    """Rows of the same models and the same amount of text, which belong in one table; the newest group first.

    An inflated target is the same model as the one that it was made from.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        cell, hashes = row.record.cell, row.run.model_hashes
        amount = (cell.num_prompts, cell.max_new_tokens, cell.repeats)
        target = hashes.get("uninflated target", hashes.get("target"))
        groups.setdefault((target, hashes.get("draft"), *amount), []).append(row)
    newest_first = sorted(groups.values(), key=lambda group: max(row.run.created for row in group), reverse=True)
    return tuple(map(tuple, newest_first))


def identity(row: Row) -> dict[str, Scalar]:
    """Everything that tells one row from another, by the name of its command-line option."""
    cell = row.record.cell
    return {
        **{field.name: getattr(cell, field.name) for field in fields(cell) if field.name not in ("suite", "options")},
        "target": row.run.model_pair.target,
        "times": metrics.times_measured(row.record),
        **dict(cell.options),
    }


def split_identity(
    rows: Sequence[Row], *, always: tuple[str, ...] = ("temperature",)
) -> tuple[tuple[str, ...], dict[str, Scalar]]:
    """Names whose values differ between rows, and some that are always among them; and the values of all others."""
    identities = [identity(row) for row in rows]
    if all(one["draft_temperature"] == one["temperature"] for one in identities):
        identities = [one | {"draft_temperature": "= temperature"} for one in identities]
    names = dict.fromkeys(name for one in identities for name in one)
    varying = [name for name in names if name in always or len({one.get(name) for one in identities}) > 1]
    return tuple(varying), {name: identities[0].get(name) for name in names if name not in varying}


def scalar_text(name: str, value: Scalar) -> str:
    """A value of a record in a table."""
    if value is None:
        return "constant" if name == "draft_length" else "none"  # only cells that adapt it say so
    if name.endswith("_hash"):
        return str(value)[:_HASH_DIGITS] or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def sort_key(value: Scalar) -> tuple[bool, float, str]:
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, 0.0, str(value)
