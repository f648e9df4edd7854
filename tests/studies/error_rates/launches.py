"""Several launches of the same prompts: how often does a test of equal sides find a difference? And what does one launch miss?

Each side draws texts of its own, and repeats them in every launch, as an engine with a fixed seed does. So a prompt's
difference between the sides is the same in all launches. The old rule took a part of it for noise of single launches.

The rows of a single launch take spreads that were measured (results/studies/amd-epyc-2c/launches). Their old caption called an
interval over the prompts of one launch complete; the new one sends those who need more to several launches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bench.statistics.effects import Effect, over_launches_and_prompts
from bench.statistics.intervals import jackknife
from tests.studies.error_rates.rate import Rate, share

NUM_PROMPTS = 12
PROMPT_SPREAD = 0.1  # of a difference between the sides, over prompts
LEVEL = 0.05
# Spread over prompts and over launches, as measured on 12 prompts: of AR seconds per token, and of gamma at T = 1.
MEASURED = {"AR seconds per token": (0.033, 0.022), "gamma": (0.125, 0.002)}


def rows(num: int) -> Iterator[Rate]:
    for num_launches, noise, lottery in ((2, 0.0, 0.0), (2, 0.05, 0.01), (5, 0.0, 0.0), (5, 0.05, 0.01)):
        rng = np.random.default_rng(num_launches)
        found = [_both(rng, num_launches, noise, lottery) for _ in range(num)]
        before, after = (share(effect.p_value(0.0) <= LEVEL for effect in effects) for effects in zip(*found, strict=True))
        case = f"{num_launches} launches, {noise:.0%} noise of a text, {lottery:.0%} of a launch"
        yield Rate("two equal sides differ, several launches", case, "5 %", before, after)
    for name, (of_prompts, of_launch) in MEASURED.items():
        rng = np.random.default_rng(0)
        found = [_missed(rng, of_prompts, of_launch) for _ in range(num)]
        before, after = (share(missed) for missed in zip(*found, strict=True))
        yield Rate(f"an interval of {name} misses the truth", "one launch; after: five launches", "5 %", before, after)


def _missed(rng: np.random.Generator, of_prompts: float, of_launch: float) -> tuple[bool, bool]:
    """Return whether an interval leaves out the truth: over the prompts of one launch, and over five launches."""
    prompts = of_prompts * rng.standard_normal(NUM_PROMPTS)
    values = prompts + of_launch * rng.standard_normal((5, 1))
    left_out = (values.sum(1, keepdims=True) - values) / (NUM_PROMPTS - 1)
    of_launches = np.concatenate((values.mean(1, keepdims=True), left_out), axis=1)
    one = Effect(float(values[0].mean()), (jackknife(left_out[0]),))
    several = over_launches_and_prompts(of_launches, np.ones(NUM_PROMPTS))
    return tuple(effect.p_value(0.0) <= LEVEL for effect in (one, several))  # type: ignore[return-value]


def _both(rng: np.random.Generator, num_launches: int, noise: float, lottery: float) -> tuple[Effect, Effect]:
    """Return the effect by the old rule and by the new one."""
    values = (
        PROMPT_SPREAD * rng.standard_normal(NUM_PROMPTS)
        + noise * rng.standard_normal((num_launches, NUM_PROMPTS))
        + lottery * rng.standard_normal((num_launches, 1))
    )
    left_out = (values.sum(1, keepdims=True) - values) / (NUM_PROMPTS - 1)
    of_launches = np.concatenate((values.mean(1, keepdims=True), left_out), axis=1)
    return _old(of_launches), over_launches_and_prompts(of_launches, np.ones(NUM_PROMPTS))


def _old(of_launches: np.ndarray) -> Effect:
    """Subtract the whole error of single launches from the error over prompts."""
    num, mean = len(of_launches), of_launches.mean(0)
    error, freedom = jackknife(mean[1:])
    of_both = sum(jackknife(each[1:])[0] ** 2 for each in of_launches) / num**2
    between = float(of_launches[:, 0].std(ddof=1)) / math.sqrt(num)
    return Effect(float(mean[0]), ((math.sqrt(max(0.0, error**2 - of_both)), freedom), (between, num - 1.0)))
