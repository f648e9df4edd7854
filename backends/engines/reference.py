"""The reference backend: speculative decoding for any pair of transformers language models, batch 1.

One round, with the sequence so far ending in a token that neither model has been fed:

    tokens          ... a b          b is the newest; the target's cache ends at a
    draft           feeds what it has not seen, then drafts d1 .. dG one by one
    target          feeds b d1 .. dG in one pass: G + 1 rows of logits, row i judges d(i+1), row G is the bonus position
    judge           the first A drafts pass; the token after them is recovered (A < G) or bonus (A = G)
    rewind          both caches back to ... a b d1 .. dA: the newest token is again unfed

The host learns once per round what happened, in one transfer. Source: Leviathan et al. 2023, arXiv 2211.17192.
Shape letters: B batch (always 1), T tokens fed, G draft positions, M tokens of the draft's head, N rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backends.acceptance.rules import RULES, Rule
from backends.acceptance.warping import sample, warp
from backends.engines.generate_call import GenerateDecoding, Watch
from backends.engines.in_process import InProcess, PhaseClock, call_generate, finish_reason, settings_of
from backends.engines.options import parse_options
from backends.forwards import draft_head, floor
from backends.forwards.cached_model import CachedModel, cached
from backends.forwards.compiled_llama import CompiledLlama
from backends.forwards.fused_llama import FusedLlama, supports
from backends.forwards.products import Layout
from backends.models.loading import load_model
from bench.prompts.formatting import end_token_ids
from bench.protocols import Capabilities
from bench.records.decoding import (
    DecodeRequest,
    ForwardSeconds,
    Generation,
    ModelPair,
    Replay,
    Round,
    Scalar,
    num_tested,
    schedule_text,
)

Remembering = CachedModel | FusedLlama
Caches = tuple[Remembering, Remembering]  # target and draft
Forward = Literal["fused", "transformers"]


@dataclass(frozen=True, slots=True)
class Options:
    """What `--backend-option` may set."""

    forward: Forward = "fused"  # if we have one for the architecture
    weights: Layout = "packed"  # packed: laid out for the processor, if it gains by that; takes their memory a second time
    compile: Literal["true", "false"] = "false"  # true: both models' fused forwards as graphs of torch.compile, in both arms
    draft_vocabulary: int = 0  # the draft proposes only so many tokens, the most frequent ones; 0: any token


def remembering(model: PreTrainedModel, options: Options) -> Remembering:
    """Return the model with its cache. Raises: ValueError: it cannot be compiled, and as `cached`."""
    if options.compile == "true":
        return CompiledLlama(model, options.weights)
    return FusedLlama(model, options.weights) if options.forward == "fused" and supports(model) else cached(model)


@dataclass(frozen=True, slots=True)
class Drafts:
    """What the draft model proposed in one round, on the device."""

    tokens_G: Tensor
    probs_GV: Tensor


class Probe(PhaseClock):
    """The instruments of a replay: seconds per phase and acceptance probabilities."""

    def __init__(self, backend: ReferenceBackend) -> None:
        super().__init__(backend.synchronize)
        self.acceptance_probs: list[tuple[float, ...]] = []
        self.joint_length: list[float] = []

    def judged(
        self, request: DecodeRequest, drafts: Drafts, target_probs_NV: Tensor, drafted: list[int], outcome: Round
    ) -> None:
        """Note the acceptance probability of every tested position of a round."""
        rule = RULES[request.rule]
        probs = rule.acceptance_probs(drafts.tokens_G, drafts.probs_GV, target_probs_NV).tolist()
        if rule.jointly:
            # A drafted end token closes the round if it is kept, so nothing after it is ever kept.
            self.joint_length.append(sum(probs[: num_until_end(drafted, request.eos_token_ids)]))
            self.acceptance_probs.append(())
        else:
            self.acceptance_probs.append(tuple(probs[: num_tested(outcome)]))
        self.restart()


def num_until_end(tokens: Sequence[int], eos_token_ids: Sequence[int]) -> int:
    """Return how many tokens there are up to the first end token, which counts; all of them if none is an end token."""
    return next((place + 1 for place, token in enumerate(tokens) if token in eos_token_ids), len(tokens))


def next_draft_length(length: int, last: Round, *, longest: int) -> int:
    """Return the last round's length + 2 if all its drafts were accepted, else - 1, within 1..longest.

    It depends on the past only, so decoding stays lossless.
    Source:  transformers' heuristic schedule of assisted generation, which has no upper limit
    """
    return min(length + 2, longest) if last.accepted == last.drafted else max(length - 1, 1)


class ReferenceDecoding:
    """One generation in progress, with caches that no other one uses."""

    def __init__(self, backend: ReferenceBackend, request: DecodeRequest, caches: Caches, probe: Probe | None = None) -> None:
        if request.rule not in RULES:
            raise ValueError(f"expected an acceptance rule of {', '.join(sorted(RULES))}, got {request.rule!r}")
        self.backend, self.request, self.caches, self.probe = backend, request, caches, probe
        self.generator = torch.Generator(backend.device).manual_seed(request.seed)  # the global random state stays untouched
        self.tokens = list(request.prompt_ids)
        self.rounds: list[Round] = []
        self.length = request.num_draft_tokens  # of the next round's draft
        self.end = len(request.prompt_ids) + request.max_new_tokens
        self.first_token_s = 0.0

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)

    @torch.inference_mode()
    def advance(self) -> bool:
        backend, request = self.backend, self.request
        backend.target, backend.draft = self.caches
        if not self.num_tokens:
            self._prefill()
        elif not request.num_draft_tokens:
            self.tokens.append(backend.step(request, self.tokens[-1], self.generator))
        else:
            # The target adds one token itself, so drafting up to the limit would waste the last draft.
            num_drafts = min(self.length, self.end - len(self.tokens) - 1)
            self.rounds.append(backend.round(request, self.tokens, num_drafts, self.generator, self.probe))
            if request.draft_length == "adaptive":
                self.length = next_draft_length(self.length, self.rounds[-1], longest=request.num_draft_tokens)
        ended = len(self.tokens) >= self.end or self.tokens[-1] in request.eos_token_ids
        if ended:
            self.close()
        return ended

    def _prefill(self) -> None:
        start, speculative = time.perf_counter(), self.request.num_draft_tokens > 0
        self.tokens.append(self.backend.prefill(self.request, self.generator, speculative=speculative))
        self.first_token_s = time.perf_counter() - start
        if self.probe:
            self.probe.lap("prefill")

    def generation(self) -> Generation:
        new = tuple(self.tokens[len(self.request.prompt_ids) :])
        return Generation(new, finish_reason(new, self.request), tuple(self.rounds), self.first_token_s)

    def close(self) -> None:
        self.backend.release(self)


class ReferenceBackend(InProcess):
    """Both arms of the measurement on two loaded models: `num_draft_tokens = 0` is the autoregressive baseline."""

    name = "reference"
    capabilities = Capabilities(
        rules=frozenset(RULES), families=frozenset({"causal", "encoder-decoder"}), schedules=True, adaptive_draft_length=True
    )
    target: Remembering
    draft: Remembering

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        options: Options = Options(),
        *,
        draft_token_ids: Sequence[int] | None = None,
    ) -> None:
        """Take two models. `draft_token_ids`: tokens of the rows of the draft's head, if it was restricted (`draft_head`)."""
        self.target = remembering(target, options)
        self.draft = remembering(draft, options)
        self.in_progress: list[ReferenceDecoding] = []
        self.spare_caches: list[Caches] = []
        self.device = target.device
        self.vocab_size = target.config.get_text_config().vocab_size
        self.draft_token_ids_M = None if draft_token_ids is None else torch.tensor(draft_token_ids, device=self.device)

    def start(self, request: DecodeRequest, probe: Probe | None = None) -> ReferenceDecoding:
        """Begin a generation. With others in progress it gets separate caches."""
        caches = (self.target, self.draft)
        if self.in_progress:
            caches = self.spare_caches.pop() if self.spare_caches else (self.target.twin(), self.draft.twin())
        decoding = ReferenceDecoding(self, request, caches, probe)
        self.in_progress.append(decoding)
        return decoding

    def release(self, decoding: ReferenceDecoding) -> None:
        """Take back the caches of a generation that has ended."""
        if decoding in self.in_progress:
            self.in_progress.remove(decoding)
            if self.in_progress:  # else its caches stay the current ones
                self.spare_caches.append(decoding.caches)

    def generate(self, request: DecodeRequest) -> Generation:
        return self._to_the_end(self.start(request))

    def replay(self, request: DecodeRequest) -> Replay:
        """Decode the request again, with phases timed (synchronised at each) and acceptance probabilities noted."""
        probe = Probe(self)
        generation = self._to_the_end(self.start(request, probe))
        joint = tuple(probe.joint_length) if RULES[request.rule].jointly else None
        return Replay(generation.token_ids, generation.rounds or (), tuple(probe.acceptance_probs), joint, probe.seconds)

    def _to_the_end(self, decoding: ReferenceDecoding) -> Generation:
        try:
            while not decoding.advance():
                pass
        finally:
            decoding.close()
        return decoding.generation()

    def prefill(self, request: DecodeRequest, generator: torch.Generator, *, speculative: bool) -> int:
        """Feed the prompt to the models that will run, and draw the first token from the target."""
        self.target.reset()
        prompt = torch.tensor([request.prompt_ids], device=self.device)
        probs = self.target_probs(self.target.feed(prompt, num_logits=1), request)
        if speculative:
            self.draft.reset()
            self.draft.feed(prompt, num_logits=1)  # its logits are not used: the first token is the target's
        return int(sample(probs, self.uniforms(1, generator)))

    def step(self, request: DecodeRequest, newest: int, generator: torch.Generator) -> int:
        """Feed the newest token to the target, and draw the next one: one autoregressive step."""
        logits = self.target.feed(torch.tensor([[newest]], device=self.device), num_logits=1)
        return int(sample(self.target_probs(logits, request), self.uniforms(1, generator)))

    def round(
        self, request: DecodeRequest, tokens: list[int], num_drafts: int, generator: torch.Generator, probe: Probe | None
    ) -> Round:
        """Draft, verify and judge once. The emitted tokens are appended to `tokens`."""
        rule = RULES[request.rule]
        lap = probe.lap if probe else lambda phase: None  # a timed run must not wait for the device at each phase
        # One uniform draws each draft token, one tests it, and one draws the target's own token.
        uniforms = self.uniforms(2 * num_drafts + 1, generator)
        lap("other")

        drafts = self.draft_tokens(request, tokens, uniforms[:num_drafts], rule)
        lap("draft")

        newest = torch.tensor([tokens[-1]], device=self.device)
        logits = self.target.feed(torch.cat((newest, drafts.tokens_G))[None], num_logits=num_drafts + 1)
        lap("verify")

        target_probs = self.target_probs(logits, request)
        judgement = rule.judge(drafts.tokens_G, drafts.probs_GV, target_probs, uniforms[num_drafts:])
        outcome = torch.stack((judgement.num_accepted, judgement.next_token))
        # The round's one transfer to the host, which waits for the device here.
        *drafted, accepted, next_token = torch.cat((drafts.tokens_G, outcome)).tolist()
        lap("accept")

        emitted = [*drafted[:accepted], next_token]
        emitted = emitted[: num_until_end(emitted, request.eos_token_ids)]
        tokens.extend(emitted)
        self.target.rewind(len(tokens) - 1)  # the newest token stays unfed
        self.draft.rewind(len(tokens) - 1)
        result = Round(drafted=num_drafts, accepted=min(accepted, len(emitted)), emitted=len(emitted))
        lap("other")
        if probe:
            probe.judged(request, drafts, target_probs, drafted, result)
        return result

    def draft_tokens(self, request: DecodeRequest, tokens: list[int], uniforms_G: Tensor, rule: Rule) -> Drafts:
        """Draft one token per forward. The first forward also feeds what the draft has not seen (1 or 2 tokens)."""
        if uniforms_G.numel() == 0:
            nothing = torch.empty(0, self.vocab_size, device=self.device)
            return Drafts(torch.empty(0, dtype=torch.long, device=self.device), nothing)
        fed = torch.tensor([tokens[self.draft.length :]], device=self.device)
        drafted, probs, token_ids_M = [], [], self.draft_token_ids_M  # M: what the rows of a restricted head stand for
        for uniform in uniforms_G.split(1):
            logits = self.draft.feed(fed, num_logits=1)
            # The newest token has been fed now, so the draft's length is the place of the token to be drawn.
            temperature = request.draft_temperature_at(self.draft.length - len(request.prompt_ids))
            probs.append(warp(logits, temperature=temperature, top_k=request.top_k, top_p=request.top_p))
            token = probs[-1].argmax(-1) if rule.drafting == "argmax" else sample(probs[-1], uniform)
            drafted.append(token if token_ids_M is None else token_ids_M[token])
            fed = drafted[-1][None]
        probs_GM = torch.cat(probs)
        probs_GV = probs_GM if token_ids_M is None else draft_head.spread(probs_GM, token_ids_M, self.vocab_size)
        return Drafts(torch.cat(drafted), probs_GV)

    def target_probs(self, logits_NV: Tensor, request: DecodeRequest) -> Tensor:
        """Return the target's distributions after the last tokens fed, each at the temperature of the token it judges."""
        # Row N - 1 judges new token number length - len(prompt), counted from 0, and row N - 1 - i the token i before it.
        last = self.target.length - len(request.prompt_ids)
        temperatures = [request.temperature_at(last - above) for above in reversed(range(len(logits_NV)))]
        if len(set(temperatures)) == 1:
            return warp(logits_NV, temperature=temperatures[0], top_k=request.top_k, top_p=request.top_p)
        rows = zip(logits_NV.split(1), temperatures, strict=True)
        return torch.cat([warp(row_1V, temperature=t, top_k=request.top_k, top_p=request.top_p) for row_1V, t in rows])

    def uniforms(self, count: int, generator: torch.Generator) -> Tensor:
        """Return uniform numbers in [0, 1)."""
        return torch.rand(count, generator=generator, device=self.device, dtype=torch.float64)

    @torch.inference_mode()
    def time_forwards(self, request: DecodeRequest, *, context_length: int, samples: int) -> tuple[ForwardSeconds, ...]:
        """Time bare model calls after the prompt, repeated or cut to `context_length` tokens; caches are rewound in between."""
        repeats = -(-context_length // len(request.prompt_ids))  # rounded up
        context = torch.tensor([(request.prompt_ids * repeats)[:context_length]], device=self.device)
        for model in (self.target, self.draft):
            model.reset()
            model.feed(context, num_logits=1)
        one, many = context[:, -1:], context[:, -1:].expand(1, request.num_draft_tokens + 1).contiguous()
        return tuple(
            ForwardSeconds(
                context_length=context_length,
                ar_s=self._forward_seconds(self.target, one),
                draft_s=self._forward_seconds(self.draft, one),
                verify_s=self._forward_seconds(self.target, many),
                ar_floor_s=self._floor_seconds(self.target, 1),
                draft_floor_s=self._floor_seconds(self.draft, 1),
                verify_floor_s=self._floor_seconds(self.target, many.shape[1]),
            )
            for _ in range(samples)
        )

    def _forward_seconds(self, model: Remembering, tokens_BT: Tensor) -> float:
        self.synchronize()  # what was queued before must not be timed
        start = time.perf_counter()
        model.feed(tokens_BT, num_logits=tokens_BT.shape[1])
        self.synchronize()
        seconds = time.perf_counter() - start
        model.rewind(model.length - tokens_BT.shape[1])
        return seconds

    def _floor_seconds(self, model: Remembering, num_tokens: int) -> float | None:
        """Time the linear layers alone (`backends.forwards.floor`); None if they cannot be listed."""
        products = floor.products_of(model.model, model if isinstance(model, FusedLlama) else None)
        if not products:
            return None
        rows = floor.inputs_for(products, num_tokens, model.model.get_input_embeddings().weight)
        self.synchronize()
        start = time.perf_counter()
        floor.run(products, rows)
        self.synchronize()
        return time.perf_counter() - start

    def generate_natively(self, request: DecodeRequest) -> Generation:
        """Decode plainly with transformers' own `generate`, with the same sampling options but no schedule."""
        model, output = self.target.model, self._call_natively(request, None)
        num_before = 1 if model.config.is_encoder_decoder else len(request.prompt_ids)  # the decoder's start, or the prompt
        token_ids = tuple(output[0, num_before:].tolist())
        return Generation(token_ids, finish_reason(token_ids, request), (), None)

    def start_natively(self, request: DecodeRequest) -> GenerateDecoding:
        return GenerateDecoding(request, lambda watch: self._call_natively(request, watch), self.target.model)

    @torch.inference_mode()
    def _call_natively(self, request: DecodeRequest, watch: Watch | None) -> Tensor:
        if request.schedule:
            raise ValueError(f"expected one temperature, got the schedule {schedule_text(request.schedule)}")
        sampling = {"top_k": request.top_k, "top_p": request.top_p, "temperature": request.temperature}
        return call_generate(self.target.model, request, sampling if request.temperature else {}, streamer=watch)

    def settings(self) -> Mapping[str, Scalar]:
        fused_target = self.target if isinstance(self.target, FusedLlama) else None
        return {
            **settings_of(self.target.model),
            "forward_target": "fused" if fused_target else "transformers",
            "forward_draft": "fused" if isinstance(self.draft, FusedLlama) else "transformers",
            "weights": fused_target.layout if fused_target else "plain",
            "compiled": isinstance(self.target, CompiledLlama),
            **({} if self.draft_token_ids_M is None else {"draft_vocabulary": len(self.draft_token_ids_M)}),
        }


def load(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> ReferenceBackend:
    """Load both models of a pair on one device, or the target spread over several by the pair's device map.

    Raises:  ValueError: the device is absent, or an option does not exist or does not fit
    """
    # The fused forward needs all layers on one device.
    defaults = {"forward": "transformers"} if pair.device_map else {}
    chosen = parse_options(Options, defaults | dict(options), backend="reference")
    if pair.device_map and chosen.forward == "fused":
        raise ValueError("backend reference: expected forward=transformers for a device_map, got 'fused'")
    if chosen.compile == "true" and (chosen.forward, chosen.weights) != ("fused", "packed"):
        raise ValueError("backend reference: expected forward=fused and weights=packed with compile=true")
    token_ids = None
    if chosen.draft_vocabulary:
        always = end_token_ids(pair)
        token_ids = draft_head.frequent_tokens(Path(pair.draft), chosen.draft_vocabulary, always=always)
    target = load_model(pair.target, dtype=pair.dtype, device=device, device_map=pair.device_map)
    draft = load_model(pair.draft, dtype=pair.dtype, device=str(target.device))  # beside the target's first layer
    if token_ids is not None:
        draft_head.restrict(draft, token_ids)
    return ReferenceBackend(target, draft, chosen, draft_token_ids=token_ids)
