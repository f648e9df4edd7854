"""One parser for each kind of value on a command line.

Each takes the name of the option and the given text, and raises ValueError with what was expected and what it got.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
MAX_GRID_POINTS = 1000


def number_of(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"expected a number for {name}, got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number for {name}, got {text!r}")
    return value


def above_0(name: str, text: str) -> float:
    value = number_of(name, text)
    if not value > 0:
        raise ValueError(f"expected {name} > 0, got {text!r}")
    return value


def share_or_none(name: str, text: str) -> float | None:
    """Return a number above 0, or None for "none"."""
    return None if text == "none" else above_0(name, text)


def probability_of(name: str, text: str) -> float:
    value = number_of(name, text)
    if not 0 < value <= 1:
        raise ValueError(f"expected {name} in (0, 1], got {text}")
    return value


def count_of(name: str, text: str, *, least: int = 1) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"expected a whole number for {name}, got {text!r}") from None
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
    return value


def count_or_0(name: str, text: str) -> int:
    return count_of(name, text, least=0)


def counts_of(name: str, text: str) -> tuple[int, ...]:
    """Parse a list such as `1,4,16`."""
    return unique(name, [count_of(name, part) for part in text.split(",")])


def temperature_of(name: str, text: str) -> float:
    value = number_of(name, text)
    if value < 0:
        raise ValueError(f"expected a temperature >= 0 for {name}, got {text!r}")
    return value


def temperatures_of(name: str, text: str) -> tuple[float, ...]:
    """Parse `0,0.5,1` or `first:last:step`, both ends included, into floats without rounding noise."""
    if ":" not in text:
        return unique(name, [temperature_of(name, part) for part in text.split(",")])
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"expected {name} first:last:step or a list such as 0,0.5,1, got {text!r}")
    first, last, step = (temperature_of(name, part) for part in parts)
    if step == 0 or last < first:
        raise ValueError(f"expected {name} first:last:step with first <= last and step > 0, got {text!r}")
    steps = (last - first) / step
    if steps > MAX_GRID_POINTS:  # a typing error such as 0:1:1e-9 would fill the memory
        raise ValueError(f"expected at most {MAX_GRID_POINTS} temperatures, got {text!r}")
    if not math.isclose(steps, round(steps), abs_tol=1e-6):  # the rounding of (1 - 0) / 0.1 is far smaller
        raise ValueError(f"expected a step that reaches the last temperature, got {text!r}")
    return tuple(round(first + step * place, 10) for place in range(round(steps) + 1))


def one_of(*allowed: str) -> Callable[[str, str], str]:
    """Return a parser of these words."""

    def parse(name: str, text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected {name} {', '.join(allowed[:-1])} or {allowed[-1]}, got {text!r}")
        return text

    return parse


def unique(name: str, values: Sequence[T]) -> tuple[T, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"expected each {name} once, got {', '.join(map(str, values))}")
    return tuple(values)
