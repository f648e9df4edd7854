"""How much narrower do gamma and alpha become without the luck of acceptance draws?

    python -m tests.studies.luck results

It reads stored records: cells above T = 0 in which every pair was replayed. A ratio below 1 is a narrower interval.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tabulate import tabulate

from bench.analysis import metrics
from bench.analysis.quantities import gamma_without_luck
from bench.measurement.stopping import half_width
from bench.records import files
from bench.records.runs import CellRecord
from bench.statistics.intervals import Interval

BANDS = ((0.0, 0.5), (0.5, 1.0), (1.0, 9.0))  # of the temperature: above, and up to


def replayed_cells(results: Path) -> Iterator[CellRecord]:
    for run in files.load_runs(results):
        for record in run.cells:
            sampled = record.error is None and record.cell.temperature > 0 and record.cell.concurrency == 1
            if sampled and record.pairs and all(pair.replay is not None for pair in record.pairs):
                yield record


def ratios(record: CellRecord) -> tuple[float, float]:
    """Return the half-width without luck / with it, of gamma and of alpha; NaN where a number is missing."""
    return (
        _ratio(gamma_without_luck(record), metrics.gamma(record)),
        _ratio(metrics.expected_alpha(record), metrics.counted_alpha(record)),
    )


def _ratio(without: Interval | None, raw: Interval | None) -> float:
    if without is None or raw is None or not raw.adequate or half_width(raw) == 0:
        return float("nan")
    return half_width(without) / half_width(raw)


def table(results: Path) -> str:
    found = [(record.cell.temperature, *ratios(record)) for record in replayed_cells(results)]
    rows = []
    for above, up_to in BANDS:
        columns = np.array([row[1:] for row in found if above < row[0] <= up_to]).T
        texts = [f"{np.nanmean(column):.2f} ({np.nanmin(column):.2f} to {np.nanmax(column):.2f})" for column in columns]
        rows.append((f"{above:g} < T <= {up_to:g}" if up_to < 9 else f"T > {above:g}", columns.shape[1], *texts))
    headers = ("temperature", "cells", "gamma: mean of half-widths without / with luck", "alpha: expected / counted")
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else "results")))
