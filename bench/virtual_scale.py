"""Gamma against the measured cost of the draft at constant acceptance: a table of the suite `virtual_scale`."""

from __future__ import annotations

from collections.abc import Sequence

from bench import metrics, tables
from bench.columns import interval_text
from bench.rendering import MISSING, Entry, Table
from bench.rows import Row

# Parameters in millions: what a forward of one token reads, at least. Ouyang et al. 2024, arXiv 2410.10141, and model cards.
PAPER_PAIR = "Llama-2-13B-chat and Llama-68M"
PAPER_COST = 68 / 13016

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
    believed = [row for row in rows if row.verdict.valid and metrics.cost_ratio(row.record) is not None]
    body: list[tuple[Entry, ...]] = []
    for temperature in sorted({row.record.cell.temperature for row in believed}):
        at = [row for row in believed if row.record.cell.temperature == temperature]
        at.sort(key=lambda row: metrics.cost_ratio(row.record) or 0.0, reverse=True)
        body += [tuple(map(Entry, _texts(row))) for row in at]
        body.append(tuple(map(Entry, _paper_texts(at[-1]))))
    facts = {
        "inflated": "the target computes the same distribution with the compute of a larger one; only c is another",
        f"c of {PAPER_PAIR}": f"{PAPER_COST:.4f}, by parameters; its row is the block efficiency of the row above it at that c",
        "of an ideal draft": "block efficiency times AR forward / verify forward: what gamma tends to as c falls to 0",
    }
    return Table(f"{tables.title(rows[0].run)}: gamma against c", _HEADERS, tuple(body), (), facts, {})


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
