"""The certificate at T = 0: how often is a sound decoder LOSSY, and how often is a broken one found?

Gaps to the best logit are as in the targets of `simulated_texts`, and tau is that of its bfloat16. The old rule was LOSSY as
soon as one token lay beyond tau, whatever the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bench.analysis.certificate import Sample, certify
from bench.records.runs import Evidence, TextEvidence
from tests.studies.error_rates.rate import Rate, share
from tests.studies.simulated_texts import GAP_QUANTILE, NOISE, VOCABULARY, Array

TAU = NOISE["bfloat16"] * GAP_QUANTILE
NUM_TOKENS = 5000
WRONG = 0.01  # share of the tokens for which a broken decoder takes the second best


def rows(num: int) -> Iterator[Rate]:
    decoders: tuple[tuple[str, str, str, int, Callable[[np.random.Generator, int], Array]], ...] = (
        ("a sound greedy decoder is LOSSY", "noise exceeds tau once in 2,000 tokens", "1 %", NUM_TOKENS, _noisy(1 / 2000)),
        ("a sound greedy decoder is LOSSY", "noise exceeds tau once in 1,000 tokens", "1 %", NUM_TOKENS, _noisy(1 / 1000)),
        ("a broken greedy decoder is LOSSY", "the second best at 1 % of the places", "", 1500, _second_best),
        ("a broken greedy decoder is LOSSY", "the second best at 1 % of the places", "", NUM_TOKENS, _second_best),
    )
    for what, case, nominal, num_tokens, gaps_of in decoders:
        rng = np.random.default_rng(num_tokens)
        gaps = [gaps_of(rng, num_tokens) for _ in range(num)]
        before = share(bool((each > TAU).any()) for each in gaps)
        after = share(_verdict(each) == "LOSSY" for each in gaps)
        yield Rate(what, f"{case}; {num_tokens:,} tokens", nominal, before, after)


def _verdict(gaps: Array) -> str:
    text = TextEvidence(0, 0, (0,) * len(gaps), logit_gap=tuple(gaps.tolist()))
    return certify([Sample(Evidence("bfloat16", TAU, (text,)), 0.0)]).verdict


def _noisy(rate: float) -> Callable[[np.random.Generator, int], Array]:
    """Return gaps of 0, of which a share lies up to half of tau beyond it."""
    return lambda rng, num_tokens: (rng.random(num_tokens) < rate) * TAU * rng.uniform(1, 1.5, num_tokens)


def _second_best(rng: np.random.Generator, num_tokens: int) -> Array:
    """Return gaps of 0, except where the second best token is taken, at a distance as in the simulated targets."""
    steepness = rng.gamma(2.0, 2.0, size=(num_tokens, 1))
    logits = -steepness * np.log(1 + np.arange(VOCABULARY)) + rng.normal(0, 0.7, (num_tokens, VOCABULARY))
    second, best = np.sort(logits, axis=1)[:, -2:].T
    gaps: Array = (rng.random(num_tokens) < WRONG) * (best - second)
    return gaps
