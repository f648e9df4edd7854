"""TODO: purpose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bench.analysis import metrics
from bench.analysis.metrics import ROUND_PHASES, round_costs
from bench.analysis.rows import Row, identity, scalar_text
from bench.reporting import tables
from bench.reporting.captions import suite_title
from bench.reporting.table import Entry, Table
from bench.reporting.tables import valid_rows


def cost_table(rows: Sequence[Row]) -> Table:
    """Seconds per token = seconds per round / tokens per round, so logs of the two parts add up to the slow-down."""
    varying = tables.split_identity(rows)[0]
    body = []
    for group in _groups(valid_rows(rows), without="temperature"):
        measured = [(row, costs) for row in group if (costs := round_costs(row.record)) is not None]
        for row, costs in measured:
            own, coldest = _per_round(row, costs), _per_round(*measured[0])
            slower = math.log(own[0] / own[1] * coldest[1] / coldest[0])
            fewer, dearer = math.log(coldest[1] / own[1]), math.log(own[0] / coldest[0])
            texts = [scalar_text(name, identity(row).get(name)) for name in varying]
            texts += [f"{1000 * costs[name]:.2f}" for name in ROUND_PHASES]
            texts += [f"{1000 * own[0]:.2f}", f"{own[1]:.2f}", f"{1000 * own[0] / own[1]:.2f}"]
            texts += [_percent(slower), _percent(fewer), _percent(dearer)]
            body.append(tuple(map(Entry, texts)))
    headers = (
        *varying,
        *(f"{name}\nms/round" for name in ROUND_PHASES),
        *("all\nms/round", "tokens\n/ round", "SD\nms/token"),
        *("slower than\ncoldest", "of it: fewer\ntokens a round", "of it:\ndearer rounds"),
    )
    facts = {
        "seconds": "of the replays, synchronised at every phase: a round costs more there than in the timed arm",
        "slower": "logarithm of seconds per token over those of the coldest row, in hundredths; the two parts add up to it",
    }
    return Table(f"{suite_title(rows)}: why it is slower", headers, tuple(body), (), facts, {})


def _per_round(row: Row, costs: Mapping[str, float]) -> tuple[float, float]:
    """Seconds and tokens of a round."""
    efficiency = metrics.block_efficiency(row.record)
    return sum(costs.values()), efficiency.estimate if efficiency else math.nan


def _groups(rows: Sequence[Row], *, without: str) -> list[list[Row]]:
    """Rows that differ in nothing but one name, in ascending order of it."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        values = identity(row)
        rest = {name: value for name, value in values.items() if name not in (without, "draft_temperature")}
        groups.setdefault(tuple(rest.items()), []).append(row)
    return [sorted(group, key=lambda row: float(str(identity(row)[without]))) for group in groups.values()]


def _percent(log_ratio: float) -> str:
    return f"{100 * log_ratio:+.1f}"
