"""Intervals under load: how often does a nominal 95 % interval miss the truth when prompts are decoded in batches?

Batches are those of `timing.plan_pairs`: batch i holds the prompts i, i + 1, ... modulo their number. Prompts differ in
acceptance and in speed. The texts of a batch share the noise of the machine. The old rule took the batch for the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.statistics import intervals
from bench.statistics.intervals import Array, Interval
from tests.studies.error_rates.rate import Rate

ALPHA = 0.4  # of the average prompt
LOG_ODDS_SPREAD = 0.5  # of alpha, between prompts
LOG_GAMMA_SPREAD = 0.15  # of gamma, between prompts
BATCH_NOISE = 0.03  # of log seconds, of each arm of a batch
TEXT_NOISE = 0.05  # of log seconds, of one text
TESTED, TOKENS = 30, 48  # of one text
LARGE = 200_000  # prompts of which the true alpha is the mean


def rows(num: int) -> Iterator[Rate]:
    for num_prompts, concurrency in ((8, 4), (8, 16), (16, 4)):
        rng = np.random.default_rng(num_prompts + concurrency)
        truth = float(_alpha_of(rng.standard_normal(LARGE)).mean())
        missed = np.zeros((2, 2))  # alpha and gamma; before and after
        for _ in range(num):
            for place, (true, *found) in enumerate(_simulated(rng, num_prompts, concurrency, truth)):
                missed[place] += [not interval.low <= true <= interval.high for interval in found]
        case = f"{num_prompts} prompts, {concurrency} at once"
        for name, (before, after) in zip(("alpha", "gamma"), missed / num, strict=True):
            yield Rate(f"interval of {name} under load misses the truth", case, "5 %", before, after)


def _alpha_of(scores: Array) -> Array:
    odds = ALPHA / (1 - ALPHA) * np.exp(LOG_ODDS_SPREAD * scores)
    found: Array = odds / (1 + odds)
    return found


def _simulated(
    rng: np.random.Generator, num_prompts: int, concurrency: int, true_alpha: float
) -> Iterator[tuple[float, Interval, Interval]]:
    """Yield the truth and the intervals of the old and of the new rule, first of alpha, then of gamma."""
    groups, places = np.divmod(np.arange(num_prompts * concurrency), concurrency)
    prompts = (groups + places) % num_prompts
    alphas = _alpha_of(rng.standard_normal(num_prompts))
    accepted, tested = rng.binomial(TESTED, alphas[prompts]), np.full(len(prompts), TESTED)
    yield (
        true_alpha,
        intervals.proportion(accepted, tested, groups),
        intervals.proportion(accepted, tested, prompts),
    )
    log_gamma = LOG_GAMMA_SPREAD * rng.standard_normal(num_prompts)
    shared = BATCH_NOISE * rng.standard_normal((2, num_prompts))[:, groups]
    ar_noise, sd_noise = shared + TEXT_NOISE * rng.standard_normal((2, len(prompts)))
    tokens = np.full(len(prompts), TOKENS)
    columns = (tokens * np.exp(ar_noise), tokens, tokens * np.exp(sd_noise - log_gamma[prompts]), tokens)
    # Totals weigh a prompt by its seconds, so the true ratio is 1 / mean of 1 / gamma.
    truth = float(np.exp(-(LOG_GAMMA_SPREAD**2) / 2))
    yield truth, intervals.ratio_of_totals(*columns, groups), intervals.ratio_of_totals(*columns, prompts, groups=groups)
