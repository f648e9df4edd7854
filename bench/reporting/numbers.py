"""How numbers are printed: one function for each kind of number, and MISSING for one that is not there.

Digits end where the 95 % interval makes them meaningless. The half-width keeps two digits if it starts with 1, else one.
"""

from __future__ import annotations

import math

from bench.reporting.table import MISSING
from bench.statistics.intervals import Interval

_MAX_DECIMALS = 3
_MAX_LOG = 700.0  # e to this power is still a float


def decimals(interval: Interval | None, *, scale: float = 1.0) -> int:
    """Return how many digits after the point an interval leaves meaningful: 2 for a half-width of 0.14, 1 for 0.3."""
    half_width = scale * interval.half_width if interval is not None else 0.0
    if not 0 < half_width < math.inf:
        return 2
    # Halved, a width that starts with 1 has one power of ten less, and so keeps one more digit.
    return min(max(0, -math.floor(math.log10(half_width / 2))), _MAX_DECIMALS)


def interval_text(interval: Interval | None, digits: int | None = None) -> str:
    """Return an estimate with its interval: 1.083 in 1.05 to 1.12 is "1.08 [1.05, 1.12]"; digits None: the meaningful ones."""
    if interval is None:
        return MISSING
    digits = decimals(interval) if digits is None else digits
    low, estimate, high = (
        "∞" if math.isinf(value) else f"{value:.{digits}f}" for value in (interval.low, interval.estimate, interval.high)
    )
    return f"{estimate} [{low}, {high}]"


def plus_minus_text(interval: Interval | None, form: str, *, scale: float = 1.0) -> str:
    """Return an estimate with the half-width of its interval, such as "+0.12 ± 0.03"; alone if the interval has no ends."""
    if interval is None or math.isnan(interval.estimate):
        return MISSING
    width, unsigned = scale * interval.half_width, form.removeprefix("+")
    return f"{scale * interval.estimate:{form}}" + (f" ± {width:{unsigned}}" if math.isfinite(width) else "")


def point_text(interval: Interval | None, *, scale: float = 1.0) -> str:
    """Return the estimate alone, to the digits of its interval."""
    return MISSING if interval is None else f"{interval.estimate * scale:.{decimals(interval, scale=scale)}f}"


def milliseconds_text(seconds: Interval | None) -> str:
    return point_text(seconds, scale=1000)


def exp(value: float) -> float:
    """Return e to a power that may be larger than a float can hold, as the end of a wide interval of a logarithm is."""
    return math.exp(min(value, _MAX_LOG))


def percent_text(share: float | None) -> str:
    return MISSING if share is None else f"{share:.1%}"


def number_text(value: float | None, num_decimals: int, *, scale: float = 1.0) -> str:
    return MISSING if value is None else f"{scale * value:.{num_decimals}f}"
