"""The best of several cells: how often does it look better than the first cell although all are alike?

The old rule let all other prompts choose the cell of a prompt, and took the jackknife of that for the error of the choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bench.analysis.quantities import ALPHA, share_of
from bench.claims.decoding import gains_over_first
from bench.statistics.effects import LargestEffect, PromptSums, paired_effect
from bench.statistics.intervals import Array
from tests.studies.error_rates.rate import Rate
from tests.studies.simulated_ledgers import acceptance

LEVEL = 0.05


def rows(num: int) -> Iterator[Rate]:
    for num_prompts, others in ((8, 3), (8, 6), (24, 6)):
        rng = np.random.default_rng(num_prompts + others)
        wrong = np.zeros(2)
        for _ in range(num):
            cells = [PromptSums("", totals) for totals in acceptance(rng, num_prompts, (0.5,) * (1 + others))]
            old = paired_effect(_old, cells)
            new = LargestEffect(tuple(paired_effect(gain, cells) for gain in gains_over_first(ALPHA, len(cells))))
            wrong += [effect.estimate > 0 and effect.p_value(0.0) <= LEVEL for effect in (old, new)]
        before, after = wrong / num
        yield Rate(
            "the best of several is better although all are alike",
            f"{others} others, {num_prompts} prompts",
            "2.5 %",
            before,
            after,
        )


def _old(cells: Sequence[Array]) -> float:
    first, *others = cells
    best = np.argmax([share_of(totals.sum(0) - totals) for totals in others], axis=0)
    return float(share_of(np.stack(others)[best, np.arange(len(best))].sum(0)) - share_of(first.sum(0)))
