"""Reads the options of a backend (`--backend-option name=value`) into the frozen dataclass that declares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, get_args, get_type_hints

import msgspec

T = TypeVar("T")


def parse_options(kind: type[T], given: Mapping[str, str], *, backend: str) -> T:
    """Return options of this kind: each is a Literal of strings, or a number above 0. Raises: ValueError: one does not fit."""
    hints = get_type_hints(kind)
    if unknown := sorted(set(given) - set(hints)):
        raise ValueError(f"backend {backend} takes the options {', '.join(hints)}; got {', '.join(unknown)}")
    values = {}
    for name, text in given.items():
        allowed = get_args(hints[name])  # of a Literal; empty for a number
        try:
            value = msgspec.convert(text, hints[name], strict=False)
            fits = bool(allowed) or value > 0
        except msgspec.ValidationError:
            fits = False
        if not fits:
            expected = " or ".join(allowed) or "a number above 0"
            raise ValueError(f"backend {backend}: expected {expected} for {name}, got {text!r}")
        values[name] = value
    return kind(**values)
