"""Specheat's harness: measures gamma and alpha of speculative decoding. Imports neither torch nor an engine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.pair_frame import frame as frame


def __getattr__(name: str) -> Any:
    """`bench.frame`, for notebooks; looked up when it is asked for, because it needs pandas."""
    if name != "frame":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench.pair_frame import frame

    return frame
