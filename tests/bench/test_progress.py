"""The meter shows totals, the rate of what is new, and the time left."""

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


def a_meter(total: int, unit: str = "tokens", *, terminal: bool = False) -> Meter:
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    return Meter("sampling", total, unit=unit, console=console)


def test_what_was_there_before_gives_no_rate(clock: list[float]) -> None:
    meter = a_meter(10_000)
    meter.show(4_000)
    clock[0] += 30
    meter.show(7_000, "loss 1.5")
    assert lines(meter) == ["sampling  7,000/10,000 tokens  100 tokens/s  loss 1.5  0.5 min elapsed, 0.5 min left"]


def test_a_phase_ends_in_a_line_and_one_with_nothing_to_do_prints_nothing(clock: list[float]) -> None:
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


def test_steps_add_up_under_the_label_of_the_moment(clock: list[float]) -> None:
    meter = a_meter(8, "pairs")
    meter.step(2, label="T=0")  # resumed
    for done in range(6):
        clock[0] += 10
        meter.step(1, f"gamma 1.{done}", label="T=1")
    assert lines(meter) == [
        "T=1  5/8 pairs  gamma 1.2  0.5 min elapsed, 0.5 min left",
        "T=1  8/8 pairs  gamma 1.5",
    ]


def test_the_time_left_counts_work_that_the_total_does_not(clock: list[float]) -> None:
    meter = Meter("", 10, unit="pairs", other=30.0, console=a_meter(10).console)
    meter.step(0, label="grid")
    clock[0] += 60
    meter.also(20.0, label="grid baseline")  # of 40 units of work, 20 took a minute
    meter.skip(5.0)
    clock[0] += 30
    meter.step(5, label="grid T=1")
    assert lines(meter) == [
        "grid baseline  0/10 pairs  1.0 min elapsed, 1.0 min left",
        "grid T=1  5/10 pairs  1.5 min elapsed, 0.6 min left",  # 25 units in 90 s, 10 are left
    ]


def test_a_terminal_gets_a_bar_and_notes_above_it(clock: list[float]) -> None:
    with a_meter(4, "texts", terminal=True) as meter:
        meter.show(0)
        meter.note("one text was too long")
        clock[0] += 2
        meter.show(4, "alpha 0.5")
    shown = "\n".join(lines(meter))
    assert shown.index("one text was too long") < shown.index("4/4 texts  2.0 texts/s  alpha 0.5")


def test_a_closed_meter_draws_again_when_more_is_done(clock: list[float]) -> None:
    meter = a_meter(2, "texts", terminal=True)
    for done in (1, 2):
        meter.show(done)
        meter.close()
        clock[0] += 1
    shown = "\n".join(lines(meter))
    assert shown.index("1/2 texts") < shown.index("2/2 texts")
