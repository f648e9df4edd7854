"""Equality: how often is a gamma, or an alpha beside the reference's, called equal although it is not?

Before, INDISTINGUISHABLE and "same" were read as equality: they stood wherever an interval contained 1, however wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bench.analysis import metrics
from bench.analysis.verdict import judged_gamma
from bench.reporting.suites.backends import alpha_verdict
from bench.statistics import intervals
from tests.studies.error_rates.baseline_and_floor import old_verdict
from tests.studies.error_rates.rate import Rate

TOKENS, TESTED = 48, 40  # of one text
FLOOR = 0.01  # on a quiet machine
ALPHA, LOG_ODDS_SPREAD = 0.4, 0.5


def rows(num: int) -> Iterator[Rate]:
    for num_prompts, spread in ((12, 0.1), (24, 0.03), (24, 0.01)):
        case = f"{num_prompts} prompts, {spread:.0%} spread between them"
        for gamma, nominal in ((1.04, "5 %"), (1.02, "5 %")):
            rng = np.random.default_rng(num_prompts)
            before, after = np.mean([_gamma_labels(rng, num_prompts, spread, gamma) for _ in range(num)], axis=0)
            yield Rate(f"a gamma of {gamma:g} is called equal to 1", case, nominal, before, after)
        rng = np.random.default_rng(num_prompts)
        before, after = 1 - np.mean([_gamma_labels(rng, num_prompts, spread, 1.0) for _ in range(num)], axis=0)
        yield Rate("a gamma of 1 is not called equal to 1", case, "", before, after)
    for num_prompts in (12, 64):
        for ratio, nominal in ((0.9, "5 %"), (1 / 1.05, "5 %")):
            rng = np.random.default_rng(num_prompts)
            before, after = np.mean([_alpha_labels(rng, num_prompts, ratio) for _ in range(num)], axis=0)
            yield Rate(
                f"an alpha {ratio:.3f} times the reference's is the same", f"{num_prompts} prompts", nominal, before, after
            )


def _gamma_labels(rng: np.random.Generator, num_prompts: int, spread: float, gamma: float) -> tuple[bool, bool]:
    tokens = np.full(num_prompts, TOKENS)
    # Totals weigh a prompt by its seconds, so the mean of 1 / gamma is scaled to be that of the true one.
    of_prompts = np.exp(spread * rng.standard_normal(num_prompts) - spread**2 / 2)
    found = intervals.ratio_of_totals(tokens, tokens, tokens * of_prompts / gamma, tokens, np.arange(num_prompts))
    return (
        old_verdict(found, FLOOR) == "INDISTINGUISHABLE",
        judged_gamma(found, floor=FLOOR, native=None)[0] == "SAME",
    )


def _alpha_labels(rng: np.random.Generator, num_prompts: int, ratio: float) -> tuple[bool, bool]:
    odds = ALPHA / (1 - ALPHA) * np.exp(LOG_ODDS_SPREAD * rng.standard_normal(num_prompts))
    of_reference = odds / (1 + odds)
    sides = (
        [(prompt, (int(rng.binomial(TESTED, alpha)), TESTED)) for prompt, alpha in enumerate(alphas)]
        for alphas in (ratio * of_reference, of_reference)
    )
    found = metrics.ratio_of_ratios(*sides)
    assert found is not None
    assert math.isfinite(found.high)
    return found.low <= 1 <= found.high, alpha_verdict(found) == "same"
