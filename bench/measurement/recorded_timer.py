"""A timer for pytest-benchmark that repeats seconds which were measured earlier.

Cells are measured together, most of them before their tests begin. Each test then passes its seconds to pytest-benchmark, so
that --benchmark-autosave, compare and the histogram work as for any other benchmark.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

_queued: deque[float] = deque()


def timer() -> float:
    """Return the next queued moment; without one, time.perf_counter."""
    return _queued.popleft() if _queued else time.perf_counter()


def repeat(benchmark: Any, seconds: Sequence[float]) -> None:
    """Pass one round of each duration to pytest-benchmark's fixture, whose timer must be the one above."""
    _queued.extend(moment for duration in seconds for moment in (0.0, duration))  # a round reads the timer twice
    try:
        benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=1)
    finally:
        _queued.clear()
