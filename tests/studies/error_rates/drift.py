"""Machines that drift, slow down or are power-capped: how often do order, warm-up and the check of throttling mislead?

The old order measured cell after cell, by temperature. The old warm-up accepted every series that did not get faster. The old
check made a record INVALID for a single reason of throttling.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from scipy.stats import ttest_rel

from bench.analysis.conditions import throttling_faults
from bench.measurement import timing
from bench.measurement.rotation import visit_lot
from bench.records.decoding import DecodeRequest
from bench.records.runs import CellRecord, Conditions
from tests.studies.error_rates.rate import Rate, share
from tests.support.fakes import AsynchronousFake, FakeClock
from tests.support.record_builder import make_cell, make_record

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_PROMPTS = 12
CALL_NOISE = 0.03  # of log seconds


def rows(num: int) -> Iterator[Rate]:
    for drift in (0.05, 0.2):
        before, after = (share(_differ(seed, drift, in_turn=in_turn) for seed in range(num)) for in_turn in (False, True))
        case = f"the machine slows by {drift:.0%} during 5 temperatures on 12 prompts"
        yield Rate("seconds of AR at T = 0 and 1 differ although alike", case, "5 %", before, after)
    for what, wanted, trend, noise in (
        ("a steady warm-up never settles", False, 0.0, 0.05),
        ("a steady warm-up never settles", False, 0.0, 0.2),
        ("a warm-up that slows is settled", True, 0.05, 0.02),
    ):
        both = [_settled(seed, trend, noise) for seed in range(num)]
        before, after = (share(found == wanted for found in column) for column in zip(*both, strict=True))
        case = f"{trend:.0%} slower each step, {noise:.0%} noise of a step"
        yield Rate(what, case, "0 %", before, after)
    for probability in (0.02, 0.5, 1.0):
        records = [_capped(seed, probability) for seed in range(num)]
        before = share(
            any(c is not None and c.throttle for p in r.pairs for c in (p.ar.conditions, p.sd.conditions)) for r in records
        )
        case = f"the power cap in {probability:.0%} of the calls of both arms, 24 pairs"
        yield Rate("a GPU at its power cap is INVALID", case, "1 %", before, share(any(throttling_faults(r)) for r in records))


def _differ(seed: int, drift: float, *, in_turn: bool) -> bool:
    """Return whether a paired t test over prompts finds a difference between the coldest and the hottest cell."""
    cells = [make_cell(temperature=temperature, num_prompts=NUM_PROMPTS, seed=seed) for temperature in TEMPERATURES]
    visits = [(index, cell) for cell in cells for index in range(NUM_PROMPTS)]
    if in_turn:
        visits.sort(key=lambda visit: (visit[0], visit_lot(visit[1], visit[0])))
    noise = np.random.default_rng(seed).normal(0, CALL_NOISE, len(visits))
    logs = {
        (cell.temperature, index): math.log(1 + drift * place / len(visits)) + noise[place]
        for place, (index, cell) in enumerate(visits)
    }
    cold, hot = ([logs[temperature, index] for index in range(NUM_PROMPTS)] for temperature in (0.0, 1.0))
    return bool(ttest_rel(cold, hot).pvalue < 0.05)


def _settled(seed: int, trend: float, noise: float) -> tuple[bool, bool]:
    """Return whether the old and today's rule call a warm-up settled."""
    stream = random.Random(seed)
    steps = [(1 + trend) ** step * stream.lognormvariate(0, noise) for step in range(timing.WARMUP_MAX_STEPS)]
    clock = FakeClock()
    backend = AsynchronousFake(clock, slowness=lambda call: steps[call // 2])
    request = DecodeRequest(prompt_ids=(1,), max_new_tokens=10, num_draft_tokens=1, seed=0)
    return _old_rule(steps), timing.warm_up(backend, request, clock=clock)[1]


def _old_rule(steps: list[float]) -> bool:
    window: Callable[[int], float] = lambda end: statistics.median(steps[end - timing.WARMUP_WINDOW : end])  # noqa: E731
    ends = range(2 * timing.WARMUP_WINDOW, len(steps) + 1)
    return any(window(end) > window(end - timing.WARMUP_WINDOW) * (1 - timing.WARMUP_TREND) for end in ends)


def _capped(seed: int, probability: float) -> CellRecord:
    """Return a record whose arms reach the power cap with the same probability, at nearly the same clock."""
    stream = random.Random(seed)

    def seen() -> Conditions:
        return Conditions(clock_mhz=stream.randint(1380, 1420), throttle=("power cap",) * (stream.random() < probability))

    record = make_record(make_cell(num_prompts=24))
    pairs = [replace(p, ar=replace(p.ar, conditions=seen()), sd=replace(p.sd, conditions=seen())) for p in record.pairs]
    return replace(record, pairs=tuple(pairs))
