"""Simulate texts of decoders as a scorer sees them. The error rates of the certificate are measured on them.

A target is many contexts, each with logits over a small vocabulary; sharp and flat distributions are mixed. The decoder draws
from these logits with numerical noise and, if one is planted, with a fault. The scorer judges without either. Slots follow from
rounds in which likely tokens are accepted more often. A text may end early, at an end token.

Shape letters: C contexts, V vocabulary, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.analysis.certificate import Sample
from bench.records.runs import Evidence, TextEvidence

Array = NDArray[np.float64]
Fault = Callable[[Array], Array]  # decoder's probabilities (C, V) -> broken ones
NUM_CONTEXTS, VOCABULARY = 20_000, 48
NOISE = {"float32": 1e-5, "bfloat16": 0.08}  # standard deviation on a logit; bfloat16 as seen on a 135M model
GAP_QUANTILE = 3.29 * 2**0.5  # 99.9th percentile of the difference of two noises
TEXT_LENGTH = 64
NUM_DRAFT_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Target:
    """The scorer's evidence of every token in every context, and the distributions from which the decoder draws."""

    dtype: str
    temperature: float
    drawn_from_CV: Array  # cumulative; of healthy slots
    broken_CV: Array  # cumulative; of faulty ones
    faulty_slots: tuple[int, ...]
    above_CV: Array
    probs_CV: Array
    excess_CV: Array
    variance_C: Array


def make_target(
    temperature: float,
    *,
    dtype: str = "float32",
    decoder_temperature: float | None = None,
    fault: Fault = lambda probs: probs,
    faulty_slots: tuple[int, ...] = (),
    seed: int = 0,
) -> Target:
    """Return a target with a decoder. A fault affects `faulty_slots` only; another temperature affects the whole decoder."""
    rng = np.random.default_rng(seed)
    steepness_C1 = rng.gamma(2.0, 2.0, size=(NUM_CONTEXTS, 1))
    logits_CV = -steepness_C1 * np.log(1 + np.arange(VOCABULARY)) + rng.normal(0, 0.7, (NUM_CONTEXTS, VOCABULARY))
    logits_CV = -np.sort(-logits_CV, axis=1)
    noisy_CV = logits_CV + rng.normal(0, NOISE[dtype], logits_CV.shape)
    probs_CV = _softmax(logits_CV / temperature)
    decoded_CV = _softmax(noisy_CV / (decoder_temperature or temperature))
    surprisal_CV = -np.log(np.maximum(probs_CV, 1e-300))
    entropy_C1 = (probs_CV * surprisal_CV).sum(1, keepdims=True)
    excess_CV = surprisal_CV - entropy_C1
    return Target(
        dtype=dtype,
        temperature=temperature,
        drawn_from_CV=decoded_CV.cumsum(1),
        broken_CV=fault(decoded_CV).cumsum(1),
        faulty_slots=faulty_slots,
        above_CV=probs_CV.cumsum(1) - probs_CV,
        probs_CV=probs_CV,
        excess_CV=excess_CV,
        variance_C=(probs_CV * excess_CV**2).sum(1),
    )


def simulate(target: Target, num_tokens: int, rng: np.random.Generator) -> Sample:
    """Return evidence of texts of at most TEXT_LENGTH tokens, from `num_tokens` draws less those after an end token."""
    num_tokens -= num_tokens % TEXT_LENGTH
    contexts_N = rng.integers(NUM_CONTEXTS, size=num_tokens)
    uniform_N = rng.random(num_tokens)
    tokens_N = _drawn(target.drawn_from_CV[contexts_N], uniform_N)
    slots_N = _slots(target.probs_CV[contexts_N, tokens_N], rng)
    faulty_N = np.isin(slots_N, target.faulty_slots)
    tokens_N[faulty_N] = _drawn(target.broken_CV[contexts_N[faulty_N]], uniform_N[faulty_N])

    probs_N = target.probs_CV[contexts_N, tokens_N]
    pit_N = np.minimum(target.above_CV[contexts_N, tokens_N] + rng.random(num_tokens) * probs_N, 1 - 2**-53)
    ends_NT = ((tokens_N == 3) & (contexts_N < NUM_CONTEXTS // 4)).reshape(-1, TEXT_LENGTH)
    kept_N = (ends_NT.cumsum(1) - ends_NT == 0).ravel()
    text = TextEvidence(
        prompt_index=0,
        repeat=0,
        slots=tuple(slots_N[kept_N].tolist()),
        pit=tuple(pit_N[kept_N].tolist()),
        excess_surprisal=tuple(target.excess_CV[contexts_N, tokens_N][kept_N].tolist()),
        surprisal_variance=tuple(target.variance_C[contexts_N][kept_N].tolist()),
    )
    return Sample(Evidence(target.dtype, NOISE[target.dtype] * GAP_QUANTILE, (text,)), target.temperature)


def _softmax(logits_CV: Array) -> Array:
    weights_CV: Array = np.exp(logits_CV - logits_CV.max(1, keepdims=True))
    return weights_CV / weights_CV.sum(1, keepdims=True)


def _drawn(cumulative_NV: Array, uniform_N: Array) -> NDArray[np.int64]:
    return (cumulative_NV < (uniform_N * cumulative_NV[:, -1])[:, None]).sum(1)


def _slots(probs_N: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the slots of texts laid end to end. A likely token is accepted more often, and then its round continues."""
    accepted_NT = (rng.random(len(probs_N)) < 0.2 + 0.7 * probs_N).reshape(-1, TEXT_LENGTH)
    slots_NT = np.zeros(accepted_NT.shape, dtype=np.int64)
    slots_NT[:, 1] = 1
    for place in range(2, TEXT_LENGTH):
        last = slots_NT[:, place - 1]
        goes_on = accepted_NT[:, place - 1] & (last != -1)
        slots_NT[:, place] = np.where(goes_on, np.where(last == NUM_DRAFT_TOKENS, -1, last + 1), 1)
    return slots_NT.ravel()
