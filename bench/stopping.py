"""When a cell has pairs enough: its interval of gamma is as narrow as was asked for, or its time is over.

Looking at an interval after every pair and stopping at a good moment would let lucky early pairs decide. So a look counts only
from LEAST_PROMPTS prompts on, and the interval must be narrow at a confidence a little above the one that is reported.
`python -m tests.simulated_stopping` shows the coverage that is left and the pairs that are saved (docs/stopping.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.records import Cell, CellRecord, TimedPair

if TYPE_CHECKING:
    from bench.statistics import RatioInterval

LEAST_PROMPTS = 10
CONFIDENCE = 0.97

PRECISION, TIME = "precision", "time"


@dataclass(frozen=True, slots=True)
class Stopping:
    """What ends a cell before its last pair."""

    precision: float | None = None  # half-width of gamma's interval, as a share of gamma
    budget_s: float | None = None

    def reason(self, cell: Cell, pairs: Sequence[TimedPair], *, elapsed_s: float) -> str:
        """PRECISION or TIME where the pairs so far are enough, else an empty text."""
        from bench import metrics  # here, so that options are known without it

        if self.precision is not None and len({pair.prompt_index for pair in pairs}) >= LEAST_PROMPTS:
            gamma = metrics.gamma(CellRecord(cell, "", (), True, tuple(pairs)), confidence=CONFIDENCE)
            if gamma is not None and half_width(gamma) <= self.precision:
                return PRECISION
        return TIME if self.budget_s is not None and pairs and elapsed_s >= self.budget_s else ""


def half_width(interval: RatioInterval) -> float:
    """Half the width of an interval on the scale of logarithms: 0.02 is about 2 % either way."""
    return math.log(interval.high / interval.low) / 2 if interval.low > 0 else math.inf
