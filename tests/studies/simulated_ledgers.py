"""Simulated ledgers in which the truth of every claim is known: how often a verdict is false, how often a true claim is seen.

Prompts differ in how much of the draft they accept, in how fast they are and in how long their texts are, and texts that accept
more are longer; cells share their prompts and draw texts of their own. KD effects differ between seeds and between prompts.
`python -m tests.studies.simulated_ledgers` prints the rates that docs/validation.md states.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.analysis.quantities import ALPHA, LOG_ACCEPT_COST, LOG_GAMMA, LOG_ROUND_COST, Finding, Quantity
from bench.claims import decoding
from bench.claims.claim import Claim
from bench.claims.ledger import claims, judge
from bench.statistics.effects import (
    Effect,
    LargestEffect,
    PromptSums,
    Statistic,
    contrast,
    left_out_ratios,
    over_seeds_and_prompts,
    paired_effect,
)

Array = NDArray[np.float64]
Simulation = Callable[[np.random.Generator, int, int, float], Effect | LargestEffect]  # prompts, seeds, the effect in truth

# How far beyond its threshold the effect of a true claim lies
POINTS, LOG_RATIO = 0.08, 0.12  # of cells
KD_POINTS, KD_LOG_RATIO = 0.03, 0.05  # of drafts, which are compared along the same texts
LENGTH_CAP = 64


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates over simulated ledgers."""

    false_verdict: float  # share with any verdict that is false
    power: float  # share of true claims of cells that are SUPPORTED
    kd_power: float  # the same of the KD matrix


def acceptance(rng: np.random.Generator, num_prompts: int, alphas: Sequence[float]) -> list[Array]:
    """Draw accepted and tested tokens (P, 2) of cells on the same prompts."""
    score = rng.standard_normal(num_prompts)
    found = []
    for alpha in alphas:
        own = 0.5 * score + 0.2 * rng.standard_normal(num_prompts)
        prompt_alpha = 1 / (1 + (1 / alpha - 1) * np.exp(-own))
        tested = _lengths(rng, 0.5 * own)
        found.append(np.stack((rng.binomial(tested.astype(int), prompt_alpha), tested), axis=1).astype(float))
    return found


def timings(rng: np.random.Generator, num_prompts: int, log_gammas: Sequence[float], *, spread: float = 0.12) -> list[Array]:
    """Draw AR seconds and tokens, SD seconds and tokens (P, 4) of cells on the same prompts; spread: of log gamma."""
    score, log_token_s = rng.standard_normal(num_prompts), 0.1 * rng.standard_normal(num_prompts)
    found = []
    for log_gamma in log_gammas:
        tokens = [_lengths(rng, 0.3 * score) for _ in range(2)]
        own = log_gamma + spread * (score + 0.4 * rng.standard_normal(num_prompts))
        speed_ups = (0.0, own + 4 * spread * rng.standard_normal(num_prompts) / np.sqrt(tokens[1]))
        seconds = [
            each * np.exp(log_token_s - speed_up + 0.03 * rng.standard_normal(num_prompts))
            for each, speed_up in zip(tokens, speed_ups, strict=True)
        ]
        found.append(np.stack((seconds[0], tokens[0], seconds[1], tokens[1]), axis=1))
    return found


def phases(rng: np.random.Generator, num_prompts: int, log_costs: Sequence[float]) -> list[Array]:
    """Draw seconds of acceptance and of verification (P, 2) of cells on the same prompts."""
    slowness = 0.1 * rng.standard_normal(num_prompts)
    found = []
    for log_cost in log_costs:
        verify_s = _lengths(rng, np.zeros(num_prompts)) * np.exp(slowness + 0.03 * rng.standard_normal(num_prompts))
        accept_s = verify_s * np.exp(log_cost + 0.05 * rng.standard_normal(num_prompts))
        found.append(np.stack((accept_s, verify_s), axis=1))
    return found


