"""Simulate cells that stop early: coverage of gamma's 95 % interval, and the share of pairs that is saved.

    python -m tests.studies.simulated_stopping

Prompts differ in gamma, calls in speed and in the number of tokens. Cells end by the rule of `bench.measurement.stopping`,
on up to MAX_PROMPTS prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bench.measurement.stopping import CONFIDENCE, half_width
from bench.options.settings import Stopping
from bench.statistics.intervals import ratio_of_totals

MAX_PROMPTS = 48
TOKENS = (24, 37)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Means over many cells."""

    coverage: float  # of the reported 95 % interval
    pairs: float


def simulate(
    num_cells: int, *, precision: float, between: float, within: float, seed: int = 0, max_prompts: int = MAX_PROMPTS
) -> Outcome:
    """Simulate cells that stop by the rule.

    Args:    between: spread of gamma over prompts; within: spread of the speed of calls; standard deviations of logarithms
    """
    stream = np.random.default_rng(seed)
    true_gamma = 1.1
    covered, pairs = 0, 0
    for _ in range(num_cells):
        tokens = stream.integers(*TOKENS, size=(2, max_prompts)).astype(float)
        speeds = stream.normal(0, within, size=(2, max_prompts))
        gammas = stream.normal(math.log(true_gamma), between, size=max_prompts)
        seconds = tokens * np.exp(speeds)
        seconds[1] *= np.exp(-gammas)
        for taken in range(Stopping().least_prompts, max_prompts + 1):
            columns = (seconds[0, :taken], tokens[0, :taken], seconds[1, :taken], tokens[1, :taken], range(taken))
            if half_width(ratio_of_totals(*columns, confidence=CONFIDENCE)) <= precision:
                break
        found = ratio_of_totals(*columns)
        # Of totals: prompts weigh by their seconds, so the truth is the ratio of the means.
        truth = 1 / np.exp(-math.log(true_gamma) + between**2 / 2)
        covered += found.low <= truth <= found.high
        pairs += taken
    return Outcome(covered / num_cells, pairs / num_cells)


def main() -> None:
    print("| precision | spread between prompts | of one call | coverage of 95 % | pairs of 48 |")
    print("|---:|---:|---:|---:|---:|")
    for precision in (0.02, 0.03, 0.05):
        for between, within in ((0.05, 0.02), (0.08, 0.03), (0.12, 0.03)):
            found = simulate(2000, precision=precision, between=between, within=within)
            print(f"| {precision:g} | {between:g} | {within:g} | {found.coverage:.1%} | {found.pairs:.1f} |")


if __name__ == "__main__":
    main()
