"""Simulated ledgers in which the truth of every claim is known: how often a verdict is false, how often a true claim is seen.

Prompts differ in how much of the draft they accept, in how fast they are and in how long their texts are, and texts that accept
more are longer; cells share their prompts and draw texts of their own. Every second prompt has replays, so that its acceptance
probabilities are known. `python -m tests.studies.simulated_ledgers` prints the rates that docs/validation.md states.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.analysis.quantities import ACCEPT_SHARE, EXPECTED_ALPHA, LOG_GAMMA, LOG_ROUND_COST, Finding, Quantity, trend_weights
from bench.claims import decoding, distillation
from bench.claims.claim import Claim
from bench.claims.ledger import claims, judge
from bench.statistics.effects import (
    Effect,
    LargestEffect,
    PromptSums,
    Statistic,
    contrast,
    over_seeds_and_prompts,
    paired_effect,
)

Array = NDArray[np.float64]
Simulation = Callable[[np.random.Generator, int, float], Effect | LargestEffect]  # prompts, the effect in truth
Draw = Callable[[np.random.Generator, int, Sequence[float]], list[Array]]  # prompts, the truth of each cell

POINTS, LOG_RATIO = 0.08, 0.12  # how far beyond its threshold the effect of a true claim lies
LENGTH_CAP = 64
OF_GRID, OF_COSTS, SAMPLED = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0), (0.5, 1.0)  # temperatures of a trend


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates over simulated ledgers, of the family of one source."""

    false_verdict: float  # share of ledgers with any verdict that is false
    power: float  # share of true claims that are SUPPORTED


def acceptance(rng: np.random.Generator, num_prompts: int, alphas: Sequence[float]) -> list[Array]:
    """Draw accepted and tested tokens (P, 2) of cells on the same prompts; accepted ones are expected in every second one."""
    score = rng.standard_normal(num_prompts)
    found = []
    for alpha in alphas:
        own = 0.5 * score + 0.2 * rng.standard_normal(num_prompts)
        prompt_alpha = 1 / (1 + (1 / alpha - 1) * np.exp(-own))
        tested = _lengths(rng, 0.5 * own)
        # Of single tokens, the probabilities spread widely: Beta with a sum of parameters of 1.
        probs = rng.beta(prompt_alpha, 1 - prompt_alpha, (LENGTH_CAP, num_prompts))
        probs[:, 1::2] = rng.random((LENGTH_CAP, num_prompts))[:, 1::2] < probs[:, 1::2]  # outcomes
        is_tested = np.arange(LENGTH_CAP)[:, None] < tested
        found.append(np.stack(((probs * is_tested).sum(0), tested), axis=1))
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


def phases(rng: np.random.Generator, num_prompts: int, shares: Sequence[float]) -> list[Array]:
    """Draw seconds of acceptance and of all phases (P, 2) of cells on the same prompts."""
    slowness = 0.1 * rng.standard_normal(num_prompts)
    found = []
    for share in shares:
        all_s = _lengths(rng, np.zeros(num_prompts)) * np.exp(slowness + 0.03 * rng.standard_normal(num_prompts))
        found.append(np.stack((all_s * share * np.exp(0.05 * rng.standard_normal(num_prompts)), all_s), axis=1))
    return found


def rounds(rng: np.random.Generator, num_prompts: int, log_costs: Sequence[float]) -> list[Array]:
    """Draw seconds of rounds and of their bare forwards (P, 2) of cells on the same prompts."""
    slowness = 0.1 * rng.standard_normal(num_prompts)
    found = []
    for log_cost in log_costs:
        bare_s = _lengths(rng, np.zeros(num_prompts)) * np.exp(slowness + 0.03 * rng.standard_normal(num_prompts))
        found.append(np.stack((bare_s * np.exp(log_cost + 0.03 * rng.standard_normal(num_prompts)), bare_s), axis=1))
    return found


def _lengths(rng: np.random.Generator, log_shift: Array) -> Array:
    lengths = np.exp(math.log(40) + log_shift + 0.5 * rng.standard_normal(len(log_shift)))
    return np.clip(np.rint(lengths), 2, LENGTH_CAP)


