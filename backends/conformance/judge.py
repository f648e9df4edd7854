"""What a generation is judged by: forwards of the same checkpoints that keep no cache, and tests of counts and transforms.

Shape letters: T tokens of an output, N of them tested, S = N + 1, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from transformers import PreTrainedModel

from backends.acceptance.rules import RULES, residual_distribution
from backends.acceptance.warping import warp
from backends.certification.scoring import TargetScorer, Text, near_tie_tolerance, slots_of
from backends.models.loading import load_model
from bench.analysis.certificate import Certificate, Sample, certify
from bench.analysis.metrics import count_rounds
from bench.records.decoding import DecodeRequest, Generation, ModelPair, Round, num_tested, placed_rounds
from bench.records.runs import Evidence
from bench.statistics.intervals import martingale_z, two_sided_p

Output = tuple[DecodeRequest, Generation]
Tested = tuple[list[bool], list[float]]  # per event: whether it happened, and its probability
NUM_DRAFT_TOKENS = 3
PROMPTS = ((1, 17, 30, 4, 9), (1, 8, 44), (1, 60, 23, 23, 51, 12, 3), (1, 33, 5, 41, 41, 19))


class FreshForwards:
    """Both models of a pair in plain transformers, with one uncached forward over a whole output."""

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel) -> None:
        self.target = target
        self.draft = draft
        self.near_tie = near_tie_tolerance(target, PROMPTS, NUM_DRAFT_TOKENS)
        self.probs = lru_cache(512)(self._probs)  # several checks read the same outputs

    @classmethod
    def of_pair(cls, pair: ModelPair) -> FreshForwards:
        """Load both checkpoints of a pair."""
        return cls(*(load_model(folder, dtype=pair.dtype, device="cpu") for folder in (pair.target, pair.draft)))

    def certificate(self, outputs: Sequence[Output]) -> Certificate:
        """Judge whether outputs follow the target, those of all temperatures and truncations together."""
        groups: dict[tuple[float, int, float], list[Text]] = {}
        for i, (request, generation) in enumerate(outputs):
            slots = slots_of(generation.rounds, len(generation.token_ids))
            text = Text(request.prompt_ids, generation.token_ids, slots, prompt_index=i)
            groups.setdefault((request.temperature, request.top_k, request.top_p), []).append(text)
        scorer, dtype = TargetScorer(self.target), str(self.target.dtype).removeprefix("torch.")
        samples = []
        for (temperature, top_k, top_p), texts in groups.items():
            scored = scorer.score_texts(texts, temperature=temperature, top_k=top_k, top_p=top_p, near_tie=self.near_tie)
            samples.append(Sample(Evidence(dtype, self.near_tie, scored), temperature))
        return certify(samples)

    def acceptance(self, request: DecodeRequest, generation: Generation) -> Tested:
        """Return outcome and probability of every tested draft token.

        Up to the last accepted token of a round the context is the emitted text, so the draft tokens are not needed.
        `block` has no probability per position, except that with one draft token it is `rejection`.
        """
        rule = RULES["rejection" if request.rule == "block" and request.num_draft_tokens == 1 else request.rule]
        if rule.jointly:
            raise ValueError(f"expected a rule with a probability per position, got {rule.name}")
        places, passed = tested_places(generation)
        if not places:
            return [], []
        target_probs_NV, draft_probs_NV = (probs_TV[places] for probs_TV in self.probs(request, generation.token_ids))
        # The rules expect the bonus row too, but do not read it here; nor do they read the draft tokens.
        target_probs_SV = torch.cat((target_probs_NV, target_probs_NV[-1:]))
        nothing = torch.empty(0, dtype=torch.long)
        return passed, rule.acceptance_probs(nothing, draft_probs_NV, target_probs_SV).tolist()

    def ends(self, request: DecodeRequest, generation: Generation) -> Tested:
        """Return for each token whether it is an end token, and the target's probability of one there."""
        ended = [token in request.eos_token_ids for token in generation.token_ids]
        target_probs_TV, _ = self.probs(request, generation.token_ids)
        return ended, target_probs_TV[:, list(request.eos_token_ids)].sum(-1).tolist()

    def transforms(self, request: DecodeRequest, generation: Generation) -> dict[str, list[float]]:
        """Return probability transforms by kind of token, with tokens in the order of ids; all uniform under `rejection`.

        The laws: min(p, q) / alpha for accepted tokens, the residual for recovered ones, p for bonus tokens. The
        certificate orders tokens by probability, so it does not see what prefers low ids, such as noise shared by two draws.
        """
        target_probs_TV, draft_probs_TV = self.probs(request, generation.token_ids)
        laws = {  # not all normalised: `_transforms` divides by their mass
            "accepted": torch.minimum(target_probs_TV, draft_probs_TV),
            "recovered": residual_distribution(target_probs_TV, draft_probs_TV),
            "bonus": target_probs_TV,
        }
        places: dict[str, list[int]] = {kind: [] for kind in laws}
        for start, round_ in placed_rounds(generation.rounds or (), len(generation.token_ids)):
            places["accepted"] += range(start, start + round_.accepted)
            if round_.emitted > round_.accepted:
                places["recovered" if num_tested(round_) > round_.accepted else "bonus"].append(start + round_.accepted)
        uniforms = np.random.default_rng(request.seed)
        return {kind: _transforms(laws[kind], generation.token_ids, at, uniforms) for kind, at in places.items()}

    @torch.inference_mode()
    def _probs(self, request: DecodeRequest, token_ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the target's and the draft's distribution of every emitted token, after warping, (T, V) each."""
        text = Text(request.prompt_ids, token_ids, ())
        draft_temperature = request.temperature if request.draft_temperature is None else request.draft_temperature
        target_probs_TV, draft_probs_TV = (
            warp(TargetScorer(model).logits([text])[0], temperature=temperature, top_k=request.top_k, top_p=request.top_p)
            for model, temperature in ((self.target, request.temperature), (self.draft, draft_temperature))
        )
        return target_probs_TV, draft_probs_TV


def _transforms(law_TV: Tensor, token_ids: Sequence[int], places: Sequence[int], uniforms: np.random.Generator) -> list[float]:
    """Return the randomised transform of some tokens x: (P(id < x) + u P(x)) / P(any), with u uniform on 0..1."""
    tokens_N1 = torch.tensor([token_ids[place] for place in places], dtype=torch.long)[:, None]
    law_NV = law_TV[list(places)].double()
    upto_N = law_NV.cumsum(-1).gather(1, tokens_N1)[:, 0]
    own_N = law_NV.gather(1, tokens_N1)[:, 0]
    below_N = upto_N - own_N * torch.from_numpy(uniforms.random(len(places)))
    return (below_N / law_NV.sum(-1)).tolist()


def tested_places(generation: Generation) -> tuple[list[int], list[bool]]:
    """Return the places in the output at which a draft token was tested, and whether it passed."""
    places: list[int] = []
    passed: list[bool] = []
    for start, round_ in placed_rounds(generation.rounds or (), len(generation.token_ids)):
        places += range(start, start + num_tested(round_))
        passed += [i < round_.accepted for i in range(num_tested(round_))]
    return places, passed


def pooled(tested: Iterable[Tested]) -> Tested:
    """Return the events of several outputs as one sample."""
    passed, probs = zip(*tested, strict=True)
    return [x for text in passed for x in text], [x for text in probs for x in text]


def pooled_transforms(transforms: Iterable[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Return the transforms of several outputs, by kind."""
    listed = list(transforms)
    return {kind: [value for each in listed for value in each[kind]] for kind in listed[0]}


def chance_p(tested: Tested) -> float:
    """Return the two-sided p-value of the difference between the counted and the expected number of events."""
    return two_sided_p(martingale_z(*tested))


def rare_p(tested: Tested) -> float:
    """Return the same for few rare events, by Poisson's law, which is wider than that of their number."""
    count, expected = sum(tested[0]), sum(tested[1])
    return min(1.0, 2 * float(min(stats.poisson.cdf(count, expected), stats.poisson.sf(count - 1, expected))))


def uniform_p(transforms: Sequence[float]) -> float:
    """Return an upper bound of the p-value of numbers that should be uniform on 0..1 (Kolmogorov-Smirnov, Massart)."""
    if not transforms:
        return 1.0
    distance = stats.ks_1samp(transforms, stats.uniform.cdf, method="asymp").statistic
    return min(1.0, 2 * math.exp(-2 * len(transforms) * distance**2))


def block_efficiency(rounds: Sequence[Round]) -> float:
    """Return tokens emitted / rounds."""
    counts = count_rounds(rounds)
    return counts.emitted / counts.rounds


def unbalanced(request: DecodeRequest, generation: Generation) -> Iterator[str]:
    """Yield in words what does not add up in the books of one generation."""
    num_tokens, ends = len(generation.token_ids), generation.token_ids[-1:]
    stopped = bool(set(ends) & set(request.eos_token_ids))
    if not 1 <= num_tokens <= request.max_new_tokens:
        yield f"{num_tokens} tokens, expected 1 to {request.max_new_tokens}"
    if set(generation.token_ids[:-1]) & set(request.eos_token_ids):
        yield "output continues after an end token"
    # An end token at the limit stops too.
    if generation.finish_reason != ("stop" if stopped else "length"):
        yield f"finish reason {generation.finish_reason}, last token {ends}"
    if not stopped and num_tokens < request.max_new_tokens:
        yield f"no end token, and {num_tokens} of {request.max_new_tokens} tokens"
    if generation.rounds is None:
        return
    if request.num_draft_tokens == 0:
        if generation.rounds:
            yield f"{len(generation.rounds)} rounds without speculation"
        return
    emitted = sum(r.emitted for r in generation.rounds)
    if num_tokens - emitted not in (0, 1):  # the prefill gives the first token, or is part of the first round
        yield f"rounds emitted {emitted} tokens, the output has {num_tokens}"
    for i, round_ in enumerate(generation.rounds):
        if not 0 <= round_.accepted <= round_.drafted <= request.num_draft_tokens:
            yield f"round {i}: not 0 <= accepted <= drafted <= {request.num_draft_tokens}: {round_}"
        # An end token or the limit may cut the last round after an accepted token.
        cut = i == len(generation.rounds) - 1 and round_.emitted == round_.accepted > 0
        if not cut and round_.emitted != round_.accepted + 1:
            yield f"round {i}: not one token more emitted than accepted: {round_}"
