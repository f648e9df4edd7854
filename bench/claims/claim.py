"""Claims: a question to records, the rule that decides it, and its line in the ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.analysis.quantities import Finding
from bench.analysis.rows import Row

Source = Literal["paper", "contested"]  # paper: Ouyang et al. 2024, arXiv 2410.10141
Ruling = Literal["SUPPORTED", "REFUTED", "EQUIVALENT", "INCONCLUSIVE", "NOT MEASURED"]


@dataclass(frozen=True, slots=True)
class LineRecord:
    """A record of JSON lines, which has another form than the records of suites."""

    path: Path
    file: str  # below the folder of results
    command: str


@dataclass(frozen=True, slots=True)
class Records:
    """What was measured of one pair on one machine, by suite."""

    rows: Mapping[str, tuple[Row, ...]]  # every VALID cell of every run
    lines: Mapping[str, tuple[LineRecord, ...]]  # oldest first


Find = Callable[[Records], Finding | None]  # None: no record has what the claim needs


@dataclass(frozen=True, slots=True)
class Rule:
    """On which side of a threshold an effect must lie, or within which margin."""

    # Points are hundredths of alpha; of a ratio, effect and threshold are logarithms.
    unit: Literal["points", "ratio", "log odds"]
    side: Literal["<", ">", "within"]
    threshold: float  # within: the margin on both sides of no effect

    def border(self, estimate: float) -> float:
        """Return the threshold at which an effect is tested: of the two margins, the one that is nearer to the estimate."""
        return math.copysign(self.threshold, estimate) if self.side == "within" else self.threshold

    def holds(self, estimate: float) -> bool:
        if self.side == "within":
            return abs(estimate) < self.threshold
        return (estimate > self.threshold) == (self.side == ">")


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence that may be wrong, and the rule that decides it."""

    name: str
    statement: str
    source: Source
    measured: str
    rule: Rule
    command: str  # that measures it
    find: Find
    margin: float | None = (
        None  # in the unit of the rule: effects that surely lie within it, to both sides of 0, are EQUIVALENT
    )


@dataclass(frozen=True, slots=True)
class LedgerRow:
    claim: Claim
    finding: Finding | None
    p: float | None  # of the verdict; None: not tested
    p_holm: float | None  # over the claims of the same source
    verdict: Ruling
