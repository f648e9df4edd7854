"""What another draft length gives back at each temperature: a table of the suite `draft_length`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, scalar_text
from bench.reporting import captions, tables
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Entry, Table

_HEADERS = (
    *("temperature", "best k", "gamma at\nbest k", "k best at\ncoldest T", "gamma at\nthat k"),
    *("lost since\ncoldest T", "of it given back\nby best k", "gamma of\nadaptive k"),
)
_ASKED = ("temperature", "draft_temperature", "num_draft_tokens", "draft_length")  # of which the table is


def retuning_table(rows: Sequence[Row]) -> Table:
    """A line a temperature, of each of what else rows differ in. Without a body where there is one constant k only."""
    varying = [name for name in tables.split_identity(rows)[0] if name not in _ASKED]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        of_row = identity(row)
        groups.setdefault(tuple(scalar_text(name, of_row.get(name)) for name in varying), []).append(row)
    lines = [(*shared, *line) for shared, group in groups.items() for line in _lines(group)]
    body = [tuple(map(Entry, line)) for line in lines]
    facts = {
        "lost": "logarithm, in hundredths, of gamma at the coldest T over gamma here, both at the k best at the coldest",
        "best k": "chosen on the same data, so what it gives back is slightly too large",
        "adaptive k": "two more after full acceptance, else one less, up to the largest k asked for",
    }
    return Table(
        f"{captions.title(rows[0].run)}: what another k gives back", (*varying, *_HEADERS), tuple(body), (), facts, {}
    )


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    constant, adaptive = _by_temperature(rows, "constant"), _by_temperature(rows, "adaptive")
    for temperature, at in sorted(constant.items()):
        coldest = constant[min(constant)]
        k_cold = _best(coldest)
        if len(at) < 2 or k_cold not in at:
            continue
        k = _best(at)
        lost = math.log(_estimate(coldest[k_cold]) / _estimate(at[k_cold]))
        given_back = math.log(_estimate(at[k]) / _estimate(at[k_cold]))
        adapted = adaptive.get(temperature, {})
        yield (
            *(f"{temperature:g}", f"{k}", _gamma_text(at[k]), f"{k_cold}", _gamma_text(at[k_cold])),
            *(f"{100 * lost:.1f}", f"{given_back / lost:.0%}" if lost > 0 else MISSING),
            _gamma_text(adapted[max(adapted)]) if adapted else MISSING,
        )


def _by_temperature(rows: Sequence[Row], draft_length: str) -> Mapping[float, Mapping[int, Row]]:
    """The believed gammas by T and k."""
    found: dict[float, dict[int, Row]] = {}
    for row in rows:
        cell = row.record.cell
        if row.verdict.valid and cell.draft_length == draft_length:
            found.setdefault(cell.temperature, {})[cell.num_draft_tokens] = row
    return found


def _best(at: Mapping[int, Row]) -> int:
    return max(at, key=lambda k: _estimate(at[k]))


def _estimate(row: Row) -> float:
    gamma = metrics.gamma(row.record)
    return gamma.estimate if gamma else math.nan


def _gamma_text(row: Row) -> str:
    return interval_text(metrics.gamma(row.record))