def _of_alpha(weights: Sequence[float]) -> Simulation:
    """Return a simulation of a contrast of alphas; the true effect is in the cells of positive weight."""

    def simulate(rng: np.random.Generator, num_prompts: int, truth: float) -> Effect:
        shares = [truth / sum(weight for weight in weights if weight > 0) if weight > 0 else 0.0 for weight in weights]
        return _jackknifed(EXPECTED_ALPHA, weights, acceptance(rng, num_prompts, [0.5 + share for share in shares]))

    return simulate


def _trend(quantity: Quantity, draw: Draw, temperatures: Sequence[float], *, middle: float) -> Simulation:
    """Return a simulation of a trend over these temperatures; middle: the truth at their mean."""

    def simulate(rng: np.random.Generator, num_prompts: int, truth: float) -> Effect:
        distances = np.array(temperatures) - np.mean(temperatures)
        cells = draw(rng, num_prompts, (middle + truth * distances).tolist())
        return _jackknifed(quantity, trend_weights(temperatures), cells)

    return simulate


def _log_gammas(rng: np.random.Generator, num_prompts: int, truth: float) -> Effect:
    return _jackknifed(LOG_GAMMA, (1, -1), timings(rng, num_prompts, (truth, 0.0)))


def _jackknifed(quantity: Quantity, weights: Sequence[float], cells: Sequence[Array]) -> Effect:
    return paired_effect(contrast(quantity.of, weights), [PromptSums("", totals) for totals in cells])


def _two_domains(rng: np.random.Generator, num_prompts: int, truth: float) -> Effect:
    cells = [
        PromptSums(name, totals)
        for name, alpha in (("problems", 0.5 + truth), ("instructions", 0.5))
        for totals in acceptance(rng, num_prompts, (alpha, alpha))
    ]
    return paired_effect(contrast(EXPECTED_ALPHA.of, (0.5, 0.5, -0.5, -0.5)), cells)


def _draft_temperature(rng: np.random.Generator, num_prompts: int, truth: float) -> LargestEffect:
    """Draw a gain by one of three other draft temperatures; with a truth of 0 all are alike."""
    cells = acceptance(rng, num_prompts, (0.5, 0.5, 0.5 + truth, 0.5))
    return _largest(decoding.gains_over_first(EXPECTED_ALPHA, len(cells)), cells)


def _draft_length(rng: np.random.Generator, num_prompts: int, truth: float) -> LargestEffect:
    """Draw three k: the first gains when hot and the last when cold; with a truth of 0 all are alike when hot."""
    *hot, cold_first, cold_second, cold_third = timings(rng, num_prompts, (truth, 0.0, 0.0, 0.0, 0.0, 0.1))
    best = int(np.argmax([LOG_GAMMA.of(totals.sum(0)) for totals in (cold_first, cold_second, cold_third)]))
    cells = [hot[best], *hot[:best], *hot[best + 1 :]]
    return _largest(decoding.gains_over_first(LOG_GAMMA, len(cells)), cells, num_choices=len(cells))


def _largest(gains: Sequence[Statistic], cells: Sequence[Array], *, num_choices: int = 1) -> LargestEffect:
    sums = [PromptSums("", totals) for totals in cells]
    return LargestEffect(tuple(paired_effect(gain, sums) for gain in gains), num_choices)


def _of_drafts(rng: np.random.Generator, num_prompts: int, truth: float) -> Effect:
    """Draw a contrast of drafts of six seeds along the same texts."""
    of_seeds, of_prompts = 0.004 * rng.standard_normal((6, 1)), 0.04 * rng.standard_normal(num_prompts)
    values = truth + of_seeds + of_prompts + 0.02 * rng.standard_normal((6, num_prompts))
    left_out = (values.sum(1, keepdims=True) - values) / (num_prompts - 1)
    return over_seeds_and_prompts(np.concatenate((values.mean(1, keepdims=True), left_out), axis=1))


def _best_row(rng: np.random.Generator, num_prompts: int, truth: float) -> LargestEffect:
    """Draw the excess of four rows over the diagonal; with a truth of 0 one is as good as it."""
    return LargestEffect(
        tuple(_of_drafts(rng, num_prompts, each) for each in (truth, truth - 0.05, truth - 0.05, truth - 0.05))
    )


