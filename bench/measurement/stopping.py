"""When a cell has pairs enough: its interval of gamma is as narrow as was asked for, or its time is over.

Looking at an interval after every pair and stopping at a good moment would let lucky early pairs decide. So a look counts only
from LEAST_PROMPTS prompts on, and the interval must be narrow at a confidence a little above the one that is reported.
`python -m tests.studies.simulated_stopping` shows the coverage that is left and the pairs that are saved (docs/stopping.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.analysis import metrics
from bench.options.settings import Stopping
from bench.records.runs import Cell, CellRecord, TimedPair

if TYPE_CHECKING:
    from bench.statistics.intervals import RatioInterval


LEAST_PROMPTS = 10
CONFIDENCE = 0.97

PRECISION, TIME = "precision", "time"


def reason_to_stop(stopping: Stopping, cell: Cell, pairs: Sequence[TimedPair], *, elapsed_s: float) -> str:
    """PRECISION or TIME where the pairs so far are enough, else an empty text."""
    if stopping.precision is not None and len({pair.prompt_index for pair in pairs}) >= LEAST_PROMPTS:
        gamma = metrics.gamma(CellRecord(cell, "", (), True, tuple(pairs)), confidence=CONFIDENCE)
        if gamma is not None and half_width(gamma) <= stopping.precision:
            return PRECISION
    return TIME if stopping.budget_s is not None and pairs and elapsed_s >= stopping.budget_s else ""


def half_width(interval: RatioInterval) -> float:
    """Half the width of an interval on the scale of logarithms: 0.02 is about 2 % either way."""
    return math.log(interval.high / interval.low) / 2 if interval.low > 0 else math.inf
