"""Claims: a question to records, the rule that decides it, and its line in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.analysis.quantities import Finding
from bench.analysis.rows import Row

Ruling = Literal["SUPPORTED", "REFUTED", "INCONCLUSIVE", "NOT MEASURED"]


@dataclass(frozen=True, slots=True)
class LineRecord:
    """A record of JSON lines, which has another form than the records of suites."""

    path: Path
    file: str  # below the folder of results
    command: str


@dataclass(frozen=True, slots=True)
class Records:
    """What was measured of one pair on one machine, by suite."""

    rows: Mapping[str, tuple[Row, ...]]  # the newest of each cell that is VALID
    lines: Mapping[str, tuple[LineRecord, ...]]  # oldest first


Find = Callable[[Records], Finding | None]  # None: no record has what the claim needs


@dataclass(frozen=True, slots=True)
class Rule:
    """On which side of a threshold an effect must lie."""

    # Points are hundredths of alpha; of a ratio, effect and threshold are logarithms.
    unit: Literal["points", "ratio", "log odds"]
    side: Literal["<", ">"]
    threshold: float

    def holds(self, estimate: float) -> bool:
        return (estimate > self.threshold) == (self.side == ">")


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence that may be wrong, and the rule that decides it."""

    name: str
    statement: str
    source: Literal["paper", "contested"]  # paper: Ouyang et al. 2024, arXiv 2410.10141
    measured: str
    rule: Rule
    command: str  # that measures it
    find: Find


@dataclass(frozen=True, slots=True)
class LedgerRow:
    claim: Claim
    finding: Finding | None
    p: float | None  # None: not tested
    p_holm: float | None
    verdict: Ruling
