"""The meter's lines: totals, a rate of what is new, time left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench import progress
from bench.progress import Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(meter: Meter) -> list[str]:
    file = meter.console.file
    assert isinstance(file, io.StringIO)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def a_meter(total: int, unit: str = "tokens") -> Meter:
    return Meter("sampling", total, unit=unit, console=Console(file=io.StringIO(), width=200))


def test_what_was_there_before_gives_no_rate(clock: list[float]) -> None:
    meter = a_meter(10_000)
    meter.show(4_000)
    clock[0] += 30
    meter.show(7_000, "loss 1.5")
    assert lines(meter) == ["sampling  7,000/10,000 tokens  100 tokens/s  loss 1.5  0 min left"]


def test_a_phase_ends_in_a_line_and_one_with_nothing_to_do_says_nothing(clock: list[float]) -> None:
    done, nothing = a_meter(6, "texts"), a_meter(6, "texts")
    done.show(0)
    clock[0] += 2
    done.show(6)
    assert lines(done) == ["sampling  6/6 texts  3.0 texts/s"]
    nothing.show(6)
    assert lines(nothing) == []


def test_lines_come_at_most_every_20_seconds(clock: list[float]) -> None:
    meter = a_meter(1_000_000)
    for done in range(100):
        meter.show(done)
        clock[0] += 1
    assert len(lines(meter)) == 4
