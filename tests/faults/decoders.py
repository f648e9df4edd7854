"""Broken decoders. Each overrides one step of the reference in the way real code got it wrong.

Shape letters: G draft positions, S = G + 1 scored positions, V vocabulary, N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from backends.acceptance.rules import (
    RULES,
    Judgement,
    judge_as_block,
    judge_by_exact_match,
    judge_one_hot,
    residual_distribution,
)
from backends.acceptance.warping import sample, truncate, warp
from backends.engines.reference import Drafts, ReferenceBackend
from backends.forwards.cached_model import CachedModel
from bench.records.decoding import DecodeRequest, Generation, Replay, Round

Decoder = type[ReferenceBackend]
Judge = Callable[[Tensor, Tensor, Tensor, Tensor], Judgement]
Change = Callable[[DecodeRequest], DecodeRequest]


# The parts of a correct judge
def ratios(tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor) -> Tensor:
    """Return p/q of each draft token."""
    return own(target_probs_SV[:-1], tokens_G) / own(draft_probs_GV, tokens_G)


def own(probs_NV: Tensor, tokens_N: Tensor) -> Tensor:
    return probs_NV.gather(1, tokens_N[:, None])[:, 0]


def next_probs(draft_probs_GV: Tensor, target_probs_SV: Tensor) -> Tensor:
    """Return the distribution of the target's own token after 0..G accepted ones, (S, V): the residuals, then p."""
    return torch.cat((residual_distribution(target_probs_SV[:-1], draft_probs_GV), target_probs_SV[-1:]))


def outcome(passed_G: Tensor, next_probs_SV: Tensor, uniform_1: Tensor) -> Judgement:
    num_accepted = passed_G.long().cumprod(0).sum()
    return Judgement(num_accepted, sample(next_probs_SV.index_select(0, num_accepted), uniform_1)[0])


# Ways to break one step
def judging(judge: Judge, *, drafting: str | None = None) -> Decoder:
    """Return the reference with another judge, whichever rule is requested."""

    class Judging(ReferenceBackend):
        def round(self, request: DecodeRequest, *rest: object) -> Round:
            rule = RULES[request.rule]
            with patch.dict(RULES, {request.rule: replace(rule, judge=judge, drafting=drafting or rule.drafting)}):
                return super().round(request, *rest)

    return Judging


def drafting(change: Change) -> Decoder:
    """Return the reference whose draft gets another request."""

    class Drafting(ReferenceBackend):
        def draft_tokens(self, request: DecodeRequest, *rest: object) -> Drafts:
            return super().draft_tokens(change(request), *rest)

    return Drafting


def verifying(change: Change) -> Decoder:
    """Return the reference whose target verifies another request; the first token is correct."""

    class Verifying(ReferenceBackend):
        def target_probs(self, logits_NV: Tensor, request: DecodeRequest) -> Tensor:
            speculative = request.num_draft_tokens > 0 and self.target.length > len(request.prompt_ids)
            return super().target_probs(logits_NV, change(request) if speculative else request)

    return Verifying


def caching(*, target: type[CachedModel] = CachedModel, draft: type[CachedModel] = CachedModel) -> Decoder:
    """Return the reference with other caches."""

    class Caching(ReferenceBackend):
        def __init__(self, target_model: torch.nn.Module, draft_model: torch.nn.Module) -> None:
            super().__init__(target_model, draft_model)
            self.target, self.draft = target(target_model), draft(draft_model)

    return Caching


