"""The rows of tables, figures and claims: cells with their verdicts, and what distinguishes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from bench.analysis import metrics
from bench.analysis.verdict import UNCERTIFIED, Verdict, verdicts_of
from bench.records.decoding import Scalar, schedule_text
from bench.records.files import Runs
from bench.records.runs import Cell, CellRecord, RunRecord


def model_hashes(cell: Cell, run: RunRecord) -> dict[str, str | None]:
    """Return the hashes of the target and of this cell's draft; a run may have several drafts."""
    hashes = run.model_hashes
    return {"target": hashes.get("target"), "draft": hashes.get(f"draft {cell.draft}", hashes.get("draft"))}


LOAD_SUITES = ("concurrency", "deployment")  # they decode at several loads
# Fields of a cell that `identity` omits (the pair's name contains the inflation) or treats apart.
_NOT_NAMED = ("suite", "inflation", "concurrency", "draft_length", "schedule", "options")


@dataclass(frozen=True, slots=True)
class Row:
    """One cell with its verdict, and the run in which it was measured."""

    record: CellRecord
    run: RunRecord
    file: str
    verdict: Verdict

    @property
    def lossy(self) -> bool:
        """Whether the rule is lossy by design. Its gamma is shown and marked, and is never the best."""
        return self.verdict.certificate == "LOSSY-DECLARED"


def may_be_claimed(row: Row) -> bool:
    """Return whether the gamma of a row is valid, conclusive (FASTER, SLOWER or SAME) and not known to be lossy."""
    conclusive = row.verdict.valid and row.verdict.label != "INCONCLUSIVE"
    return conclusive and row.verdict.certificate in ("LOSSLESS", UNCERTIFIED)


def oldest_first(runs: Runs) -> list[tuple[str, RunRecord]]:
    return sorted(runs.items(), key=lambda item: (item[1].created, item[0]))


def rows_of(file: str, run: RunRecord) -> Iterator[Row]:
    """Yield a row for each cell. This computes verdicts and certificates, so make rows once for a page and pass them on."""
    for record, verdict in zip(run.cells, verdicts_of(run, run.cells), strict=True):
        yield Row(record, run, file, verdict)


def all_rows(runs: Runs) -> tuple[Row, ...]:
    """Return every cell of every run, the oldest run first."""
    return tuple(row for one in oldest_first(runs) for row in rows_of(*one))


def newest_rows(runs: Runs) -> tuple[Row, ...]:
    """Return the newest record of each cell, sorted as `newest_of` does."""
    return newest_of(all_rows(runs))


def newest_of(every: Sequence[Row]) -> tuple[Row, ...]:
    """Return the last of these rows of each cell, sorted; the temperature changes fastest."""
    rows = tuple({row.record.cell: row for row in every}.values())
    names = sorted(split_identity(rows)[0], key=lambda name: name == "temperature")  # stable: others keep their order
    return tuple(sorted(rows, key=lambda row: [sort_key(identity(row).get(name)) for name in names]))


def row_groups(rows: Sequence[Row]) -> tuple[tuple[Row, ...], ...]:
    """Return rows of the same models and the same amount of text, which belong in one table; the newest group first."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        cell, hashes = row.record.cell, row.run.model_hashes
        amount = (cell.num_prompts, cell.max_new_tokens, cell.repeats)
        target = hashes.get("uninflated target", hashes.get("target"))  # an inflated target is the same model
        groups.setdefault((target, hashes.get("draft"), *amount), []).append(row)
    newest_first = sorted(groups.values(), key=lambda group: max(row.run.created for row in group), reverse=True)
    return tuple(map(tuple, newest_first))


def identity(row: Row) -> dict[str, Scalar]:
    """Return everything that distinguishes rows, by the name of its command-line option."""
    cell = row.record.cell
    # These three are named only if they are not the default; suites under load also name a load of 1.
    varied: dict[str, Scalar] = {}
    if cell.concurrency > 1 or cell.suite in LOAD_SUITES:
        varied["concurrency"] = cell.concurrency
    if cell.draft_length != "constant":
        varied["draft_length"] = cell.draft_length
    if cell.schedule:
        varied["schedule"] = schedule_text(cell.schedule)
    return {
        **{field.name: getattr(cell, field.name) for field in fields(cell) if field.name not in _NOT_NAMED},
        "target": row.run.model_pair.target,
        "times": metrics.times_measured(row.record),
        **dict(sorted({**varied, **dict(cell.options)}.items())),
    }


def split_identity(
    rows: Sequence[Row], *, always: Sequence[str] = ("temperature",)
) -> tuple[tuple[str, ...], dict[str, Scalar]]:
    """Return the names whose values differ between rows, with those of `always`, and the values of all others."""
    identities = [identity(row) for row in rows]
    if all(one["draft_temperature"] == one["temperature"] for one in identities):
        identities = [one | {"draft_temperature": "= temperature"} for one in identities]
    names = dict.fromkeys(name for one in identities for name in one)
    varying = [name for name in names if name in always or len({one.get(name) for one in identities}) > 1]
    return tuple(varying), {name: identities[0].get(name) for name in names if name not in varying}


def scalar_text(name: str, value: Scalar) -> str:
    """Return the text of a value in a table."""
    if value is None:
        return "constant" if name == "draft_length" else "none"  # only cells of an adaptive length have a value
    if name.endswith("_hash"):
        return str(value)[:8] or "none"  # enough digits to tell files apart
    return f"{value:g}" if isinstance(value, float) else str(value)


def sort_key(value: Scalar) -> tuple[bool, float, str]:
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, 0.0, str(value)
