"""Gamma against the measured cost of the draft at constant acceptance: table and figure of the suite `virtual_scale`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.analysis import metrics
from bench.analysis.rows import Row
from bench.records.files import Runs
from bench.reporting import captions
from bench.reporting.figures import canvas, overview
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Entry, Table

# Parameters in millions: what a forward of one token reads, at least. Ouyang et al. 2024, arXiv 2410.10141, and model cards.
PAPER_PAIR = "Llama-2-13B-chat and Llama-68M"
PAPER_COST = 68 / 13016

SUITE = "virtual_scale"

_HEADERS = (
    "pair",
    "temperature",
    "alpha",
    "c",
    "gamma",
    "gamma\npredicted",
    "measured /\npredicted",
    "of an ideal\ndraft, c = 0",
)


def scale_table(rows: Sequence[Row]) -> Table:
    """A line a cell that was believed, c falling at each temperature; behind each temperature the paper's pair, predicted."""
    body: list[tuple[Entry, ...]] = []
    for at in _by_temperature(rows).values():
        body += [tuple(map(Entry, _texts(row))) for row in at]
        body.append(tuple(map(Entry, _paper_texts(at[-1]))))
    facts = {
        "inflated": "the target computes the same distribution with the compute of a larger one; only c is another",
        f"c of {PAPER_PAIR}": f"{PAPER_COST:.4f}, by parameters; its row is the block efficiency of the row above it at that c",
        "of an ideal draft": "block efficiency times AR forward / verify forward: what gamma tends to as c falls to 0",
    }
    return Table(f"{captions.title(rows[0].run)}: gamma against c", _HEADERS, tuple(body), (), facts, {})


def _by_temperature(rows: Sequence[Row]) -> dict[float, list[Row]]:
    """Rows that were believed and whose c is known, c falling."""
    believed = [row for row in rows if row.verdict.valid and metrics.cost_ratio(row.record) is not None]
    found: dict[float, list[Row]] = {
        temperature: [] for temperature in sorted({row.record.cell.temperature for row in believed})
    }
    for row in sorted(believed, key=_cost, reverse=True):
        found[row.record.cell.temperature].append(row)
    return found


def _cost(row: Row) -> float:
    return metrics.cost_ratio(row.record) or 0.0


def _texts(row: Row) -> list[str]:
    record = row.record
    gamma, predicted = metrics.gamma(record), metrics.predicted_gamma(record)
    quotient = gamma.estimate / predicted if gamma and predicted else None
    return [
        record.cell.pair,
        f"{record.cell.temperature:g}",
        interval_text(metrics.counted_alpha(record)),
        f"{metrics.cost_ratio(record):.3f}",
        interval_text(gamma),
        _text(predicted),
        _text(quotient),
        _text(metrics.predicted_gamma(record, cost=0.0)),
    ]


def _paper_texts(row: Row) -> list[str]:
    temperature = f"{row.record.cell.temperature:g}"
    at_its_cost = _text(metrics.predicted_gamma(row.record, cost=PAPER_COST))
    return [PAPER_PAIR, temperature, MISSING, f"{PAPER_COST:.3f}", MISSING, at_its_cost, MISSING, MISSING]


def _text(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def has_scale(runs: Runs) -> bool:
    """Whether `render_scale` gives a figure: there are targets of several sizes."""
    rows = overview.newest_group(runs)
    return bool(rows) and rows[0].record.cell.suite == SUITE and bool(_by_temperature(rows))


def render_scale(runs: Runs) -> dict[str, bytes]:
    """Gamma over c in every format; empty of other suites, and where no cell is valid.

    Raises:  BackendUnavailable: matplotlib is missing
    """
    if not has_scale(runs):
        return {}
    with canvas.our_style():
        figure = _draw(overview.newest_group(runs))
        return {name: canvas.saved(figure, name) for name in canvas.FORMATS}


def _draw(rows: Sequence[Row]) -> Any:
    caption = canvas.wrapped(_caption(rows))
    below = 0.6 + canvas.caption_height(caption)
    height = 3.2 + below
    figure = canvas.blank(height, caption)
    axes = figure.subplots()
    figure.subplots_adjust(0.08, below / height, 0.8, 1 - 0.2 / height)
    axes.axhline(1, color="0.3", lw=0.8)
    axes.axvline(PAPER_COST, color="0.5", lw=0.8, ls=":")
    axes.annotate(
        "13B : 68M", (PAPER_COST, 1), (3, 0), ("data", "axes fraction"), "offset points", va="top", fontsize=7
    )
    for number, (temperature, at) in enumerate(_by_temperature(rows).items()):
        style = canvas.look(number)
        costs = [_cost(row) for row in at]
        shown = [metrics.gamma(row.record) for row in at]
        measured = [(cost, gamma) for cost, gamma in zip(costs, shown, strict=True) if gamma is not None]
        finite = [math.isfinite(gamma.high) for _, gamma in measured]
        low = [gamma.estimate - gamma.low if whole else 0.0 for (_, gamma), whole in zip(measured, finite, strict=True)]
        high = [
            gamma.high - gamma.estimate if whole else 0.0 for (_, gamma), whole in zip(measured, finite, strict=True)
        ]
        look = {"color": style["color"], "marker": style["marker"], "ms": 4.5}
        axes.errorbar(
            [cost for cost, _ in measured],
            [gamma.estimate for _, gamma in measured],
            yerr=(low, high),
            ls="none",
            elinewidth=0.8,
            label=f"T = {temperature:g}",
            **look,
        )
        along = np.geomspace(PAPER_COST, max(costs), 60)
        axes.plot(
            along,
            [metrics.predicted_gamma(at[-1].record, cost=cost) for cost in along],
            ls="--",
            lw=1,
            color=look["color"],
        )
        predicted = [metrics.predicted_gamma(row.record) for row in at]
        axes.plot(costs, predicted, ls="none", mfc="white", mew=0.8, **look)
    axes.set_xscale("log")
    axes.set(xlabel="c: draft forward / target forward", ylabel="gamma")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
    return figure


def _caption(rows: Sequence[Row]) -> str:
    shapes = ", ".join(dict.fromkeys(row.record.cell.pair for row in rows))
    return (
        f"{SUITE} on {overview.device(rows[0])}. {captions.FORMULA}. Inflated targets compute the same distribution at a larger "
        f"cost: {shapes}. Filled: measured, with 95 % intervals over prompts. Hollow: predicted from block efficiency and bare "
        "forwards of the cell. Dashed: predicted at any c, with block efficiency and verify cost of the cell of smallest c. "
        f"Dotted: c of {PAPER_PAIR} by parameters, {PAPER_COST:.4f}. {overview.settings_sentence(rows)}"
    )
