"""Specheat's harness: measures gamma and alpha of speculative decoding. Imports neither torch nor an engine."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return `bench.frame`, for notebooks. It is imported on first use, because it needs pandas."""
    if name != "frame":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench.reporting.export.frame import frame

    return frame
