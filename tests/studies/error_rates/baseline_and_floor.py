"""A weak baseline, a sound one, and a biased A/A floor: how often do they lead to a wrong verdict on gamma?

Prompts differ in gamma. Each text has noise in its seconds. The old rule compared the point estimate of AR / native with
the A/A floor, and its floor was the half-width of the A/A interval alone, however wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bench.analysis.verdict import is_weak, judged_gamma
from bench.statistics import intervals
from bench.statistics.intervals import Array, Interval
from tests.studies.error_rates.rate import Rate

NUM_PROMPTS, TOKENS = 12, 48
GAMMA_SPREAD = 0.05  # of log gamma, between prompts
DECIDED = ("SAME", "FASTER", "SLOWER")


def rows(num: int) -> Iterator[Rate]:
    cases = (
        ("a baseline 8 % too weak gives a VALID, decided gamma", "rare", 1.08, 0.0, 1.3, _decided),
        ("a sound baseline is INVALID", "rare", 1.0, 0.0, 1.3, _invalid),
        ("a gamma of 1 is FASTER or SLOWER, where second arms are 2 % slower", "", 1.0, 0.02, 1.0, _differs),
        ("a gamma of 1.3 with a sound baseline is not decided", "", 1.0, 0.0, 1.3, _undecided),
    )
    for what, nominal, weakness, bias, gamma, counts in cases:
        for noise in (0.02, 0.12) if bias == 0 else (0.005, 0.01, 0.02):
            rng = np.random.default_rng(round(1000 * noise))
            wrong = np.zeros(2)
            for _ in range(num):
                wrong += [counts(label) for label in _labels(rng, noise, weakness=weakness, bias=bias, gamma=gamma)]
            before, after = wrong / num
            yield Rate(what, f"12 prompts, {noise:.1%} noise of a text", nominal, before, after)


def _labels(rng: np.random.Generator, noise: float, *, weakness: float, bias: float, gamma: float) -> tuple[str, str]:
    """Return the verdict of the old and of the new rule on one simulated run."""
    prompts, tokens = np.arange(NUM_PROMPTS), np.full(NUM_PROMPTS, TOKENS)

    def seconds(factor: Array | float) -> Array:
        drawn: Array = TOKENS * factor * np.exp(noise * rng.standard_normal(NUM_PROMPTS))
        return drawn

    first, again, native = seconds(weakness), seconds(weakness * math.exp(bias)), seconds(1.0)
    of_prompts = gamma * np.exp(GAMMA_SPREAD * (gamma != 1) * rng.standard_normal(NUM_PROMPTS))
    ratio = intervals.ratio_of_totals(seconds(1.0), tokens, seconds(math.exp(bias) / of_prompts), tokens, prompts)
    # A bias between the arms is that of a backend whose AR arm is the engine's own decode.
    of_native = None if bias else intervals.ratio_of_totals(first + again, 2 * tokens, native, tokens, prompts)
    floor = intervals.log_ratio_floor(first, tokens, again, tokens, prompts)
    aa = intervals.ratio_of_totals(first, tokens, again, tokens, prompts)
    new = "INVALID" if of_native and is_weak(of_native) else judged_gamma(ratio, floor=floor, native=of_native)[0]
    return old_verdict(ratio, math.log(aa.high / aa.estimate), of_native), new


def old_verdict(ratio: Interval, floor: float, native: Interval | None = None) -> str:
    if native is not None and math.log(native.estimate) > floor:
        return "INVALID"
    if abs(math.log(ratio.estimate)) <= floor or ratio.low <= 1 <= ratio.high:
        return "INDISTINGUISHABLE"
    return "FASTER" if ratio.estimate > 1 else "SLOWER"


def _decided(label: str) -> bool:
    return label in DECIDED


def _undecided(label: str) -> bool:
    return label not in DECIDED


def _invalid(label: str) -> bool:
    return label == "INVALID"


def _differs(label: str) -> bool:
    return label in ("FASTER", "SLOWER")
