"""The table of the suite `distill_speed`: tokens per second of our training against TRL's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.records.distill_speed import ArmRun, TrainingRound, load_rounds
from bench.records.marks import NO_MARKS, Marks
from bench.reporting.numbers import interval_text
from bench.reporting.table import Page, Table, table_of, with_mark
from bench.statistics.intervals import Interval, ratio_of_totals

TRL = "trl"
REQUIRED = {"target_in_step": 1.5, "target_cached": 3.0}  # multiple of TRL's tokens/s


def speed_up(rounds: Sequence[TrainingRound], name: str) -> Interval:
    """Return TRL's seconds per token / the arm's: ratio of totals, interval over rounds."""
    their_s, their_tokens, our_s, our_tokens = (
        [getattr(each.runs[arm], field) for each in rounds] for arm in (TRL, name) for field in ("seconds", "num_tokens")
    )
    return ratio_of_totals(their_s, their_tokens, our_s, our_tokens, range(len(rounds)))


def table(rounds: Sequence[TrainingRound]) -> Table:
    """Return one row for each of our ways to train."""
    theirs = [each.runs[TRL] for each in rounds]
    lines = []
    for name, required in REQUIRED.items():
        runs, ratio = [each.runs[name] for each in rounds], speed_up(rounds, name)
        of_speeds = interval_text(ratio, digits=2)
        speeds = (f"{_tokens_per_s(runs):.0f}", f"{_tokens_per_s(theirs):.0f}", of_speeds, f">= {required:g}")
        lines.append((name, *speeds, f"{_peak_gib(runs):.2f}", f"{_peak_gib(theirs):.2f}"))
    headers = ("row", "tokens/s", "TRL's\ntokens/s", "ratio [95 %]", "required", "peak GiB", "TRL's\npeak GiB")
    facts = {
        "tokens/s": f"answer tokens trained on per second, in {len(rounds)} rounds of every arm",
        "ratio": "seconds per token of TRL's GKDTrainer / ours; interval over rounds",
        "target_cached": "the target's one forward over the data, and all epochs after it",
    }
    return table_of("training against TRL", headers, lines, facts)


def _tokens_per_s(runs: Sequence[ArmRun]) -> float:
    return sum(run.num_tokens for run in runs) / sum(run.seconds for run in runs)


def _peak_gib(runs: Sequence[ArmRun]) -> float:
    return max(run.peak_bytes for run in runs) / 2**30


def derived(records: Sequence[Path], marks: Marks = NO_MARKS) -> Page:
    """Return the table of the newest record."""
    return Page((with_mark(table(load_rounds(records[-1])), marks.of([str(records[-1])])),), {})
