"""The main figure of a suite: gamma and alpha over temperature, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, scalar_text, split_identity
from bench.records.runs import CellRecord
from bench.reporting import captions
from bench.reporting.figures import canvas
from bench.statistics.intervals import Interval

_AXES = ("temperature", "draft_temperature", "num_draft_tokens", "concurrency")


@dataclass(frozen=True, slots=True)
class Series:
    """Cells that differ only in the value on the horizontal axis, in its order."""

    label: str
    x: tuple[float, ...]
    rows: tuple[Row, ...]


def series_of(rows: Sequence[Row]) -> tuple[str, tuple[Series, ...]]:
    """Return the name of the horizontal axis, which is the first of _AXES that varies, and the lines over it."""
    several, _ = split_identity(rows, always=())
    axis = next((name for name in _AXES if name in several), "temperature")
    groups: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        values = identity(row)
        label = ", ".join(f"{name} {scalar_text(name, values.get(name))}" for name in several if name != axis)
        label += " LOSSY" if row.lossy else ""
        groups.setdefault(label, []).append((float(str(values[axis])), row))
    lines = []
    for label, points in groups.items():
        x, members = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        lines.append(Series(label, x, members))
    return axis, tuple(lines)


def render(rows: Sequence[Row]) -> bytes | None:
    """Return the figure of rows that belong in one table; None if none of them is valid.

    Raises:  BackendUnavailable: matplotlib is missing
    """
    valid = [row for row in rows if row.verdict.valid]
    return canvas.drawn(lambda: _draw(valid, num_invalid=len(rows) - len(valid))) if valid else None


def _draw(rows: Sequence[Row], *, num_invalid: int) -> Any:
    """Draw two panels over one horizontal axis, with the words a reader needs below them."""
    axis, lines = series_of(rows)
    legend_rows = len(lines) if len(lines) > 1 else 0
    caption = _caption(rows, num_invalid=num_invalid)
    figure = canvas.frame(caption, body=2.9, above=0.3, below=0.55 + 0.17 * legend_rows, wspace=0.22)
    gamma_axes, alpha_axes = figure.subplots(1, 2)

    floor = max((metrics.aa_floor(row.run) or 0.0 for row in rows), default=0.0)
    gamma_axes.axhspan(math.exp(-floor), math.exp(floor), color="0.85", lw=0)
    gamma_axes.axhline(1, color="0.3", lw=0.8)
    for number, line in enumerate(lines):
        style = canvas.look(number)
        _measured(gamma_axes, line, metrics.gamma, **style, label=line.label)
        _dashed(gamma_axes, line, metrics.predicted_gamma, **style)
        _measured(alpha_axes, line, metrics.counted_alpha, **style)
        _dashed(alpha_axes, line, _expected_alpha, **style)
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


def _measured(
    axes: Any,
    line: Series,
    metric: Callable[[CellRecord], Interval | None],
    *,
    color: str,
    marker: str,
    linestyle: str,
    label: str | None = None,
) -> None:
    points = [(x, found) for x, row in zip(line.x, line.rows, strict=True) if (found := metric(row.record))]
    x = [place for place, _ in points]
    axes.plot(
        x, [found.estimate for _, found in points], color=color, marker=marker, ls=linestyle, ms=4, lw=1.5, label=label
    )
    # With one prompt an interval reaches infinity; there is nothing to draw then.
    low = [found.low if math.isfinite(found.high) else math.nan for _, found in points]
    high = [found.high if math.isfinite(found.high) else math.nan for _, found in points]
    axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    axes.vlines(x, low, high, color=color, lw=0.8)


def _dashed(
    axes: Any,
    line: Series,
    metric: Callable[[CellRecord], float | None],
    *,
    color: str,
    marker: str,
    linestyle: str,
) -> None:
    """Draw what was not timed or counted: dashed in every style, with hollow markers."""
    points = [(x, found) for x, row in zip(line.x, line.rows, strict=True) if (found := metric(row.record)) is not None]
    x, y = [place for place, _ in points], [found for _, found in points]
    axes.plot(x, y, color=color, marker=marker, ls="--", lw=1, ms=4, mfc="white", mew=0.8)


def _expected_alpha(record: CellRecord) -> float | None:
    found = metrics.expected_alpha(record)
    return None if found is None else found.estimate


def _caption(rows: Sequence[Row], *, num_invalid: int) -> str:
    return (
        f"{rows[0].record.cell.suite} on {device(rows[0])}. {captions.FORMULA}. "
        "Solid: gamma measured, alpha counted, with 95 % intervals over prompts. "
        "Dashed, hollow: gamma predicted from bare forwards, alpha expected. Grey: the A/A floor around 1. "
        + settings_sentence(rows)
        + (f" Left out as INVALID: {num_invalid} of the cells." if num_invalid else "")
    )


def device(row: Row) -> str:
    """Return the GPU or CPU that a row was measured on."""
    return str(row.run.environment.get("gpu_name") or row.run.environment.get("cpu_model"))


def settings_sentence(rows: Sequence[Row]) -> str:
    """Return the settings that all rows share, as a sentence."""
    _, constant = split_identity(rows)
    shown = ("backend", "pair", "rule", "num_draft_tokens", "dtype", "prompt_set", "num_prompts", "max_new_tokens")
    return ", ".join(f"{name} {scalar_text(name, constant[name])}" for name in shown if name in constant) + "."
