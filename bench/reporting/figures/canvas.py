"""The frame, the style and the file format of every figure.

The same records give the same bytes: no dates, a fixed hash salt, text as paths of a font that matplotlib ships, and none of
the user's own settings. Sizes are in inches.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from bench.errors import BackendUnavailable
from bench.reporting.table import DERIVED
from bench.statistics.intervals import Interval

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
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "legend.fontsize": 8,
    "savefig.dpi": 150,
}
_METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}  # nothing that differs between two drawings
_CAPTION_COLUMNS, _CAPTION_LINE = 124, 0.14  # characters on a line of the caption, and the height of a line
WIDTH = 7.2
_mark = ContextVar("_mark", default="")
LEFT = 0.08  # where axes begin, as a share of the width


def drawn(draw: Callable[[], Any], file_format: str = "svg") -> bytes:
    """Draw a figure in our style, whatever the user's settings, and return it as a file that is the same each time.

    Raises:  BackendUnavailable: matplotlib is missing
    """
    try:
        from matplotlib import style
    except ImportError:
        raise BackendUnavailable("figures need matplotlib: pip install -e '.[figures]'") from None
    stream = io.BytesIO()
    with style.context(["default", _STYLE]):  # "default" undoes the user's matplotlibrc
        draw().savefig(stream, format=file_format, metadata=_METADATA[file_format] | {"Description": DERIVED})
    return stream.getvalue()


@contextmanager
def marked(sentence: str) -> Iterator[None]:
    """Let the captions of the figures that are drawn in this context end with what must be said of a record."""
    token = _mark.set(sentence)
    try:
        yield
    finally:
        _mark.reset(token)


def frame(caption: str, *, body: float, below: float, above: float = 0.2, right: float = 0.98, **between: float) -> Any:
    """Return an empty figure as wide as a page, with its caption at the foot.

    Args:    body: height of the axes; above: for titles; below: for labels and a legend, between the axes and the caption
             right: where axes end, as a share of the width; between: wspace and hspace of matplotlib
    """
    from matplotlib.figure import Figure

    lines = textwrap.wrap(f"{caption} {_mark.get()}", _CAPTION_COLUMNS)
    below += _CAPTION_LINE * len(lines)
    height = above + body + below
    figure = Figure(figsize=(WIDTH, height))
    figure.text(0.02, 0.08 / height, "\n".join(lines), fontsize=7, va="bottom", linespacing=1.3)
    figure.subplots_adjust(LEFT, below / height, right, 1 - above / height, **between)
    return figure


def legend_below(figure: Any, distance: float, *handles: Any, **looks: Any) -> None:
    """Add a legend so far below the axes."""
    height = figure.subplotpars.bottom - distance / figure.get_figheight()
    figure.legend(*handles, loc="upper left", bbox_to_anchor=(LEFT, height), borderaxespad=0, **looks)


def legend_beside(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)


def bars(axes: Any, points: Sequence[tuple[float, Interval]], **looks: Any) -> None:
    """Draw estimates with their intervals over x. An interval without an end, as with one prompt, is not drawn."""
    finite = [found if math.isfinite(found.high) else None for _, found in points]
    low = [found.estimate - found.low if found else 0.0 for found in finite]
    high = [found.high - found.estimate if found else 0.0 for found in finite]
    axes.errorbar([x for x, _ in points], [found.estimate for _, found in points], yerr=(low, high), **looks)


def look(number: int) -> dict[str, str]:
    """Return colour, marker and line style of a series; markers alone tell seven apart."""
    index = number % len(_COLOURS)
    return {"color": _COLOURS[index], "marker": _MARKERS[index], "linestyle": _LINES[number // len(_COLOURS) % len(_LINES)]}