def drawing(redraw: Callable[[Tensor, int, torch.Generator], None]) -> Decoder:
    """Return the reference whose uniform numbers of a round (G for drafting, then S for judging) are changed in place."""

    class Drawing(ReferenceBackend):
        def uniforms(self, count: int, generator: torch.Generator) -> Tensor:
            uniforms = super().uniforms(count, generator)
            redraw(uniforms, (count - 1) // 2, generator)
            return uniforms

    return Drawing


def reporting(change: Callable[[DecodeRequest, Generation], Generation]) -> Decoder:
    """Return the reference with correct decoding and wrong reports."""

    class Reporting(ReferenceBackend):
        def generate(self, request: DecodeRequest) -> Generation:
            return change(request, super().generate(request))

    return Reporting


def counting(change: Callable[[Round], Round]) -> Decoder:
    """Return the reference with other counts for each round."""
    return reporting(lambda _, generation: replace(generation, rounds=tuple(map(change, generation.rounds or ()))))


# Judges
def residual_is_the_target(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    passed = uniforms[:-1] < ratios(tokens, draft_probs, target_probs)
    return outcome(passed, target_probs, uniforms[-1:])


def residual_is_absolute(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    difference = (target_probs[:-1] - draft_probs).abs() + 1e-30
    following = torch.cat((difference / difference.sum(-1, keepdim=True), target_probs[-1:]))
    return outcome(uniforms[:-1] < ratios(tokens, draft_probs, target_probs), following, uniforms[-1:])


def residual_with_epsilon(epsilon: float) -> Judge:
    def judge(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
        excess = (target_probs[:-1] - draft_probs).clamp_min(0) + epsilon
        following = torch.cat((excess / excess.sum(-1, keepdim=True), target_probs[-1:]))
        return outcome(uniforms[:-1] < ratios(tokens, draft_probs, target_probs), following, uniforms[-1:])

    return judge


def residual_unnormalised(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    """The draw inverts a running sum that ends below 1. The rest of the mass goes to the last token."""
    excess = (target_probs[:-1] - draft_probs).clamp_min(0)
    excess[:, -1] += 1 - excess.sum(-1)
    following = torch.cat((excess, target_probs[-1:]))
    return outcome(uniforms[:-1] < ratios(tokens, draft_probs, target_probs), following, uniforms[-1:])


def residual_one_position_late(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    late = residual_distribution(target_probs[1:], draft_probs)
    passed = uniforms[:-1] < ratios(tokens, draft_probs, target_probs)
    return outcome(passed, torch.cat((late, target_probs[-1:])), uniforms[-1:])


def residual_of_the_last_draft(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    """The q left over from the drafting loop, whichever position was rejected."""
    following = next_probs(draft_probs[-1:].expand_as(draft_probs), target_probs)
    return outcome(uniforms[:-1] < ratios(tokens, draft_probs, target_probs), following, uniforms[-1:])


def bonus_one_position_early(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    following = next_probs(draft_probs, target_probs)
    following[-1] = target_probs[-2:][0]
    return outcome(uniforms[:-1] < ratios(tokens, draft_probs, target_probs), following, uniforms[-1:])


def accepts_what_the_target_likes_better(
    tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor
) -> Judgement:
    passed = own(target_probs[:-1], tokens) >= own(draft_probs, tokens)
    return outcome(passed, next_probs(draft_probs, target_probs), uniforms[-1:])


def accepts_with_the_target_probability(
    tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor
) -> Judgement:
    passed = uniforms[:-1] < own(target_probs[:-1], tokens)
    return outcome(passed, next_probs(draft_probs, target_probs), uniforms[-1:])


def accepts_the_first_token(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    passed = uniforms[:-1] < ratios(tokens, draft_probs, target_probs)
    passed[:1] = True
    return outcome(passed, next_probs(draft_probs, target_probs), uniforms[-1:])


def accepts_with_tolerance(tolerance: float) -> Judge:
    def judge(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
        passed = uniforms[:-1] < ratios(tokens, draft_probs, target_probs) + tolerance
        return outcome(passed, next_probs(draft_probs, target_probs), uniforms[-1:])

    return judge


def recovers_with_the_rejecting_uniform(
    tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor
) -> Judgement:
    passed = uniforms[:-1] < ratios(tokens, draft_probs, target_probs)
    num_accepted = passed.long().cumprod(0).sum()
    return outcome(passed, next_probs(draft_probs, target_probs), uniforms.index_select(0, num_accepted))


def in_half_precision(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    draft_probs, target_probs = draft_probs.half(), target_probs.half()
    passed = uniforms[:-1].half() < ratios(tokens, draft_probs, target_probs)
    return outcome(passed, next_probs(draft_probs, target_probs).float(), uniforms[-1:])


def exact_match_draws_again(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    """Tests the target's own sample, then draws another one to emit."""
    passed = sample(target_probs, uniforms)[:-1] == tokens
    return outcome(passed, target_probs, 1 - uniforms[-1:])


def block_without_residual(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    num_accepted = judge_as_block(tokens, draft_probs, target_probs, uniforms).num_accepted
    passed = torch.arange(len(tokens)) < num_accepted
    return outcome(passed, target_probs, uniforms[-1:])


def block_with_single_residual(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    """The lengths of block verification, the recovered token of the rejection rule."""
    num_accepted = judge_as_block(tokens, draft_probs, target_probs, uniforms).num_accepted
    passed = torch.arange(len(tokens)) < num_accepted
    return outcome(passed, next_probs(draft_probs, target_probs), uniforms[-1:])


def certain_draft(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    return judge_one_hot(tokens, draft_probs, target_probs, uniforms)


def one_hot_without_residual(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    return outcome(uniforms[:-1] < own(target_probs[:-1], tokens), target_probs, uniforms[-1:])


def own_sample(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
    return judge_by_exact_match(tokens, draft_probs, target_probs, uniforms)


# Uniform numbers
def reseeded_from_a_constant(uniforms: Tensor, num_drafts: int, generator: torch.Generator) -> None:
    """`manual_seed(42)` in front of every acceptance draw."""
    uniforms[num_drafts : 2 * num_drafts] = torch.rand(1, generator=torch.Generator().manual_seed(42))


def reseeded_from_the_request(uniforms: Tensor, num_drafts: int, generator: torch.Generator) -> None:
    fresh = torch.Generator().manual_seed(generator.initial_seed())
    uniforms[num_drafts : 2 * num_drafts] = torch.rand(1, generator=fresh)


def reseeded_every_round(uniforms: Tensor, num_drafts: int, generator: torch.Generator) -> None:
    fresh = torch.Generator().manual_seed(generator.initial_seed())
    uniforms.copy_(torch.rand(len(uniforms), generator=fresh, dtype=uniforms.dtype))


def noise_shared_with_the_draft(uniforms: Tensor, num_drafts: int, generator: torch.Generator) -> None:
    uniforms[num_drafts : 2 * num_drafts] = uniforms[:num_drafts]


def drawn_in_bfloat16(uniforms: Tensor, num_drafts: int, generator: torch.Generator) -> None:
    """`torch.rand` is called in the model's dtype: multiples of 1/256."""
    uniforms.mul_(256).floor_().div_(256)


# Temperatures
def uninitialised(request: DecodeRequest) -> DecodeRequest:
    """A float buffer that was never written holds arbitrary bits."""
    bits = torch.randint(0, 2**31, (1,), dtype=torch.int32, generator=torch.Generator().manual_seed(request.seed))
    found = bits.view(torch.float32).item()
    return replace(request, temperature=found if found == found and found < 1e30 else 1e30)


class StaleTemperature(ReferenceBackend):
    """The slot's buffer is filled before the new request is copied in: each output is verified at the previous one's T."""

    last = current = 1.0

    def generate(self, request: DecodeRequest) -> Generation:
        self.last, self.current = self.current, request.temperature
        return super().generate(request)

    def target_probs(self, logits_NV: Tensor, request: DecodeRequest) -> Tensor:
        return super().target_probs(logits_NV, replace(request, temperature=self.last))


# Truncation
class TopPAfterVerification(ReferenceBackend):
    """The tests see whole distributions; only the target's own token is truncated."""

    def round(self, request: DecodeRequest, *rest: object) -> Round:
        def judge(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
            following = next_probs(draft_probs, target_probs)
            cut = torch.stack([truncate(probs, top_k=0, top_p=request.top_p) for probs in following])
            return outcome(uniforms[:-1] < ratios(tokens, draft_probs, target_probs), cut, uniforms[-1:])

        with patch.dict(RULES, {request.rule: replace(RULES[request.rule], judge=judge)}):
            return super().round(replace(request, top_p=1.0), *rest)


class TopPBeforeTemperature(ReferenceBackend):
    def target_probs(self, logits_NV: Tensor, request: DecodeRequest) -> Tensor:
        kept = warp(logits_NV, temperature=1.0, top_p=request.top_p) > 0
        return warp(logits_NV.masked_fill(~kept, -torch.inf), temperature=request.temperature)


class RepetitionPenalty(ReferenceBackend):
    """A penalty from the checkpoint's generation_config, never requested, on the logits of tokens that occurred already."""

    penalty = 1.2

    def round(self, request: DecodeRequest, tokens: list[int], *rest: object) -> Round:
        self.seen = torch.tensor(sorted(set(tokens)))
        return super().round(request, tokens, *rest)

    def target_probs(self, logits_NV: Tensor, request: DecodeRequest) -> Tensor:
        if self.target.length > len(request.prompt_ids):
            scores = logits_NV[:, self.seen]
            scores = torch.where(scores > 0, scores / self.penalty, scores * self.penalty)
            logits_NV = logits_NV.index_copy(1, self.seen, scores)
        return super().target_probs(logits_NV, request)


# The first token, the bonus and the end
class GreedyFirstToken(ReferenceBackend):
    """Prefill is another code path, and it takes the argmax."""

    def prefill(self, request: DecodeRequest, generator: torch.Generator, *, speculative: bool) -> int:
        return super().prefill(replace(request, temperature=0.0), generator, speculative=speculative)


class BonusFromTheDraft(ReferenceBackend):
    """After full acceptance the draft's next token is emitted too."""

    def draft_tokens(self, request: DecodeRequest, tokens: list[int], uniforms_G: Tensor, rule: object) -> Drafts:
        drafts = super().draft_tokens(request, tokens, uniforms_G, rule)
        self.bonus_probs = None
        if len(drafts.tokens_G):
            logits = self.draft.feed(drafts.tokens_G[-1:][None], num_logits=1)
            self.bonus_probs = warp(logits, temperature=request.temperature)
        return drafts

    def round(self, request: DecodeRequest, *rest: object) -> Round:
        def judge(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
            following = next_probs(draft_probs, target_probs)
            if self.bonus_probs is not None:
                following[-1] = self.bonus_probs[0]
            return outcome(uniforms[:-1] < ratios(tokens, draft_probs, target_probs), following, uniforms[-1:])

        with patch.dict(RULES, {request.rule: replace(RULES[request.rule], judge=judge)}):
            return super().round(request, *rest)


class BonusSkipped(ReferenceBackend):
    """After full acceptance the verified row after the last draft token is thrown away."""

    def round(self, request: DecodeRequest, tokens: list[int], *rest: object) -> Round:
        result = super().round(request, tokens, *rest)
        if 0 < result.drafted == result.accepted < result.emitted and tokens[-1] not in request.eos_token_ids:
            tokens.pop()
            self.target.rewind(len(tokens) - 1)
            self.draft.rewind(len(tokens) - 1)
            return replace(result, emitted=result.accepted)
        return result


class EndTokenSwallowed(ReferenceBackend):
    """Only the last token of a round is compared with the end token."""

    def round(self, request: DecodeRequest, *rest: object) -> Round:
        return super().round(replace(request, eos_token_ids=()), *rest)


class EndTokenNeverInARound(ReferenceBackend):
    """`min_new_tokens` stays switched on: the end token gets no mass from the target's verify pass."""

    def target_probs(self, logits_NV: Tensor, request: DecodeRequest) -> Tensor:
        logits_NV = logits_NV.clone()
        logits_NV[:, list(request.eos_token_ids)] = -torch.inf
        return super().target_probs(logits_NV, request)


class DraftStopsWhenUnsure(ReferenceBackend):
    """The draft's generation_config has a confidence threshold by default: an unsure draft stops after one token."""

    threshold = 0.4

    def round(self, request: DecodeRequest, tokens: list[int], num_drafts: int, *rest: object) -> Round:
        seen = self.draft.length
        logits = self.draft.feed(torch.tensor([tokens[seen:]]), num_logits=1)
        self.draft.rewind(seen)
        unsure = warp(logits, temperature=1.0).max() < self.threshold
        return super().round(request, tokens, min(num_drafts, 1) if unsure else num_drafts, *rest)


class GreedyTakesTheSecondBest(ReferenceBackend):
    """Greedy verification accepts whatever is among the target's two best: 'close enough'."""

    def target_probs(self, logits_NV: Tensor, request: DecodeRequest) -> Tensor:
        probs_NV = super().target_probs(logits_NV, request)
        self.second_N = logits_NV.topk(2).indices[:, 1]
        return probs_NV

    def round(self, request: DecodeRequest, *rest: object) -> Round:
        def judge(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor) -> Judgement:
            passed = (target_probs.argmax(-1)[:-1] == tokens) | (self.second_N[:-1] == tokens)
            return outcome(passed, next_probs(draft_probs, target_probs), uniforms[-1:])

        with patch.dict(RULES, {request.rule: replace(RULES[request.rule], judge=judge)}):
            return super().round(request, *rest)


# Caches
class RewindsTooLittle(CachedModel):
    """Off by one: the rejected token stays in the cache, and all later tokens are one position too far."""

    def rewind(self, length: int) -> None:
        self.drop(self.length - length - 1, length)

    def drop(self, count: int, length: int) -> None:
        if length < self.length:
            if count > 0:
                self.cache.crop(-count)
            self.length = length


class RewindsTooMuch(RewindsTooLittle):
    """Off by one the other way: the last accepted token is forgotten."""

    def rewind(self, length: int) -> None:
        self.drop(self.length - length + 1, length)


class NeverRewinds(RewindsTooLittle):
    def rewind(self, length: int) -> None:
        self.drop(0, length)


class ReusesThePrefix(CachedModel):
    """A prefix cache that compares lengths and not tokens: the last prompt's keys serve for this one."""

    new_prompt = False

    def reset(self) -> None:
        if hasattr(self, "cache"):
            self.new_prompt = True
        else:
            super().reset()

    def feed(self, tokens_BT: Tensor, *, num_logits: int) -> Tensor:
        if self.new_prompt and self.length >= tokens_BT.shape[1]:
            self.rewind(tokens_BT.shape[1] - 1)
            tokens_BT = tokens_BT[:, -1:]
        elif self.new_prompt:
            super().reset()
        self.new_prompt = False
        return super().feed(tokens_BT, num_logits=num_logits)


class SkipsThePrompt(CachedModel):
    """Only the prompt's last token reaches the model."""

    def feed(self, tokens_BT: Tensor, *, num_logits: int) -> Tensor:
        if self.length == 0:
            self.length = tokens_BT.shape[1] - 1
            tokens_BT = tokens_BT[:, -1:]
        return super().feed(tokens_BT, num_logits=num_logits)


class ForgetsTheLastDraft(ReferenceBackend):
    """After full acceptance the draft is not fed the last token it drafted."""

    def draft_tokens(self, request: DecodeRequest, tokens: list[int], *rest: object) -> Drafts:
        self.draft.length = len(tokens) - 1
        return super().draft_tokens(request, tokens, *rest)


# Wrong reports of a correct decoding
def retokenised(_: DecodeRequest, generation: Generation) -> Generation:
    """The output is decoded and encoded again, which merges some neighbours into one token."""
    ids = generation.token_ids
    return replace(generation, token_ids=tuple(t for i, t in enumerate(ids) if i == 0 or t != ids[i - 1]))


def without_end_token(_: DecodeRequest, generation: Generation) -> Generation:
    stopped = generation.finish_reason == "stop" and len(generation.token_ids) > 1
    return replace(generation, token_ids=generation.token_ids[:-1]) if stopped else generation


def always_length(_: DecodeRequest, generation: Generation) -> Generation:
    return replace(generation, finish_reason="length")


def bonus_counted_as_accepted(round_: Round) -> Round:
    return replace(round_, accepted=round_.emitted)


def accepted_after_the_end_token(round_: Round) -> Round:
    """Draft tokens that passed after an end token are counted, though they are not in the output."""
    return replace(round_, accepted=round_.drafted) if round_.emitted == round_.accepted else round_


class RoundsOfTheLastPrompt(ReferenceBackend):
    """The list of rounds is never emptied."""

    kept: tuple[Round, ...] = ()

    def generate(self, request: DecodeRequest) -> Generation:
        generation = super().generate(request)
        self.kept = (*self.kept, *(generation.rounds or ()))
        return replace(generation, rounds=self.kept)


class LimitSeenBetweenRounds(ReferenceBackend):
    """The token limit is checked only at the start of a round."""

    def generate(self, request: DecodeRequest) -> Generation:
        longer = super().generate(replace(request, max_new_tokens=request.max_new_tokens + request.num_draft_tokens))
        length, rounds = 1, []
        for round_ in longer.rounds or ():
            if length >= request.max_new_tokens:
                break
            rounds.append(round_)
            length += round_.emitted
        return replace(longer, token_ids=longer.token_ids[:length], rounds=tuple(rounds))


class ReplaysAnotherSeed(ReferenceBackend):
    def replay(self, request: DecodeRequest) -> Replay:
        return super().replay(replace(request, seed=request.seed + 1))


class ReplayExpectsAtTemperatureOne(ReferenceBackend):
    """Acceptance is expected from probabilities that were not warped; decoding itself is correct."""

    def replay(self, request: DecodeRequest) -> Replay:
        rule = RULES[request.rule]

        def unwarped(tokens_G: Tensor, *probs: Tensor) -> Tensor:
            flat = [p.pow(request.temperature) for p in probs]
            return rule.acceptance_probs(tokens_G, *(p / p.sum(-1, keepdim=True) for p in flat))

        with patch.dict(RULES, {request.rule: replace(rule, acceptance_probs=unwarped)}):
            return super().replay(request)


class ReplayExpectsForUntested(ReferenceBackend):
    """Untested draft tokens are given an acceptance probability too."""

    def replay(self, request: DecodeRequest) -> Replay:
        right = super().replay(request)
        padded = tuple(
            probs + (0.0,) * (round_.drafted - len(probs))
            for probs, round_ in zip(right.acceptance_probs, right.rounds, strict=True)
        )
        return replace(right, acceptance_probs=padded)


class SeedsTheWholeProcess(ReferenceBackend):
    def generate(self, request: DecodeRequest) -> Generation:
        torch.manual_seed(request.seed)
        return super().generate(request)


class IgnoresTheSeed(ReferenceBackend):
    calls = 0

    def generate(self, request: DecodeRequest) -> Generation:
        self.calls += 1
        return super().generate(replace(request, seed=request.seed + 1000 * self.calls))
