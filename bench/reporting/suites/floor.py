"""TODO: purpose."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, scalar_text
from bench.reporting import tables
from bench.reporting.captions import suite_title
from bench.reporting.table import MISSING, Entry, Table
from bench.reporting.tables import valid_rows

FORWARDS: tuple[metrics.Forward, ...] = ("ar", "draft", "verify")


# Floor
def floor_table(rows: Sequence[Row]) -> Table:
    """How far each forward is from its linear layers alone, and each arm from its forwards."""
    varying = tables.split_identity(rows)[0]
    body = []
    for row in valid_rows(rows):
        record = row.record
        if metrics.floor_seconds(record, "ar") is None:
            continue
        texts = [scalar_text(name, identity(row).get(name)) for name in varying]
        for forward in FORWARDS:
            seconds, over = metrics.floor_seconds(record, forward), metrics.over_floor(record, forward)
            texts += [MISSING, MISSING] if seconds is None or over is None else [f"{1000 * seconds:.2f}", f"{over:.2f}"]
        arm, floor_s = metrics.seconds_per_token(record, "ar"), metrics.floor_seconds(record, "ar")
        texts.append(f"{arm.estimate / floor_s:.2f}" if arm and floor_s else MISSING)
        measured, predicted = metrics.gamma(record), metrics.predicted_gamma(record)
        texts.append(f"{measured.estimate / predicted:.2f}" if measured and predicted else MISSING)
        body.append(tuple(map(Entry, texts)))
    headers = (
        *varying,
        *(header for name in FORWARDS for header in (f"{name} floor\nms", f"{name} forward\n/ floor")),
        "AR token\n/ floor",
        "gamma measured\n/ predicted",
    )
    facts = {
        "floor": "the linear layers of one forward alone, timed beside it: every weight is read once",
        "forward / floor": "median over the samples of a bare forward and its floor",
        "AR token / floor": "seconds per token of the timed AR arm, sampling and loop included",
        "gamma measured / predicted": "what is left of the gamma that bare forwards and block efficiency would give",
    }
    return Table(f"{suite_title(rows)}: above the floor", headers, tuple(body), (), facts, {})
