"""TODO: purpose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backends.acceptance.rules import RULES, residual_distribution
from backends.acceptance.warping import warp
from backends.certification.scoring import TargetScorer, Text, near_tie_tolerance, slots_of
from backends.models.loading import load_model
from bench.analysis.certificate import Certificate, Sample, certify
from bench.analysis.metrics import count_rounds
from bench.records.decoding import DecodeRequest, Generation, ModelPair, Round, is_rejection
from bench.records.runs import Evidence
from bench.statistics.intervals import martingale_z, two_sided_p

Tested = tuple[list[bool], list[float]]  # of each event: whether it came, and how probable it was
NUM_DRAFT_TOKENS = 3
PROMPTS = ((1, 17, 30, 4, 9), (1, 8, 44), (1, 60, 23, 23, 51, 12, 3), (1, 33, 5, 41, 41, 19))


# What a generation is judged by
class FreshForwards:
    """Both models of a pair in plain transformers, one uncached forward over a whole text."""

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel) -> None:
        self.target = target
        self.draft = draft
        self.near_tie = near_tie_tolerance(target, PROMPTS, NUM_DRAFT_TOKENS)

    @classmethod
    def of_pair(cls, pair: ModelPair) -> FreshForwards:
        return cls(*(load_model(folder, dtype=pair.dtype, device="cpu") for folder in (pair.target, pair.draft)))

    def certificate(self, texts: Sequence[tuple[DecodeRequest, Generation]]) -> Certificate:
        """Whether the texts follow the target, those of all temperatures and truncations taken together."""
        groups: dict[tuple[float, int, float], list[Text]] = {}
        for i, (request, generation) in enumerate(texts):
            slots = slots_of(generation.rounds, len(generation.token_ids))
            text = Text(request.prompt_ids, generation.token_ids, slots, prompt_index=i)
            groups.setdefault((request.temperature, request.top_k, request.top_p), []).append(text)
        scorer, dtype = TargetScorer(self.target), str(self.target.dtype).removeprefix("torch.")
        return certify(
            [
                Sample(
                    Evidence(
                        dtype,
                        self.near_tie,
                        scorer.score_texts(
                            group, temperature=temperature, top_k=top_k, top_p=top_p, near_tie=self.near_tie
                        ),
                    ),
                    temperature,
                )
                for (temperature, top_k, top_p), group in groups.items()
            ]
        )

    def acceptance(self, request: DecodeRequest, generation: Generation) -> Tested:
        """Outcome and probability of every tested draft token, where the rule has a probability of its own there.

        Behind the last accepted token of a round the context is the emitted text, so this needs no draft tokens. `block`
        has no such probability, except that with one draft token it is `rejection`.
        """
        rule = RULES["rejection" if request.rule == "block" and request.num_draft_tokens == 1 else request.rule]
        if rule.jointly:
            raise ValueError(f"expected a rule with a probability per position, got {rule.name}")
        places, passed = tested_places(generation)
        if not places:
            return [], []
        target_probs_NV, draft_probs_NV = (probs_TV[places] for probs_TV in self.probs(request, generation.token_ids))
        # The rules expect the bonus row too; no rule looks at it here.
        target_probs_SV = torch.cat((target_probs_NV, target_probs_NV[-1:]))
        nothing = torch.empty(0, dtype=torch.long)  # none of these rules looks at the draft tokens
        return passed, rule.acceptance_probs(nothing, draft_probs_NV, target_probs_SV).tolist()

    def ends(self, request: DecodeRequest, generation: Generation) -> Tested:
        """Whether each token is an end token, and with which probability the target says so."""
        ended = [token in request.eos_token_ids for token in generation.token_ids]
        target_probs_TV, _ = self.probs(request, generation.token_ids)
        return ended, target_probs_TV[:, list(request.eos_token_ids)].sum(-1).tolist()

    def transforms(self, request: DecodeRequest, generation: Generation) -> dict[str, list[float]]:
        """Probability transforms, tokens in the order of their ids, of what q explains; all uniform under `rejection`.

        accepted tokens under min(p, q) / alpha, recovered ones under the residual, bonus tokens under p. The certificate
        orders tokens by probability, so it is blind to whatever prefers low ids, such as noise shared by two draws.
        """
        target_probs_TV, draft_probs_TV = self.probs(request, generation.token_ids)
        laws = {
            "accepted": torch.minimum(target_probs_TV, draft_probs_TV),
            "recovered": residual_distribution(target_probs_TV, draft_probs_TV),
            "bonus": target_probs_TV,
        }
        places: dict[str, list[int]] = {kind: [] for kind in laws}
        start = len(generation.token_ids) - sum(r.emitted for r in generation.rounds or ())
        for round_ in generation.rounds or ():
            places["accepted"] += range(start, start + round_.accepted)
            start += round_.emitted
            if round_.emitted > round_.accepted:
                places["recovered" if is_rejection(round_) else "bonus"].append(start - 1)
        uniforms = np.random.default_rng(request.seed)
        return {kind: _transforms(laws[kind], generation.token_ids, at, uniforms) for kind, at in places.items()}

    @torch.inference_mode()
    def probs(self, request: DecodeRequest, token_ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(T, V) each: the target's and the draft's distribution from which every emitted token came, after warping."""
        text = Text(request.prompt_ids, token_ids, ())
        draft_temperature = request.temperature if request.draft_temperature is None else request.draft_temperature
        target_probs_TV, draft_probs_TV = (
            warp(
                TargetScorer(model).logits([text])[0],
                temperature=temperature,
                top_k=request.top_k,
                top_p=request.top_p,
            )
            for model, temperature in ((self.target, request.temperature), (self.draft, draft_temperature))
        )
        return target_probs_TV, draft_probs_TV


