"""The table of the suite `draft_length`: what another draft length recovers at each temperature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, scalar_text, split_identity
from bench.reporting.captions import title
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Table, table_of
from bench.reporting.tables import valid_rows
from bench.statistics.intervals import Interval

_HEADERS = (
    *("temperature", "best k", "gamma at\nbest k", "k best at\ncoldest T", "gamma at\nthat k"),
    *("lost since\ncoldest T", "of it given back\nby best k", "gamma of\nadaptive k"),
)
_IN_TABLE = ("temperature", "draft_temperature", "num_draft_tokens", "draft_length")


def retuning_table(rows: Sequence[Row]) -> Table:
    """Return one row per temperature and other varying setting; none where there is only one constant k."""
    varying = [name for name in split_identity(rows)[0] if name not in _IN_TABLE]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        of_row = identity(row)
        groups.setdefault(tuple(scalar_text(name, of_row.get(name)) for name in varying), []).append(row)
    lines = [(*shared, *line) for shared, group in groups.items() for line in _lines(group)]
    facts = {
        "lost": "logarithm, in hundredths, of gamma at the coldest T over gamma here, both at the k best at the coldest",
        "best k": "chosen on the same data, so what it gives back is slightly too large",
        "adaptive k": "two more after full acceptance, else one less, up to the largest requested k",
    }
    return table_of(f"{title(rows[0].run)}: what another k gives back", (*varying, *_HEADERS), lines, facts)


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    constant, adaptive = _gammas(rows, "constant"), _gammas(rows, "adaptive")
    for temperature, at in sorted(constant.items()):
        coldest = constant[min(constant)]
        k_cold = _best(coldest)
        if len(at) < 2 or k_cold not in at:
            continue  # no choice at this temperature, or none that compares with the coldest
        k = _best(at)
        lost = math.log(coldest[k_cold].estimate / at[k_cold].estimate)
        given_back = math.log(at[k].estimate / at[k_cold].estimate)
        adapted = adaptive.get(temperature, {})
        yield (
            *(f"{temperature:g}", f"{k}", interval_text(at[k]), f"{k_cold}", interval_text(at[k_cold])),
            *(f"{100 * lost:.1f}", f"{given_back / lost:.0%}" if lost > 0 else MISSING),
            interval_text(adapted[max(adapted)] if adapted else None),
        )


def _gammas(rows: Sequence[Row], draft_length: str) -> Mapping[float, Mapping[int, Interval]]:
    """Return the gammas of valid rows by T and k."""
    found: dict[float, dict[int, Interval]] = {}
    for row in valid_rows(rows):
        cell, gamma = row.record.cell, metrics.gamma(row.record)
        if cell.draft_length == draft_length and gamma is not None:
            found.setdefault(cell.temperature, {})[cell.num_draft_tokens] = gamma
    return found


def _best(at: Mapping[int, Interval]) -> int:
    return max(at, key=lambda k: at[k].estimate)
