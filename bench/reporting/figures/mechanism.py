"""Figures that explain gamma: where the seconds of a round go, and gamma as bare forwards predict it."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.analysis import metrics
from bench.analysis.metrics import ROUND_PHASES, round_costs
from bench.analysis.rows import Row
from bench.reporting import captions
from bench.reporting.figures import canvas, overview
from bench.reporting.figures.overview import Series
from bench.reporting.tables import valid_rows
from bench.statistics.intervals import Interval

_PANELS_A_LINE = 3
_PANEL_HEIGHT = 1.7  # inches
_LEAST_PLACES = 3  # few bars stay narrow
# Light next to dark in stacking order, and hatched where colours of neighbours are near in grey.
_PHASE_LOOKS = {
    "draft": {"color": "#0072B2"},
    "verify": {"color": "#F5D9A8", "hatch": "//"},
    "accept": {"color": "#000000"},
    "other": {"color": "#FFFFFF", "hatch": ".."},
}


# Phases
def render_phases(rows: Sequence[Row]) -> bytes | None:
    """Return the seconds of a round by phase; None if no valid cell was replayed."""
    replayed = [row for row in valid_rows(rows) if round_costs(row.record) is not None]
    return canvas.drawn(lambda: _draw_phases(replayed)) if replayed else None


def _draw_phases(rows: Sequence[Row]) -> Any:
    """Draw one panel for each line of the suite's main figure, all to one scale."""
    axis, lines = overview.series_of(rows)
    num_columns = min(len(lines), _PANELS_A_LINE)
    num_lines = math.ceil(len(lines) / num_columns)
    titles = ["\n".join(textwrap.wrap(line.label, 100 // num_columns)) for line in lines]
    above = 0.2 + 0.14 * max(title.count("\n") + bool(title) for title in titles)
    between = 0.5 + above
    body = num_lines * _PANEL_HEIGHT + (num_lines - 1) * between
    spaces = {"wspace": 0.08, "hspace": between / _PANEL_HEIGHT}
    caption = (
        f"{rows[0].record.cell.suite} on {overview.device(rows[0])}. Milliseconds of a round by phase, their sum above the "
        "bar: means over the rounds of the untimed replays, which synchronise at every phase, so that a round costs more "
        f"there than in the timed arm. {overview.settings_sentence(rows)}"
    )
    figure = canvas.frame(caption, body=body, above=above, below=0.75, **spaces)
    panels = figure.subplots(num_lines, num_columns, sharey=True, squeeze=False)
    for panel, line, title in zip(panels.flat, lines, titles, strict=False):
        _stack(panel, line)
        panel.set_title(title, loc="left", fontsize=8)
        panel.set_xlabel(axis)
    for panel in panels.flat[len(lines) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("ms / round")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    canvas.legend_below(figure, 0.42, handles, labels, ncols=len(labels))
    return figure


def _stack(axes: Any, line: Series) -> None:
    """Draw bars at even places, because temperatures need not be evenly spaced."""
    costs = [round_costs(row.record) or {} for row in line.rows]
    places = range(len(line.x))
    bottom = np.zeros(len(line.x))
    for name in ROUND_PHASES:
        heights = np.array([1000 * cost[name] for cost in costs])
        axes.bar(places, heights, bottom=bottom, width=0.7, edgecolor="0.2", lw=0.6, label=name, **_PHASE_LOOKS[name])
        bottom += heights
    for place, total in zip(places, bottom, strict=True):
        axes.annotate(f"{total:.3g}", (place, total), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axes.set_xticks(list(places), [f"{x:g}" for x in line.x])
    axes.set_xlim(-0.75, max(len(line.x), _LEAST_PLACES) - 0.25)


# Predicted and measured
Point = tuple[str, float, Interval]  # backend and rule of a cell, its predicted gamma, its measured gamma


def predicted_points(rows: Sequence[Row]) -> list[Point]:
    """Return a point for each valid cell that has both gammas."""
    return [
        (f"{row.record.cell.backend}, {row.record.cell.rule}{' LOSSY' if row.lossy else ''}", predicted, measured)
        for row in valid_rows(rows)
        if (predicted := metrics.predicted_gamma(row.record)) is not None
        if (measured := metrics.gamma(row.record)) is not None
    ]


def render_predicted(rows: Sequence[Row]) -> bytes | None:
    """Return gamma measured against gamma predicted, of cells of all suites; None if no cell has both."""
    points = predicted_points(rows)
    return canvas.drawn(lambda: _draw_predicted(points, overview.device(rows[0]))) if points else None


def _draw_predicted(points: Sequence[Point], device: str) -> Any:
    side = 4.4  # inches of the square
    right = canvas.LEFT + side / canvas.WIDTH
    ratios = [measured.estimate / predicted for _, predicted, measured in points]
    caption = (
        f"All suites on {device}. {captions.FORMULA}. One point for each of {len(points)} cells, with its 95 % interval over "
        "prompts. Predicted: block efficiency x AR forward / (k x draft forward + verify forward), of bare forwards timed in "
        "the same run. On the line a round costs nothing but its forwards; below it, what the loop adds. "
        f"Measured / predicted: median {np.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}."
    )
    figure = canvas.frame(caption, body=side, above=0.15, below=0.6, right=right)
    axes = figure.subplots()
    values = [value for _, predicted, measured in points for value in (predicted, measured.estimate)]
    margin = 0.15 * (max(values) - min(values)) + 0.02
    ends = (min(values) - margin, max(values) + margin)  # of both axes; an interval may reach beyond
    axes.plot(ends, ends, color="0.3", lw=0.8)
    for place in (axes.axhline, axes.axvline):
        place(1, color="0.8", lw=0.8, zorder=0)
    kinds = Counter(label for label, _, _ in points).most_common()
    for number, (label, count) in enumerate(kinds):  # rare ones on top
        style = canvas.look(number) | {"linestyle": "none"}
        style["mfc"] = "white" if number % 2 else style["color"]
        of_kind = [(predicted, measured) for name, predicted, measured in points if name == label]
        looks = {"ms": 4.5, "mew": 0.9, "elinewidth": 0.6, "zorder": 3 + number, "label": f"{label} ({count})"}
        canvas.bars(axes, of_kind, **style, **looks)
    axes.set(xlim=ends, ylim=ends, xlabel="gamma predicted from bare forwards", ylabel="gamma measured")
    canvas.legend_beside(axes)
    return figure
