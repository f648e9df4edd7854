"""The table of the suite `distill_speed`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.records.distill_speed import ArmRun, TrainingRound
from bench.reporting.suites.distill_speed import speed_up, table

RUN = ArmRun(
    seconds=10.0,
    filling_s=0.0,
    num_tokens=1000,
    num_steps=4,
    first_loss=2.0,
    mean_loss=1.9,
    start_bytes=2**29,
    peak_bytes=2**31,
    num_threads=2,
)


def made_up_round(*, factor: float = 1.0) -> TrainingRound:
    runs = {
        "trl": replace(RUN, seconds=factor * 10.0),
        "target_in_step": replace(RUN, seconds=factor * 5.0),
        "target_cached": replace(RUN, seconds=factor * 2.5, filling_s=1.0, peak_bytes=2**30),
    }
    return TrainingRound(tuple(runs), runs)


def test_the_ratio_is_trls_seconds_per_token_over_ours() -> None:
    rounds = [made_up_round(), made_up_round(factor=1.2), made_up_round(factor=0.9)]
    assert speed_up(rounds, "target_in_step").estimate == pytest.approx(2.0)
    cached = speed_up(rounds, "target_cached")
    assert cached.estimate == pytest.approx(4.0)
    assert cached.low == pytest.approx(cached.high)  # a round that is slow throughout moves no ratio


def test_the_table_holds_both_rows_with_rates_and_memory() -> None:
    lines = [[entry.text for entry in line] for line in table([made_up_round(), made_up_round()]).body]
    assert lines == [
        ["target_in_step", "200", "100", "2.00 [2.00, 2.00]", ">= 1.5", "2.00", "2.00"],
        ["target_cached", "400", "100", "4.00 [4.00, 4.00]", ">= 3", "1.00", "2.00"],
    ]
