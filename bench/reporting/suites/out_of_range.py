"""The table of the suite `out_of_range`: is the output at high temperatures still text?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.analysis.rows import Row
from bench.records.runs import TimedArm
from bench.reporting.columns import Column
from bench.reporting.table import MISSING, Table
from bench.reporting.tables import row_table

REPEATED = 4  # tokens of a repeat


def repeated_share(token_ids: Sequence[int], length: int = REPEATED) -> float | None:
    """Return the share of `length`-grams that occurred earlier in the same output; None if it is too short to repeat one."""
    grams = [tuple(token_ids[start : start + length]) for start in range(len(token_ids) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else None


def degeneracy_table(rows: Sequence[Row]) -> Table:
    facts = {
        f"repeated {REPEATED}-grams": "share that occurred earlier in the same output: near 1 is a loop, as in greedy output",
        "distinct tokens": "different tokens / tokens of an output: near 1 is word salad",
        "ended by itself": "share of outputs with an end token before the limit; gibberish does not end",
    }
    columns = [
        Column(f"{arm} {header}", f"{arm.upper()} {header}", _mean_of(arm, value, form))
        for arm in ("ar", "sd")
        for header, value, form in _MEASURES
    ]
    return row_table(rows, "is this still text?", columns, facts)


def _mean_of(arm: str, value: Callable[[TimedArm], float | None], form: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        values = [found for pair in row.record.pairs if (found := value(getattr(pair, arm))) is not None]
        return format(sum(values) / len(values), form) if values else MISSING

    return text


_MEASURES: tuple[tuple[str, Callable[[TimedArm], float | None], str], ...] = (
    (f"repeated\n{REPEATED}-grams", lambda arm: repeated_share(arm.token_ids), ".1%"),
    ("distinct\ntokens", lambda arm: len(set(arm.token_ids)) / len(arm.token_ids), ".1%"),
    ("ended by\nitself", lambda arm: arm.finish_reason == "stop", ".0%"),
    ("tokens\n/ output", lambda arm: len(arm.token_ids), ".0f"),
)
