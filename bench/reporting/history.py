"""Gamma and alpha of a cell over all records of it, oldest first.

Two records are of the same cell where every field of `Cell`, the models' hashes and the machine (`COMPARABLE_KEYS`) are
equal. What else changed between them, versions and settings of the backend, stands beside the numbers. A history tests
nothing: rows are hours or days apart, and what the machine did in between is in no interval.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, model_hashes, oldest_first, rows_of, scalar_text, split_identity
from bench.progress import with_bar
from bench.records.decoding import Scalar
from bench.records.environment import COMPARABLE_KEYS, LIBRARIES
from bench.records.files import Runs
from bench.records.runs import Cell, RunRecord
from bench.reporting import captions
from bench.reporting.captions import commit_text
from bench.reporting.columns import ALPHA, GAMMA, MAIN, VERDICT, Column
from bench.reporting.figures.canvas import look, our_style, saved
from bench.reporting.formats import markdown, markdown_text, terminal
from bench.reporting.table import MISSING, Entry, Facts, Table
from bench.statistics.intervals import RatioInterval

LEGEND: Facts = {
    "formula": captions.FORMULA,
    "intervals": "95 % over prompts of one record; between records there is none",
    "+": "with uncommitted changes",
}
_TERMINAL_COLUMNS = 130
_CHANGES_COLUMNS = 36  # where the terminal breaks the last column
_MS = {column.name: column for column in MAIN}
_COLUMNS = (
    Column("date", "date, UTC", lambda row: row.run.created[:16].replace("T", " ")),
    Column("commit", "commit", lambda row: commit_text(row.run)),
    GAMMA,
    ALPHA,
    _MS["ar_ms"],
    _MS["sd_ms"],
    VERDICT,
)


@dataclass(frozen=True, slots=True)
class History:
    """One cell on one machine: what every record says of it, oldest first."""

    rows: tuple[Row, ...]

    @property
    def cell(self) -> Cell:
        return self.rows[0].record.cell

    @property
    def title(self) -> str:
        return f"{captions.title(self.rows[0].run)}: {self.cell.label}"


def histories(runs: Runs, *, wanted: Callable[[Cell], bool] = lambda cell: True) -> tuple[History, ...]:
    """A history a cell; those of several records first.

    Raises:  ValueError: no cell is wanted
    """
    found: dict[tuple[object, ...], list[Row]] = {}
    known: dict[str, None] = {}
    rows = (row for one in with_bar(oldest_first(runs), "judging records") for row in rows_of(*one))
    for row in rows:
        cell = row.record.cell
        known[cell.label] = None
        if wanted(cell):
            found.setdefault((cell, *model_hashes(cell, row.run).values(), _machine(row.run)), []).append(row)
    if not found:
        raise ValueError(f"expected a cell as asked for, found {', '.join(sorted(known)) or 'none'}")
    made = [History(tuple(of_cell)) for of_cell in found.values()]
    return tuple(sorted(made, key=lambda history: (len(history.rows) == 1, *_order(history.cell))))


def _machine(run: RunRecord) -> tuple[Scalar, ...]:
    """What must be equal of it; a missing key is a value of its own."""
    return tuple(run.environment.get(key) for key in COMPARABLE_KEYS)


def _order(cell: Cell) -> tuple[str | float, ...]:
    return cell.suite, cell.backend, cell.rule, cell.num_draft_tokens, cell.draft, cell.temperature


# Tables
def table(history: History, *, narrow: bool = False) -> Table:
    """A row a record. An INVALID one has neither a gamma nor what it could be computed from, and a footnote says why."""
    notes: dict[str, int] = {}
    body = []
    before: Row | None = None
    for row in history.rows:
        reasons = captions.reasons_text(row)
        noted = VERDICT if row.verdict.valid else GAMMA
        entries = []
        for column in _COLUMNS:
            hidden = column.speculative and not row.verdict.valid
            note = notes.setdefault(reasons, len(notes) + 1) if column is noted and reasons else None
            entries.append(Entry(MISSING if hidden else column.text(row), note=note))
        changed = changes(before.run, row.run) if before else ""
        entries.append(Entry(textwrap.fill(changed, _CHANGES_COLUMNS) if narrow else changed))
        body.append(tuple(entries))
        before = row
    headers = (*(column.header for column in _COLUMNS), "changed since\nthe row before")
    facts = {
        "every row": captions.listing(identity(history.rows[0])),
        "machine": captions.machine_text(history.rows[0].run.environment),
        "models": _models_text(history.rows[0]),
    }
    return Table(history.title, headers, tuple(body), tuple(notes), facts, {row.file: "" for row in history.rows})


def changes(before: RunRecord, after: RunRecord) -> str:
    """Versions of libraries and settings of the backend that are not what they were."""
    old, new = _versions_and_settings(before), _versions_and_settings(after)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {_value(name, old)} → {_value(name, new)}" for name in names)


def _versions_and_settings(run: RunRecord) -> dict[str, Scalar]:
    versions = {name: run.environment[name] for name in ("python", *LIBRARIES) if name in run.environment}
    return {**run.backend_settings, **versions}


def _value(name: str, values: Mapping[str, Scalar]) -> str:
    return scalar_text(name, values[name]) if name in values else MISSING


def _models_text(row: Row) -> str:
    hashes = model_hashes(row.record.cell, row.run)
    return captions.listing({f"{role}_hash": value for role, value in hashes.items()})


def terminal_page(found: Sequence[History]) -> str:
    """All tables for a terminal."""
    blocks = [f"{history.title}\n\n{terminal(table(history, narrow=True))}" for history in found]
    legend = [textwrap.fill(f"{name}: {text}", _TERMINAL_COLUMNS) for name, text in LEGEND.items()]
    return "\n\n".join([*blocks, "\n".join(legend)])


def markdown_page(found: Sequence[History], *, results: str) -> str:
    """All tables for GitHub, with the raw records of each.

    Args:    results: path to the folder of records from where the text will lie
    """
    blocks = [f"## {markdown_text(history.title)}\n\n{markdown(table(history), results)}" for history in found]
    legend = [f"- **{name}**: {markdown_text(text)}" for name, text in LEGEND.items()]
    return "\n\n".join([*blocks, "\n".join(legend)])


# Figure
def images(found: Sequence[History], file_formats: Sequence[str]) -> tuple[bytes, ...]:
    """Gamma and alpha of every cell with several records, a pair of panels for each suite and machine.

    Raises:  ValueError: no cell has several; BackendUnavailable: matplotlib is missing
    """
    with our_style():
        drawn = figure(found)
        return tuple(saved(drawn, file_format) for file_format in file_formats)


def figure(found: Sequence[History]) -> Any:
    """The matplotlib figure of `images`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups: dict[tuple[object, ...], list[History]] = {}
    for history in found:
        if len(history.rows) > 1:
            first = history.rows[0].run
            groups.setdefault((first.suite, _machine(first)), []).append(history)
    if not groups:
        raise ValueError("expected a cell with at least two records to draw, found none")
    heights = [3.6 + 0.17 * len(members) for members in groups.values()]  # inches
    drawn = Figure(figsize=(7.2, sum(heights)), layout="constrained")
    FigureCanvasAgg(drawn)
    parts = drawn.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, members in zip(parts, groups.values(), strict=True):
        _draw(part, members)
    drawn.supxlabel(
        "gamma: autoregressive / speculative seconds per token; alpha: counted. 95 % intervals over prompts of one record,\n"
        "none between records. INVALID gammas are left out. +: uncommitted changes.",
        fontsize=7,
    )
    return drawn