def _transforms(
    law_TV: Tensor, token_ids: Sequence[int], places: Sequence[int], uniforms: np.random.Generator
) -> list[float]:
    """Randomised probability integral transform at some places of a text, tokens in the order of their ids."""
    tokens_N1 = torch.tensor([token_ids[place] for place in places], dtype=torch.long)[:, None]
    law_NV = law_TV[list(places)].double()
    upto_N = law_NV.cumsum(-1).gather(1, tokens_N1)[:, 0]
    own_N = law_NV.gather(1, tokens_N1)[:, 0]
    below_N = upto_N - own_N * torch.from_numpy(uniforms.random(len(places)))
    return (below_N / law_NV.sum(-1)).tolist()


def tested_places(generation: Generation) -> tuple[list[int], list[bool]]:
    """Places in the text of the tested draft tokens, and whether each passed."""
    places: list[int] = []
    passed: list[bool] = []
    rounds = generation.rounds or ()
    start = len(generation.token_ids) - sum(r.emitted for r in rounds)
    for round_ in rounds:
        num_tested = round_.accepted + is_rejection(round_)
        places += range(start, start + num_tested)
        passed += [i < round_.accepted for i in range(num_tested)]
        start += round_.emitted
    return places, passed


def pooled(tested: Iterable[Tested]) -> Tested:
    """Events of several texts."""
    passed, probs = zip(*tested, strict=True)
    return [x for text in passed for x in text], [x for text in probs for x in text]


def pooled_transforms(texts: Iterable[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Transforms of several texts, by kind."""
    listed = list(texts)
    return {kind: [value for text in listed for value in text[kind]] for kind in listed[0]}


def chance_p(tested: Tested) -> float:
    """How probable so large a difference between the counted and the expected number of events is by chance."""
    return two_sided_p(martingale_z(*tested))


def rare_p(tested: Tested) -> float:
    """As `chance_p`, for few rare events, whose number is far from normal: by Poisson's law, which is wide enough."""
    from scipy.special import pdtr, pdtrc

    count, expected = sum(tested[0]), sum(tested[1])
    more = pdtrc(count - 1, expected) if count else 1.0
    return min(1.0, 2 * float(min(pdtr(count, expected), more)))


def uniform_p(transforms: Sequence[float]) -> float:
    """Upper bound of the probability that uniform numbers lie as far from uniform (Kolmogorov-Smirnov, Massart)."""
    ordered, ranks = np.sort(transforms), np.arange(len(transforms))
    distance = np.maximum((ranks + 1) / len(ranks) - ordered, ordered - ranks / len(ranks)).max(initial=0.0)
    return min(1.0, 2 * math.exp(-2 * len(ranks) * distance**2))


def block_efficiency(rounds: Sequence[Round]) -> float:
    """Tokens emitted / rounds."""
    counts = count_rounds(rounds)
    return counts.emitted / counts.rounds


def unbalanced(request: DecodeRequest, generation: Generation) -> Iterator[str]:
    """What does not add up in the books of one generation, in words."""
    num_tokens, ends = len(generation.token_ids), generation.token_ids[-1:]
    stopped = bool(set(ends) & set(request.eos_token_ids))
    if not 1 <= num_tokens <= request.max_new_tokens:
        yield f"{num_tokens} tokens, 1 to {request.max_new_tokens} were asked for"
    if set(generation.token_ids[:-1]) & set(request.eos_token_ids):
        yield "text goes on behind an end token"
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
        yield f"rounds emitted {emitted} tokens, the text has {num_tokens}"
    for i, round_ in enumerate(generation.rounds):
        if not 0 <= round_.accepted <= round_.drafted <= request.num_draft_tokens:
            yield f"round {i}: not 0 <= accepted <= drafted <= {request.num_draft_tokens}: {round_}"
        cut = i == len(generation.rounds) - 1 and round_.emitted == round_.accepted > 0
        if not cut and round_.emitted != round_.accepted + 1:
            yield f"round {i}: not one token more emitted than accepted: {round_}"
