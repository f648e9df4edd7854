"""Gamma and alpha of a cell over all records of it, the oldest first.

Two records are of the same cell if every field of `Cell`, the models' hashes and the machine (`COMPARABLE_KEYS`) are equal.
Other changes between them, of versions and settings, are shown beside the numbers. A history tests nothing: its rows are hours
or days apart, and no interval includes what the machine did in between.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, model_hashes, oldest_first, rows_of, scalar_text, split_identity
from bench.progress import with_bar
from bench.records.decoding import Scalar
from bench.records.environment import COMPARABLE_KEYS, LIBRARIES
from bench.records.files import Runs
from bench.records.runs import Cell, RunRecord
from bench.reporting import captions
from bench.reporting.captions import commit_text, listing
from bench.reporting.columns import ALPHA, AR_MS, GAMMA, SD_MS, VERDICT, Column
from bench.reporting.figures import canvas
from bench.reporting.table import MISSING, Facts, Table
from bench.reporting.tables import rows_table, valid_rows

LEGEND: Facts = {
    "formula": captions.FORMULA,
    "intervals": "95 % over prompts of one record; between records there is none",
    "+": "with uncommitted changes",
}
_CHANGES_COLUMNS = 36  # width of the last column in the terminal
_COLUMNS = (
    Column("date", "date, UTC", lambda row: row.run.created[:16].replace("T", " ")),
    Column("commit", "commit", lambda row: commit_text(row.run)),
    *(GAMMA, ALPHA, AR_MS, SD_MS, VERDICT),
)
History = tuple[Row, ...]  # of one cell on one machine, the oldest first


def histories(runs: Runs, *, wanted: Callable[[Cell], bool] = lambda cell: True) -> tuple[History, ...]:
    """Return a history for each cell; those of several records come first.

    Raises:  ValueError: no cell is wanted
    """
    found: dict[tuple[object, ...], list[Row]] = {}
    known: set[str] = set()
    for row in (row for one in with_bar(oldest_first(runs), "judging records") for row in rows_of(*one)):
        cell = row.record.cell
        known.add(cell.label)
        if wanted(cell):
            found.setdefault((cell, *model_hashes(cell, row.run).values(), _machine(row.run)), []).append(row)
    if not found:
        raise ValueError(f"expected a cell with these options, found {', '.join(sorted(known)) or 'none'}")
    return tuple(sorted(map(tuple, found.values()), key=_order))


def _machine(run: RunRecord) -> tuple[Scalar, ...]:
    """Return what must be equal for two runs to be of one machine. A missing key is a separate value."""
    return tuple(run.environment.get(key) for key in COMPARABLE_KEYS)


def _order(history: History) -> tuple[str | float, ...]:
    cell = history[0].record.cell
    order = (cell.suite, cell.backend, cell.rule, cell.num_draft_tokens, cell.draft, cell.temperature)
    return len(history) == 1, *order


# Tables
def tables(found: Sequence[History], *, narrow: bool = False) -> tuple[Table, ...]:
    """Return one table for each cell; narrow: for the terminal. The last one has the facts that all share."""
    *made, last = (_table(history, narrow=narrow) for history in found)
    return (*made, replace(last, facts=last.facts | LEGEND))


def _table(history: History, *, narrow: bool) -> Table:
    first = history[0]
    changed = {row.file: changes(before.run, row.run) for before, row in itertools.pairwise(history)}
    if narrow:
        changed = {file: textwrap.fill(text, _CHANGES_COLUMNS) for file, text in changed.items()}
    columns = (*_COLUMNS, Column("changed", "changed since\nthe row before", lambda row: changed.get(row.file, "")))
    facts = {
        "every row": listing(identity(first)),
        "machine": captions.machine_text(first.run.environment),
        "models": _models_text(first),
    }
    title = f"{captions.title(first.run)}: {first.record.cell.label}"
    return rows_table(title, history, columns, facts, {row.file: "" for row in history}, mark_best=False)


def changes(before: RunRecord, after: RunRecord) -> str:
    """Return the versions of libraries and the settings of the backend that changed."""
    old, new = (
        {**run.backend_settings, **{name: run.environment[name] for name in ("python", *LIBRARIES) if name in run.environment}}
        for run in (before, after)
    )
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {_value(name, old)} → {_value(name, new)}" for name in names)


def _value(name: str, values: Mapping[str, Scalar]) -> str:
    return scalar_text(name, values[name]) if name in values else MISSING


def _models_text(row: Row) -> str:
    return listing({f"{role}_hash": value for role, value in model_hashes(row.record.cell, row.run).items()})


# Figure
def images(found: Sequence[History], file_formats: Sequence[str]) -> tuple[bytes, ...]:
    """Return the figure of the cells with several records, in each format.

    Raises:  ValueError: no cell has several records
             BackendUnavailable: matplotlib is missing
    """
    return tuple(canvas.drawn(lambda: figure(found), file_format) for file_format in file_formats)


def figure(found: Sequence[History]) -> Any:
    """Draw gamma and alpha of every cell with several records: one pair of panels for each suite and machine."""
    from matplotlib.figure import Figure

    groups: dict[tuple[object, ...], list[History]] = {}
    for history in found:
        if len(history) > 1:
            run = history[0].run
            groups.setdefault((run.suite, _machine(run)), []).append(history)
    if not groups:
        raise ValueError("expected a cell with at least two records to draw, found none")
    heights = [3.6 + 0.17 * len(members) for members in groups.values()]  # inches
    drawn = Figure(figsize=(canvas.WIDTH, sum(heights)), layout="constrained")
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
    runs = {row.file: row.run for history in members for row in history}
    place = {file: number for number, (file, _) in enumerate(oldest_first(runs))}
    firsts = [history[0] for history in members]
    constant = captions.shared(firsts, ("backend", "pair", "draft", "rule", "num_draft_tokens"))
    labels = [captions.label(row, split_identity(firsts)[0]) for row in firsts]
    if len(set(labels)) < len(labels):  # some cells differ only in the hashes of their models
        labels = [f"{label}, {_models_text(row)}" for label, row in zip(labels, firsts, strict=True)]
    gamma_axes, alpha_axes = part.subplots(1, 2)
    for number, (history, label) in enumerate(zip(members, labels, strict=True)):
        shift = 0.3 * (number / (len(members) - 1) - 0.5) if len(members) > 1 else 0.0  # bars side by side
        panels = ((gamma_axes, valid_rows(history), metrics.gamma), (alpha_axes, history, metrics.counted_alpha))
        for axes, rows, metric in panels:
            points = [(place[row.file] + shift, interval) for row in rows if (interval := metric(row.record))]
            canvas.bars(axes, points, label=label, ms=4, lw=1.2, elinewidth=0.8, **canvas.look(number))
    gamma_axes.axhline(1, color="0.3", lw=0.8)
    alpha_axes.set_ylim(0, 1.02)
    ticks = [f"{runs[file].created[:10]}\n{commit_text(runs[file])}" for file in place]
    for axes, name in ((gamma_axes, "gamma"), (alpha_axes, "alpha")):
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_xticks(range(len(ticks)), ticks, rotation=45, ha="right", fontsize=7)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    part.suptitle(f"{captions.title(members[0][0].run)}\n{constant}", fontsize=8)
    part.legend(*gamma_axes.get_legend_handles_labels(), loc="outside lower left")
