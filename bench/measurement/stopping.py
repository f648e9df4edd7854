"""When a cell has enough pairs: its interval of gamma is as narrow as requested, or its time is over.

Looking at an interval after every pair and stopping at a good moment would let lucky early pairs decide. So the interval is
judged only from `least_prompts` on, and at a confidence that is a little higher than the reported one.
`python -m tests.studies.simulated_stopping` shows the remaining coverage and the saved pairs (docs/validation.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.analysis import metrics
from bench.options.settings import Stopping
from bench.records.runs import Cell, CellRecord, TimedPair
from bench.statistics.intervals import Interval

CONFIDENCE = 0.97  # of the interval that stops a cell; the reported one has 0.95
PRECISION, TIME = "precision", "time"


def reason_to_stop(stopping: Stopping, cell: Cell, pairs: Sequence[TimedPair], *, elapsed_s: float) -> str:
    """Return PRECISION or TIME where the pairs so far are enough, else an empty string."""
    if stopping.precision is not None and len({pair.prompt_index for pair in pairs}) >= stopping.least_prompts:
        gamma = metrics.gamma(CellRecord(cell, "", (), True, tuple(pairs)), confidence=CONFIDENCE)
        if gamma is not None and half_width(gamma) <= stopping.precision:
            return PRECISION
    return TIME if stopping.budget_s is not None and pairs and elapsed_s >= stopping.budget_s else ""


def half_width(interval: Interval) -> float:
    """Return half the width of an interval on the log scale: 0.02 is about 2 % in either direction."""
    return math.log(interval.high / interval.low) / 2 if interval.low > 0 else math.inf
