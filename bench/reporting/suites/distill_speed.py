"""The table of the suite distill_speed: tokens per second of our training against TRL's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from bench.records.distill_speed import ArmRun, TrainingRound, load_rounds
from bench.reporting.table import Page
from bench.statistics.intervals import RatioInterval, ratio_of_totals

TRL = "trl"
WANTED = {"target_in_step": 1.5, "target_cached": 3.0}  # required multiple of TRL's tokens/s


def speed_up(rounds: Sequence[TrainingRound], name: str) -> RatioInterval:
    """TRL's seconds per token / the arm's: ratio of totals, interval over rounds."""
    theirs, ours = ([each.runs[arm] for each in rounds] for arm in (TRL, name))
    return ratio_of_totals(
        [run.seconds for run in theirs],
        [run.num_tokens for run in theirs],
        [run.seconds for run in ours],
        [run.num_tokens for run in ours],
        range(len(rounds)),
    )


def table(rounds: Sequence[TrainingRound]) -> str:
    """Markdown: a row for each way of ours."""
    headers = ("row", "tokens/s", "TRL's", "ratio [95 %]", "wanted", "peak GiB", "TRL's")
    theirs = [each.runs[TRL] for each in rounds]
    rows = []
    for name, wanted in WANTED.items():
        runs = [each.runs[name] for each in rounds]
        ratio = speed_up(rounds, name)
        rows.append(
            (
                name,
                f"{_tokens_per_s(runs):.0f}",
                f"{_tokens_per_s(theirs):.0f}",
                f"{ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
                f">= {wanted:g}",
                f"{_peak_gib(runs):.2f}",
                f"{_peak_gib(theirs):.2f}",
            )
        )
    caption = (
        f"Answer tokens/s of KD training, {len(rounds)} rounds; ratio = seconds per token of TRL's GKDTrainer / ours. "
        "target_cached: the target's one forward over the text and all epochs after it."
    )
    return f"{caption}\n\n{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}"


def _tokens_per_s(runs: Sequence[ArmRun]) -> float:
    return sum(run.num_tokens for run in runs) / sum(run.seconds for run in runs)


def _peak_gib(runs: Sequence[ArmRun]) -> float:
    return max(run.peak_bytes for run in runs) / 2**30


def derived(records: Sequence[Path]) -> Page:
    """Of the newest record, for `specheat tables`."""
    return Page(table(load_rounds(records[-1])), {})