def rounds(rng: np.random.Generator, num_prompts: int, log_costs: Sequence[float]) -> list[Array]:
    """Draw autoregressive seconds and tokens, speculative seconds and rounds (P, 4) of cells on the same prompts."""
    return timings(rng, num_prompts, [-log_cost for log_cost in log_costs], spread=0.03)


def _lengths(rng: np.random.Generator, log_shift: Array) -> Array:
    lengths = np.exp(math.log(40) + log_shift + 0.5 * rng.standard_normal(len(log_shift)))
    return np.clip(np.rint(lengths), 2, LENGTH_CAP)


def _of_alpha(weights: Sequence[float]) -> Simulation:
    """Return a simulation of a contrast of alphas; the true effect is in the cells of positive weight."""

    def simulate(rng: np.random.Generator, num_prompts: int, num_seeds: int, truth: float) -> Effect:
        shares = [truth / sum(weight for weight in weights if weight > 0) if weight > 0 else 0.0 for weight in weights]
        return _jackknifed(ALPHA, weights, acceptance(rng, num_prompts, [0.5 + share for share in shares]))

    return simulate


def _pair_of(quantity: Quantity, draw: Callable[[np.random.Generator, int, Sequence[float]], list[Array]]) -> Simulation:
    def simulate(rng: np.random.Generator, num_prompts: int, num_seeds: int, truth: float) -> Effect:
        return _jackknifed(quantity, (1, -1), draw(rng, num_prompts, (truth, 0.0)))

    return simulate


def _jackknifed(quantity: Quantity, weights: Sequence[float], cells: Sequence[Array]) -> Effect:
    return paired_effect(contrast(quantity.of, weights), [PromptSums("", totals) for totals in cells])


def _two_domains(rng: np.random.Generator, num_prompts: int, num_seeds: int, truth: float) -> Effect:
    cells = [
        PromptSums(name, totals)
        for name, alpha in (("problems", 0.5 + truth), ("instructions", 0.5))
        for totals in acceptance(rng, num_prompts, (alpha, alpha))
    ]
    return paired_effect(contrast(ALPHA.of, (0.5, 0.5, -0.5, -0.5)), cells)


def _draft_temperature(rng: np.random.Generator, num_prompts: int, num_seeds: int, truth: float) -> LargestEffect:
    """Draw a gain by one of three other draft temperatures; with a truth of 0 all are alike."""
    cells = acceptance(rng, num_prompts, (0.5, 0.5, 0.5 + truth, 0.5))
    return _largest(decoding.gains_over_first(ALPHA, len(cells)), cells)


def _draft_length(rng: np.random.Generator, num_prompts: int, num_seeds: int, truth: float) -> LargestEffect:
    """Draw three k: the first gains when hot and the last when cold; with a truth of 0 all are alike when hot."""
    *hot, cold_first, cold_second, cold_third = timings(rng, num_prompts, (truth, 0.0, 0.0, 0.0, 0.0, 0.1))
    best = int(np.argmax([LOG_GAMMA.of(totals.sum(0)) for totals in (cold_first, cold_second, cold_third)]))
    cells = [hot[best], *hot[:best], *hot[best + 1 :]]
    return _largest(decoding.gains_over_first(LOG_GAMMA, len(cells)), cells, num_choices=len(cells))


def _largest(gains: Sequence[Statistic], cells: Sequence[Array], *, num_choices: int = 1) -> LargestEffect:
    sums = [PromptSums("", totals) for totals in cells]
    return LargestEffect(tuple(paired_effect(gain, sums) for gain in gains), num_choices)


def _distilled(rng: np.random.Generator, num_prompts: int, num_seeds: int, truth: float) -> Effect:
    """Draw a difference of alpha between drafts: it varies by 0.3 points over seeds, 5 over prompts, 2 over single texts."""
    weights = _lengths(rng, np.zeros(num_prompts))
    shifts = truth + 0.003 * rng.standard_normal((num_seeds, 1)) + 0.05 * rng.standard_normal(num_prompts)
    gains = weights * (shifts + 0.02 * rng.standard_normal((num_seeds, num_prompts)))
    return over_seeds_and_prompts(np.stack([left_out_ratios(each, weights) for each in gains]))


