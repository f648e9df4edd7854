"""Results remembered by the identity of what they were computed from: records are large, never change, and are slow to hash."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")
MOST = 64


def remembered(compute: Callable[[Given], Found]) -> Callable[[Given], Found]:
    """The function, which computes anew only for another object; the latest MOST are kept, and what they were given."""
    known: dict[int, tuple[Given, Found]] = {}

    @wraps(compute)
    def found(given: Given) -> Found:
        key = id(given)  # of an object that is kept, so that no other has it
        if key not in known:
            if len(known) >= MOST:
                del known[next(iter(known))]
            known[key] = given, compute(given)
        return known[key][1]

    return found
