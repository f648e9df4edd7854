"""TODO: purpose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.analysis.rows import Row, identity, scalar_text
from bench.records.runs import TimedArm
from bench.reporting import tables
from bench.reporting.captions import suite_title
from bench.reporting.table import MISSING, Entry, Table

REPEATED = 4  # tokens of a repeat


# Out of range
def repeated_share(token_ids: Sequence[int], length: int = REPEATED) -> float | None:
    """Share of a text's `length`-grams that stood in it before; None for a text too short to repeat one."""
    grams = [tuple(token_ids[start : start + length]) for start in range(len(token_ids) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else None


def degeneracy_table(rows: Sequence[Row]) -> Table:
    varying = tables.split_identity(rows)[0]
    body = []
    for row in rows:
        texts = [scalar_text(name, identity(row).get(name)) for name in varying]
        for arm in ("ar", "sd"):
            texts += _degeneracy([getattr(pair, arm) for pair in row.record.pairs])
        body.append(tuple(map(Entry, texts)))
    columns = (f"repeated\n{REPEATED}-grams", "distinct\ntokens", "ended by\nitself", "tokens\n/ text")
    headers = (*varying, *(f"{arm} {column}" for arm in ("AR", "SD") for column in columns))
    facts = {
        f"repeated {REPEATED}-grams": "share that stood in the same text before: near 1 is a loop, as greedy text tends to be",
        "distinct tokens": "different tokens / tokens of a text: near 1 is word salad",
        "ended by itself": "share of texts with an end token before the limit; gibberish does not end",
    }
    return Table(f"{suite_title(rows)}: are these still texts?", headers, tuple(body), (), facts, {})


def _degeneracy(arms: Sequence[TimedArm]) -> Iterator[str]:
    repeated = [share for arm in arms if (share := repeated_share(arm.token_ids)) is not None]
    yield f"{_mean(repeated):.1%}" if repeated else MISSING
    yield f"{_mean([len(set(arm.token_ids)) / len(arm.token_ids) for arm in arms]):.1%}" if arms else MISSING
    yield f"{_mean([arm.finish_reason == 'stop' for arm in arms]):.0%}" if arms else MISSING
    yield f"{_mean([len(arm.token_ids) for arm in arms]):.0f}" if arms else MISSING


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
