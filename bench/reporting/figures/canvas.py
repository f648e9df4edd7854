"""TODO: purpose."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.errors import BackendUnavailable
from bench.reporting import table

FORMATS = ("svg", "png")

# Okabe and Ito's colours, dark ones first; yellow is left out because it vanishes on white.
_COLOURS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "os^Dv<>"  # as many as colours, so that grey prints tell lines apart
_LINES = ("-", "-.", ":")  # a new one for every round of colours; "--" is kept for what is predicted
_STYLE = {
    "svg.hashsalt": "specheat",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 150,
}
_METADATA = {
    "svg": {"Date": None, "Creator": None, "Description": table.DERIVED},
    "png": {"Software": None, "Description": table.DERIVED},
}
_CAPTION_COLUMNS = 124
WIDTH = 7.2  # inches


@contextmanager
def our_style() -> Iterator[None]:
    """Within it figures look like ours, whatever the user's settings.

    Raises:  BackendUnavailable: matplotlib is missing
    """
    try:
        from matplotlib import style
    except ImportError:
        raise BackendUnavailable("figures need matplotlib: pip install -e '.[figures]'") from None
    with style.context(["default", _STYLE]):
        yield


def saved(figure: Any, file_format: str) -> bytes:
    """A matplotlib figure as a file that is the same whenever it is drawn again."""
    stream = io.BytesIO()
    figure.savefig(stream, format=file_format, metadata=_METADATA[file_format])
    return stream.getvalue()


def blank(height: float, caption: str) -> Any:
    """A figure as wide as a page with a caption at its foot; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    figure.text(0.02, 0.08 / height, caption, fontsize=7, va="bottom", linespacing=1.3)
    return figure


def wrapped(caption: str) -> str:
    """Broken into lines of the width of a figure."""
    return "\n".join(textwrap.wrap(caption, _CAPTION_COLUMNS))


def caption_height(caption: str) -> float:
    """Inches that its lines take."""
    return 0.14 * (caption.count("\n") + 1)


def look(number: int) -> dict[str, str]:
    """Colour, marker and line style of a series; markers alone tell seven apart."""
    index = number % len(_COLOURS)
    return {
        "color": _COLOURS[index],
        "marker": _MARKERS[index],
        "linestyle": _LINES[number // len(_COLOURS) % len(_LINES)],
    }
