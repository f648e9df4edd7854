"""The main figure of a suite: gamma and alpha over temperature, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, split_identity
from bench.records.runs import CellRecord
from bench.reporting import captions
from bench.reporting.figures import canvas
from bench.reporting.tables import valid_rows
from bench.statistics.intervals import Interval

T = TypeVar("T")
_AXES = ("temperature", "draft_temperature", "num_draft_tokens", "concurrency")


@dataclass(frozen=True, slots=True)
class Series:
    """Cells that differ only in the value on the horizontal axis, in its order."""

    label: str
    x: tuple[float, ...]
    rows: tuple[Row, ...]

    def points(self, metric: Callable[[CellRecord], T | None]) -> tuple[list[float], list[T]]:
        """Return x and the metric of the cells that have it."""
        found = [(x, value) for x, row in zip(self.x, self.rows, strict=True) if (value := metric(row.record)) is not None]
        return [x for x, _ in found], [value for _, value in found]


def series_of(rows: Sequence[Row]) -> tuple[str, tuple[Series, ...]]:
    """Return the name of the horizontal axis, which is the first of _AXES that varies, and the lines over it."""
    several, _ = split_identity(rows, always=())
    axis = next((name for name in _AXES if name in several), "temperature")
    groups: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        label = captions.label(row, (name for name in several if name != axis)) + (" LOSSY" if row.lossy else "")
        groups.setdefault(label, []).append((float(str(identity(row)[axis])), row))
    lines = []
    for label, points in groups.items():
        x, members = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        lines.append(Series(label, x, members))
    return axis, tuple(lines)


def render(rows: Sequence[Row]) -> bytes | None:
    """Return the figure of rows that belong in one table; None if none of them is valid."""
    valid = valid_rows(rows)
    return canvas.drawn(lambda: _draw(valid, num_invalid=len(rows) - len(valid))) if valid else None


def _draw(rows: Sequence[Row], *, num_invalid: int) -> Any:
    """Draw two panels over one horizontal axis, with the words a reader needs below them."""
    axis, lines = series_of(rows)
    legend_rows = len(lines) if len(lines) > 1 else 0
    caption = (
        f"{rows[0].record.cell.suite} on {device(rows[0])}. {captions.FORMULA}. "
        "Solid: gamma measured, alpha counted over all pairs, with 95 % intervals over prompts. "
        "Dashed, hollow: gamma predicted from bare forwards, alpha expected in replays; crosses: alpha counted in the same "
        "replays. Grey: the A/A floor around 1. "
        + settings_sentence(rows)
        + (f" Left out as INVALID: {num_invalid} of the cells." if num_invalid else "")
    )
    figure = canvas.frame(caption, body=2.9, above=0.3, below=0.55 + 0.17 * legend_rows, wspace=0.22)
    gamma_axes, alpha_axes = figure.subplots(1, 2)

    floor = max((metrics.aa_floor(row.run) or 0.0 for row in rows), default=0.0)
    gamma_axes.axhspan(math.exp(-floor), math.exp(floor), color="0.85", lw=0)  # the floor is of log gamma
    gamma_axes.axhline(1, color="0.3", lw=0.8)
    for number, line in enumerate(lines):
        style = canvas.look(number)
        _measured(gamma_axes, line, metrics.gamma, label=line.label, **style)
        _measured(alpha_axes, line, metrics.counted_alpha, **style)
        # What was not timed or counted is dashed, with hollow markers.
        hollow = style | {"linestyle": "--", "mfc": "white"}
        gamma_axes.plot(*line.points(metrics.predicted_gamma), lw=1, ms=4, mew=0.8, **hollow)
        crosses = style | {"linestyle": "none", "marker": "x"}
        for metric, marks in ((metrics.expected_alpha, hollow), (metrics.replayed_alpha, crosses)):
            x, found = line.points(metric)
            alpha_axes.plot(x, [interval.estimate for interval in found], lw=1, ms=4, mew=0.8, **marks)
    ticks = sorted({x for line in lines for x in line.x})
    for axes, title in ((gamma_axes, "gamma"), (alpha_axes, "alpha")):
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel(axis)
        if axis == "concurrency":
            axes.set_xscale("log", base=2)
        if len(ticks) <= 12:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    alpha_axes.set_ylim(0, 1.02)
    if legend_rows:
        canvas.legend_below(figure, 0.45, labelspacing=0.25)
    return figure


def _measured(axes: Any, line: Series, metric: Callable[[CellRecord], Interval | None], **style: str) -> None:
    x, found = line.points(metric)
    axes.plot(x, [interval.estimate for interval in found], ms=4, lw=1.5, **style)
    # With one prompt an interval reaches infinity: then there is nothing to draw.
    low, high = (
        [getattr(interval, end) if math.isfinite(interval.high) else math.nan for interval in found] for end in ("low", "high")
    )
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.vlines(x, low, high, color=style["color"], lw=0.8)


def device(row: Row) -> str:
    return str(row.run.environment.get("gpu_name") or row.run.environment.get("cpu_model"))


def settings_sentence(rows: Sequence[Row]) -> str:
    shown = ("backend", "pair", "rule", "num_draft_tokens", "dtype", "prompt_set", "num_prompts", "max_new_tokens")
    return captions.shared(rows, shown) + "."
