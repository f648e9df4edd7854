"""TODO: purpose."""

from __future__ import annotations

import math

from bench.reporting.table import MISSING
from bench.statistics.intervals import RatioInterval

_MAX_DECIMALS = 3


# Numbers
def decimals(interval: RatioInterval | None, *, scale: float = 1.0) -> int:
    """Digits behind the point that an interval leaves meaningful."""
    half_width = scale * (interval.high - interval.low) / 2 if interval is not None else 0.0
    if not 0 < half_width < math.inf:
        return 2
    return min(max(0, -math.floor(math.log10(half_width / 2))), _MAX_DECIMALS)


def interval_text(interval: RatioInterval | None) -> str:
    """1.083 in 1.05 to 1.12 is "1.08 [1.05, 1.12]"."""
    if interval is None:
        return MISSING
    low, estimate, high = (
        "∞" if math.isinf(value) else f"{value:.{decimals(interval)}f}"
        for value in (interval.low, interval.estimate, interval.high)
    )
    return f"{estimate} [{low}, {high}]"


def point_text(interval: RatioInterval | None, *, scale: float = 1.0) -> str:
    """The estimate alone, to the digits of its interval."""
    return MISSING if interval is None else f"{interval.estimate * scale:.{decimals(interval, scale=scale)}f}"


def percent_text(share: float | None) -> str:
    return MISSING if share is None else f"{share:.1%}"


def number_text(value: float | None, num_decimals: int) -> str:
    return MISSING if value is None else f"{value:.{num_decimals}f}"