SIMULATIONS: dict[str, Simulation] = {
    "hotter-slower": _trend(LOG_GAMMA, timings, OF_GRID, middle=0.0),
    "hotter-rejects": _trend(EXPECTED_ALPHA, acceptance, OF_GRID, middle=0.5),
    "u-curve-alpha": _of_alpha((1, -1)),
    "u-curve-gamma": _log_gammas,
    "word-problems-easier": _two_domains,
    "longer-tokens": _of_alpha((1, -1)),
    "criterion-costs": _trend(ACCEPT_SHARE, phases, OF_COSTS, middle=0.1),
    "criterion-costs-the-same": _trend(ACCEPT_SHARE, phases, SAMPLED, middle=0.1),
    "rounds-cost-the-same": _trend(LOG_ROUND_COST, rounds, OF_COSTS, middle=0.1),
    "draft-temperature": _draft_temperature,
    "draft-length": _draft_length,
    "rule-over-temperature": _of_alpha((2, -1, -1)),
    "length-alone": _of_alpha((1, -1)),
    "temperature-of-the-moment": _of_alpha((0.5, -0.5, 0.5, -0.5)),
    **dict.fromkeys(distillation.FIND, _of_drafts),
    **dict.fromkeys(("matched-best", "aligned-matched-best"), _best_row),
    "composed-gains-in-time": _log_gammas,
}
FALSE = {True: ("REFUTED", "EQUIVALENT"), False: ("SUPPORTED", "REFUTED")}  # verdicts, by whether the claim is true


def simulate(num_ledgers: int, *, num_prompts: int, num_true: int = 0, seed: int = 0) -> dict[str, Rates]:
    """Simulate ledgers in which every truth lies on its threshold, except for `num_true` claims, which are true.

    The true claims are drawn for each ledger. On the threshold every verdict is false, and no truth is harder to judge.
    Of a margin, either side is drawn, and the claim is true without any effect. For a true claim, REFUTED is false.
    """
    rng = np.random.default_rng(seed)
    judged = claims()
    num_false = dict.fromkeys((claim.source for claim in judged), 0)
    seen: dict[str, list[bool]] = {source: [] for source in num_false}
    for _ in range(num_ledgers):
        true = {judged[place].name for place in rng.choice(len(judged), num_true, replace=False)}
        effects = [SIMULATIONS[claim.name](rng, num_prompts, _truth(rng, claim, claim.name in true)) for claim in judged]
        rows = judge(judged, [Finding(effect, "", (), ()) for effect in effects])
        wrong = [row for row in rows if row.verdict in FALSE[row.claim.name in true]]
        for source in {row.claim.source for row in wrong}:
            num_false[source] += 1
        for row in rows:
            if row.claim.name in true:
                seen[row.claim.source].append(row.verdict == "SUPPORTED")
    return {source: Rates(num_false[source] / num_ledgers, sum(of) / max(1, len(of))) for source, of in seen.items()}


def _truth(rng: np.random.Generator, claim: Claim, is_true: bool) -> float:
    rule = claim.rule
    if rule.side == "within":
        return 0.0 if is_true else rule.threshold * rng.choice((-1, 1))
    beyond = LOG_RATIO if rule.unit == "ratio" else POINTS
    return rule.threshold + (1 if rule.side == ">" else -1) * is_true * beyond


def main(num_ledgers: int) -> None:
    print("prompts  true claims  false verdict: confirmatory  exploratory  power: confirmatory  exploratory")
    for num_prompts in (6, 8, 16, 32):
        for num_true in (0, len(SIMULATIONS) // 2):
            rates = simulate(num_ledgers, num_prompts=num_prompts, num_true=num_true)
            paper, contested = rates["paper"], rates["contested"]
            power = f"{paper.power:19.1%}  {contested.power:11.1%}" if num_true else ""
            wrong = f"{paper.false_verdict:27.2%}  {contested.false_verdict:11.2%}"
            print(f"{num_prompts:7}  {num_true:11}  {wrong}  {power}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
