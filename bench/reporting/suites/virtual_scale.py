"""Table and figure of the suite `virtual_scale`: gamma against the measured cost of the draft, at constant acceptance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from bench.analysis import metrics
from bench.analysis.rows import Row
from bench.reporting import captions
from bench.reporting.columns import measured_over_predicted
from bench.reporting.figures import canvas, overview
from bench.reporting.numbers import interval_text, number_text
from bench.reporting.table import MISSING, Table, table_of
from bench.reporting.tables import valid_rows

# Parameters in millions: what a forward of one token reads, at least. Ouyang et al. 2024, arXiv 2410.10141, and model cards.
PAPER_PAIR = "Llama-2-13B-chat and Llama-68M"
PAPER_COST = 68 / 13016

SUITE = "virtual_scale"

_PREDICTED = ("gamma\npredicted", "measured /\npredicted", "of an ideal\ndraft, c = 0")
_HEADERS = ("pair", "temperature", "alpha", "c", "gamma", *_PREDICTED)


def scale_table(rows: Sequence[Row]) -> Table:
    """Return one row per valid cell, c falling at each temperature; after each temperature the paper's pair, predicted."""
    lines = []
    for at in _by_temperature(rows).values():
        lines += [*map(_texts, at), _paper_texts(at[-1])]
    facts = {
        "inflated": "the target computes the same distribution with the compute of a larger one, so only c differs",
        f"c of {PAPER_PAIR}": f"{PAPER_COST:.4f}, by parameters; its row is the block efficiency of the row above it at that c",
        "of an ideal draft": "block efficiency times AR forward / verify forward: what gamma tends to as c falls to 0",
    }
    return table_of(f"{captions.title(rows[0].run)}: gamma against c", _HEADERS, lines, facts)


def _by_temperature(rows: Sequence[Row]) -> dict[float, list[Row]]:
    """Return the valid rows whose c is known: temperatures ascending, c falling."""
    with_cost = [row for row in valid_rows(rows) if metrics.cost_ratio(row.record) is not None]
    ordered = sorted(with_cost, key=lambda row: (row.record.cell.temperature, -_cost(row)))
    return {temperature: list(at) for temperature, at in groupby(ordered, key=lambda row: row.record.cell.temperature)}


def _cost(row: Row) -> float:
    return metrics.cost_ratio(row.record) or 0.0


def _texts(row: Row) -> list[str]:
    record = row.record
    alpha, gamma = interval_text(metrics.counted_alpha(record)), interval_text(metrics.gamma(record))
    predicted = (metrics.predicted_gamma(record), measured_over_predicted(record), metrics.predicted_gamma(record, cost=0.0))
    of_cell = [record.cell.pair, f"{record.cell.temperature:g}", alpha, number_text(metrics.cost_ratio(record), 3), gamma]
    return [*of_cell, *(number_text(value, 2) for value in predicted)]


def _paper_texts(row: Row) -> list[str]:
    temperature = f"{row.record.cell.temperature:g}"
    at_its_cost = number_text(metrics.predicted_gamma(row.record, cost=PAPER_COST), 2)
    return [PAPER_PAIR, temperature, MISSING, f"{PAPER_COST:.3f}", MISSING, at_its_cost, MISSING, MISSING]


def render_scale(rows: Sequence[Row]) -> bytes | None:
    """Return gamma over c; None for other suites, and if no cell is valid."""
    found = _by_temperature(rows) if rows and rows[0].record.cell.suite == SUITE else {}
    return canvas.drawn(lambda: _draw(rows, found)) if found else None


def _draw(rows: Sequence[Row], by_temperature: Mapping[float, Sequence[Row]]) -> Any:
    shapes = ", ".join(dict.fromkeys(row.record.cell.pair for row in rows))
    caption = (
        f"{SUITE} on {overview.device(rows[0])}. {captions.FORMULA}. Inflated targets compute the same distribution at a "
        f"larger cost: {shapes}. Filled: measured, with 95 % intervals over prompts. Hollow: predicted from block efficiency "
        "and bare forwards of the cell. Dashed: predicted at any c, with block efficiency and verify cost of the cell of "
        f"smallest c. Dotted: c of {PAPER_PAIR} by parameters, {PAPER_COST:.4f}. {overview.settings_sentence(rows)}"
    )
    figure = canvas.frame(caption, body=3.0, below=0.6, right=0.8)
    axes = figure.subplots()
    axes.axhline(1, color="0.3", lw=0.8)
    axes.axvline(PAPER_COST, color="0.5", lw=0.8, ls=":")
    axes.annotate("13B : 68M", (PAPER_COST, 1), (3, 0), ("data", "axes fraction"), "offset points", va="top", fontsize=7)
    for number, (temperature, at) in enumerate(by_temperature.items()):
        look = canvas.look(number) | {"ms": 4.5, "linestyle": "none"}
        measured = [(_cost(row), gamma) for row in at if (gamma := metrics.gamma(row.record)) is not None]
        canvas.bars(axes, measured, elinewidth=0.8, label=f"T = {temperature:g}", **look)
        costs = [_cost(row) for row in at]
        along = np.geomspace(PAPER_COST, max(costs), 60)  # evenly spaced on the logarithmic axis
        predicted = [metrics.predicted_gamma(at[-1].record, cost=cost) for cost in along]
        axes.plot(along, predicted, ls="--", lw=1, color=look["color"])
        axes.plot(costs, [metrics.predicted_gamma(row.record) for row in at], mfc="white", mew=0.8, **look)
    axes.set_xscale("log")
    axes.set(xlabel="c: draft forward / target forward", ylabel="gamma")
    canvas.legend_beside(axes)
    return figure
