"""Simulate timed pairs with a known gamma, and acceptance counts with a known alpha, many runs at once.

Axes are (run, pair). Pairs run in order, prompt by prompt, and the whole set again for each repeat. A prompt determines the
length of its texts, the speed of its tokens and the acceptance of its drafts, which is higher on long texts and much higher on
the one prompt in ten that mostly copies. Both arms draw different texts, so lengths differ. Noise shrinks with length and has
rare stalls. The machine drifts by an AR(1) series and a trend. The two arms of a pair are one step apart in the drift, and
their order is balanced.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AR_TOKEN_S = 0.035
LENGTH_CAP = 64
MEDIAN_LENGTH = 45.0
COPY_LOG_GAMMA = 0.4


@dataclass(frozen=True, slots=True)
class SimulatedRuns:
    ar_s: Array  # (R, N) seconds, like the next three
    ar_tokens: Array
    sd_s: Array
    sd_tokens: Array
    clusters: NDArray[np.intp]  # (N,) prompt of each pair


def simulate_runs(
    num_runs: int,
    num_prompts: int,
    *,
    repeats: int,
    seed: int,
    log_gamma: float = 0.25,
    prompt_spread: float = 0.15,
    copy_share: float = 0.1,
    drift: float = 1.0,
) -> SimulatedRuns:
    """Draw runs.

    Args:    log_gamma: its centre over prompts; prompt_spread: its standard deviation; copy_share: share of prompts with
             COPY_LOG_GAMMA more; drift: scale of the drift, 0 is a steady machine
    """
    rng = np.random.default_rng(seed)
    num_pairs = num_prompts * repeats
    prompts = (num_runs, num_prompts)
    length_score = rng.standard_normal(prompts)
    log_length = np.log(MEDIAN_LENGTH) + 0.6 * length_score
    log_token_s = np.log(AR_TOKEN_S) + 0.1 * rng.standard_normal(prompts)
    # 0.9 and 0.44 have squares that sum to 1: the correlation with length is 0.44
    log_prompt_gamma = log_gamma + prompt_spread * (0.9 * rng.standard_normal(prompts) + 0.44 * length_score)
    log_prompt_gamma += np.where(rng.random(prompts) < copy_share, COPY_LOG_GAMMA, 0.0)

    clusters = np.tile(np.arange(num_prompts), repeats)
    order = rng.permuted(np.tile(np.arange(num_pairs) % 2, (num_runs, 1)), axis=1)  # 0: AR first
    drift_log = drift * machine_drift(rng, num_runs, 2 * num_pairs).reshape(num_runs, num_pairs, 2)
    first, second = drift_log[..., 0], drift_log[..., 1]

    def arm(log_speed_up: Array | float, drift_of_arm: Array, round_noise: float) -> tuple[Array, Array]:
        tokens = np.exp(log_length[:, clusters] + 0.4 * rng.standard_normal((num_runs, num_pairs)))
        tokens = np.clip(np.rint(tokens), 1, LENGTH_CAP)
        noise = np.hypot(0.02, round_noise / np.sqrt(tokens)) * rng.standard_normal(tokens.shape)
        stall = np.where(rng.random(tokens.shape) < 0.02, 0.3, 0.0)
        return tokens * np.exp(log_token_s[:, clusters] - log_speed_up + noise + stall + drift_of_arm), tokens

    ar_s, ar_tokens = arm(0.0, np.where(order == 0, first, second), 0.1)
    sd_s, sd_tokens = arm(log_prompt_gamma[:, clusters], np.where(order == 0, second, first), 0.5)
    return SimulatedRuns(ar_s, ar_tokens, sd_s, sd_tokens, clusters)


def machine_drift(rng: np.random.Generator, num_runs: int, num_steps: int) -> Array:
    """Return the log slow-down at each step (R, S): AR(1), standard deviation 8 %, memory 50 steps; a trend of up to 20 %."""
    series = np.empty((num_steps, num_runs))
    series[0] = 0.08 * rng.standard_normal(num_runs)
    kept = np.exp(-1 / 50)
    for step in range(1, num_steps):
        series[step] = kept * series[step - 1] + 0.08 * np.sqrt(1 - kept**2) * rng.standard_normal(num_runs)
    slope = rng.uniform(-0.2, 0.2, num_runs)
    return (series + np.linspace(0, 1, num_steps)[:, None] * slope).T


@cache
def true_gamma(**population: float) -> float:
    """Return the ratio of expected totals over all prompts, which ratio_of_totals estimates.

    Drift is left out: it is independent of the prompt and, because the order is balanced, has the same mean in both arms.
    It comes from 2 million prompts. Its standard error in the log is 0.0002, about 1 % of that of a simulated run.

    Args:    log_gamma, prompt_spread, copy_share, as in simulate_runs
    """
    runs = simulate_runs(2_000_000, 1, repeats=1, seed=1, drift=0.0, **population)
    return float((runs.ar_s.sum() / runs.ar_tokens.sum()) / (runs.sd_s.sum() / runs.sd_tokens.sum()))


def simulate_acceptance(
    num_runs: int, num_prompts: int, *, alpha: float, concentration: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw accepted and tested tokens (R, P): alpha has a beta distribution over prompts; higher alpha, longer texts."""
    rng = np.random.default_rng(seed)
    prompts = (num_runs, num_prompts)
    prompt_alpha = rng.beta(alpha * concentration, (1 - alpha) * concentration, prompts)
    score = (prompt_alpha - alpha) / np.sqrt(alpha * (1 - alpha) / concentration)
    tested = np.clip(np.rint(np.exp(np.log(40) + 0.6 * rng.standard_normal(prompts) + 0.5 * score)), 1, 128)
    tested = tested.astype(np.int64)
    return rng.binomial(tested, prompt_alpha), tested


@cache
def true_alpha(*, alpha: float, concentration: float) -> float:
    """Return the ratio of expected totals over all prompts. It is above `alpha`, because longer texts have a higher alpha."""
    accepted, tested = simulate_acceptance(2_000_000, 1, alpha=alpha, concentration=concentration, seed=1)
    return float(accepted.sum() / tested.sum())
