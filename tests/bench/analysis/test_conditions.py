"""Throttling is a fault where it favours an arm or changes during the run, and the load of others is a share of CPU time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.analysis.conditions import mean_load
from bench.analysis.verdict import verdict_of
from bench.records.runs import CellRecord, Conditions, TimedPair
from bench.reporting.captions import caption_facts
from tests.support.record_builder import make_cell, make_record, make_run

CAPPED = ("power cap",)
State = tuple[int, tuple[str, ...]]  # clock and reasons


def on_gpu(state: Callable[[int, str], State]) -> CellRecord:
    """A record of 24 pairs whose arms have the state of their pair and arm."""

    def seen(index: int, pair: TimedPair) -> TimedPair:
        ar, sd = (Conditions(clock_mhz=mhz, throttle=why) for mhz, why in (state(index, "ar"), state(index, "sd")))
        return replace(pair, ar=replace(pair.ar, conditions=ar), sd=replace(pair.sd, conditions=sd))

    record = make_record(make_cell(num_prompts=24))
    return replace(record, pairs=tuple(seen(index, pair) for index, pair in enumerate(record.pairs)))


@pytest.mark.parametrize(
    "state",
    [
        lambda index, arm: (1980, ()),
        lambda index, arm: (1400, CAPPED),  # capped all the time
        lambda index, arm: (1400 + 20 * (arm == "sd"), CAPPED),
        lambda index, arm: (1400, CAPPED if arm == "sd" and index < 4 else ()),  # by chance: p = 1 / 8
        lambda index, arm: (1500 - 3 * index, CAPPED),
    ],
    ids=["free", "capped", "1 % apart", "four calls", "4 % lower in the end"],
)
def test_a_gpu_that_is_throttled_steadily_and_alike_is_valid(state: Callable[[int, str], State]) -> None:
    record = on_gpu(state)
    assert verdict_of(record, make_run([record])).valid


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (lambda index, arm: (1400 - 60 * (arm == "sd"), ()), "the GPU ran at 1400 MHz in AR and at 1340 MHz in SD"),
        (
            lambda index, arm: (1400, CAPPED if arm == "sd" and index < 8 else ()),  # p = 1 / 128
            "the GPU was throttled in 0 of 24 calls of AR and in 8 of SD",
        ),
        (lambda index, arm: (1980 if index < 12 else 1800, CAPPED), "the clock of the GPU fell from 1980 to 1800 MHz"),
    ],
)
def test_throttling_of_one_arm_or_of_the_end_is_invalid(state: Callable[[int, str], State], reason: str) -> None:
    record = on_gpu(state)
    verdict = verdict_of(record, make_run([record]))
    assert (verdict.label, verdict.reasons) == ("INVALID", (reason,))


def test_the_load_of_others_is_a_ratio_of_totals_and_stands_in_the_caption() -> None:
    record = make_record()
    assert mean_load(make_run([record])) == {}
    assert "other load" not in caption_facts(make_run([record]))
    first, second, *others = record.pairs
    loaded = (
        replace(first, ar=replace(first.ar, conditions=Conditions(cpu_s=1.0, steal_s=0.1, others_s=0.5))),
        replace(second, sd=replace(second.sd, conditions=Conditions(cpu_s=3.0, steal_s=0.0, others_s=0.5))),
    )
    run = make_run([replace(record, pairs=(*loaded, *others))])
    assert mean_load(run) == pytest.approx({"steal": 0.025, "other processes": 0.25})
    assert caption_facts(run)["other load"] == "steal 2.5%, other processes 25.0% of the CPU time of timed calls"