def _draw(part: Any, members: Sequence[History]) -> None:
    runs = {row.file: row.run for history in members for row in history.rows}
    files = sorted(runs, key=lambda file: (runs[file].created, file))
    constant, labels = _told_apart([history.rows[0] for history in members])
    gamma_axes, alpha_axes = part.subplots(1, 2)
    for number, (history, label) in enumerate(zip(members, labels, strict=True)):
        shift = 0.3 * (number / (len(members) - 1) - 0.5) if len(members) > 1 else 0.0  # bars side by side
        valid = [row for row in history.rows if row.verdict.valid]
        for axes, rows, metric in (
            (gamma_axes, valid, metrics.gamma),
            (alpha_axes, history.rows, metrics.counted_alpha),
        ):
            points = [(files.index(row.file) + shift, found) for row in rows if (found := metric(row.record))]
            _bars(axes, points, label, **look(number))
    gamma_axes.axhline(1, color="0.3", lw=0.8)
    alpha_axes.set_ylim(0, 1.02)
    ticks = [f"{runs[file].created[:10]}\n{commit_text(runs[file])}" for file in files]
    for axes, name in ((gamma_axes, "gamma"), (alpha_axes, "alpha")):
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_xticks(range(len(files)), ticks, rotation=45, ha="right", fontsize=7)
        axes.set_xlim(-0.5, len(files) - 0.5)
    part.suptitle(f"{captions.title(members[0].rows[0].run)}\n{constant}", fontsize=8)
    part.legend(*gamma_axes.get_legend_handles_labels(), loc="outside lower left")


def _bars(axes: Any, points: Sequence[tuple[float, RatioInterval]], label: str, **style: str) -> None:
    # With one prompt an interval reaches infinity; there is nothing to draw then.
    known = [(x, found, math.isfinite(found.high)) for x, found in points]
    below = [found.estimate - found.low if finite else math.nan for _, found, finite in known]
    above = [found.high - found.estimate if finite else math.nan for _, found, finite in known]
    x, y = [place for place, _, _ in known], [found.estimate for _, found, _ in known]
    axes.errorbar(x, y, yerr=(below, above), label=label, ms=4, lw=1.2, elinewidth=0.8, **style)


def _told_apart(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """What the cells of one panel have in common, and the label of each."""
    varying, constant = split_identity(rows)
    shown = ("backend", "pair", "draft", "rule", "num_draft_tokens")
    common = captions.listing({name: constant[name] for name in shown if name in constant})
    labels = [captions.listing({name: identity(row).get(name) for name in varying}) for row in rows]
    if len(set(labels)) < len(labels):
        labels = [f"{label}, {_models_text(row)}" for label, row in zip(labels, rows, strict=True)]
    return common, labels