SIMULATIONS: dict[str, Simulation] = {
    "hotter-slower": _pair_of(LOG_GAMMA, timings),
    "hotter-rejects": _of_alpha((1, -1)),
    "u-curve-alpha": _of_alpha((1, -1)),
    "u-curve-gamma": _pair_of(LOG_GAMMA, timings),
    "word-problems-easier": _two_domains,
    "longer-tokens": _of_alpha((1, -1)),
    "criterion-costs": _pair_of(LOG_ACCEPT_COST, phases),
    "criterion-costs-the-same": _pair_of(LOG_ACCEPT_COST, phases),
    "rounds-cost-the-same": _pair_of(LOG_ROUND_COST, rounds),
    "draft-temperature": _draft_temperature,
    "draft-length": _draft_length,
    "rule-over-temperature": _of_alpha((2, -1, -1)),
    "length-alone": _of_alpha((1, -1)),
    "temperature-of-the-moment": _of_alpha((0.5, -0.5, 0.5, -0.5)),
}


def simulate(
    num_ledgers: int,
    *,
    num_prompts: int,
    num_kd_prompts: int = 64,
    num_seeds: int = 3,
    num_true: int = 0,
    seed: int = 0,
) -> Rates:
    """Simulate ledgers in which every truth lies on its threshold, except for `num_true` claims, which are true.

    The true claims are drawn for each ledger. On the threshold every verdict is false, and no truth is harder to judge. For a
    true claim, REFUTED is false.
    """
    rng = np.random.default_rng(seed)
    all_claims = claims()
    num_false, seen, kd_seen = 0, [], []
    for _ in range(num_ledgers):
        true = set(rng.choice(len(all_claims), num_true, replace=False).tolist())
        effects = [
            _effect(rng, claim, place in true, num_seeds, num_prompts=num_prompts, num_kd_prompts=num_kd_prompts)
            for place, claim in enumerate(all_claims)
        ]
        rows = judge(all_claims, [Finding(effect, "", (), ()) for effect in effects])
        false = ["REFUTED" if place in true else "SUPPORTED or REFUTED" for place in range(len(rows))]
        num_false += any(row.verdict in wrong for row, wrong in zip(rows, false, strict=True))
        for place in true:
            of_cells = rows[place].claim.name in SIMULATIONS
            (seen if of_cells else kd_seen).append(rows[place].verdict == "SUPPORTED")
    return Rates(num_false / num_ledgers, _share(seen), _share(kd_seen))


def _effect(
    rng: np.random.Generator, claim: Claim, is_true: bool, num_seeds: int, *, num_prompts: int, num_kd_prompts: int
) -> Effect | LargestEffect:
    simulation, in_logs = SIMULATIONS.get(claim.name), claim.rule.unit == "ratio"
    sign = (1 if claim.rule.side == ">" else -1) * is_true
    if simulation is None:
        truth = claim.rule.threshold + sign * (KD_LOG_RATIO if in_logs else KD_POINTS)
        return _distilled(rng, num_kd_prompts, num_seeds, truth)
    return simulation(rng, num_prompts, num_seeds, claim.rule.threshold + sign * (LOG_RATIO if in_logs else POINTS))


def _share(seen: Sequence[bool]) -> float:
    return sum(seen) / max(1, len(seen))


def main(num_ledgers: int) -> None:
    print("prompts  seeds  true claims  any false verdict  power  power, KD")
    for num_prompts, num_seeds in ((6, 2), (8, 3), (16, 3), (32, 5)):
        for num_true in (0, len(claims()) // 2):
            rates = simulate(num_ledgers, num_prompts=num_prompts, num_seeds=num_seeds, num_true=num_true)
            power = f"{rates.power:5.1%}  {rates.kd_power:9.1%}" if num_true else ""
            print(f"{num_prompts:7}  {num_seeds:5}  {num_true:11}  {rates.false_verdict:17.2%}  {power}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
