"""TODO: purpose."""

from __future__ import annotations

import math
from typing import TypeVar

T = TypeVar("T")
MAX_GRID_POINTS = 1000


def parse_temperatures(text: str, option: str = "--temperatures") -> tuple[float, ...]:
    """`0,0.5,1` or `first:last:step`, both ends included, as floats without rounding noise.

    Raises: ValueError: not numbers, negative, not finite, repeated, or a range that does not step from first to last.
    """
    if ":" not in text:
        return unique(option, [_temperature(option, part) for part in text.split(",")])
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"expected {option} first:last:step or a list such as 0,0.5,1, got {text!r}")
    first, last, step = (_temperature(option, part) for part in parts)
    if step == 0 or last < first:
        raise ValueError(f"expected {option} first:last:step with first <= last and step > 0, got {text!r}")
    steps = (last - first) / step
    if steps > MAX_GRID_POINTS:
        raise ValueError(f"expected at most {MAX_GRID_POINTS} temperatures, got {text!r}")
    if not math.isclose(steps, round(steps), abs_tol=1e-6):
        raise ValueError(f"expected a step that reaches the last temperature, got {text!r}")
    return tuple(round(first + step * place, 10) for place in range(round(steps) + 1))


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


def _temperature(name: str, text: str) -> float:
    value = number_of(name, text)
    if value < 0:
        raise ValueError(f"expected a temperature >= 0 for {name}, got {text!r}")
    return value


def count_of(name: str, text: str | None, *, least: int = 1, default: int = 0) -> int:
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"expected a whole number for {name}, got {text!r}") from None
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
    return value


def unique(name: str, values: list[T]) -> tuple[T, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"expected each {name} once, got {', '.join(map(str, values))}")
    return tuple(values)
