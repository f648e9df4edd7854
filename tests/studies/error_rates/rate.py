"""One line of the table of error rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a verdict or an interval is wrong."""

    what: str
    case: str
    nominal: str
    before: float | None  # of the rule that was replaced; None: it had no such rule
    after: float


def share(outcomes: Iterable[bool]) -> float:
    """Return the share of outcomes that are true."""
    found = list(outcomes)
    return sum(found) / len(found)
