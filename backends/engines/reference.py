"""The reference backend: speculative decoding for any pair of transformers language models, batch 1.

One round, with the sequence so far ending in a token that neither model has been fed:

    tokens          ... a b          b is the newest; the target's cache ends at a
    draft           feeds what it has not seen, then drafts d1 .. dG one by one
    target          feeds b d1 .. dG in one pass: G + 1 rows of logits, row i judges d(i+1), row G is the bonus position
    judge           the first A drafts pass; the token after them is recovered (A < G) or bonus (A = G)
    rewind          both caches back to ... a b d1 .. dA: the newest token is again unfed

The host learns what happened once a round, in one transfer. Source: Leviathan et al. 2023, arXiv 2211.17192.
Shape letters: G draft positions, N rows, V vocabulary.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel

from backends.acceptance.rules import RULES, Rule
from backends.acceptance.warping import sample, warp
from backends.forwards import draft_head, floor
from backends.forwards.cached_model import CachedEncoderDecoder, CachedModel, cache_for_generate, cached
from backends.forwards.compiled_llama import CompiledLlama, compilable
from backends.forwards.fused_llama import FusedLlama, supports
from backends.forwards.products import Layout
from backends.models.loading import load_model
from bench.prompts.formatting import end_token_ids
from bench.protocols import Capabilities
from bench.records.decoding import (
    DecodeRequest,
    FinishReason,
    ForwardSeconds,
    Generation,
    ModelPair,
    PhaseSeconds,
    Replay,
    Round,
    Scalar,
    schedule_text,
)

Remembering = CachedModel | CachedEncoderDecoder | FusedLlama
Forward = Literal["fused", "transformers"]
OPTIONS = frozenset({"forward", "weights", "compile", "draft_vocabulary"})


def remembering(
    model: PreTrainedModel, forward: Forward, layout: Layout = "packed", *, compiled: bool = False
) -> Remembering:
    """The model with its cache; fused where it is asked for and can be had.

    Raises:  ValueError: it is to be compiled, and its architecture or its device cannot be; and as `cached`
    """
    if compiled:
        return CompiledLlama(compilable(model), layout)
    return FusedLlama(model, layout) if forward == "fused" and supports(model) else cached(model)


@dataclass(frozen=True, slots=True)
class Drafts:
    """What the draft model proposed in one round."""

    tokens_G: torch.Tensor
    probs_GV: torch.Tensor


@dataclass(frozen=True, slots=True)
class Trace:
    """Tokens and rounds of one finished generation."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    rounds: tuple[Round, ...]
    first_token_s: float


class Probe:
    """The instruments of a replay: seconds per phase and acceptance probabilities. Timed runs carry none."""

    def __init__(self, backend: ReferenceBackend) -> None:
        self.backend = backend
        self.phase_s = dict.fromkeys(("prefill", "draft", "verify", "accept", "other"), 0.0)
        self.acceptance_probs: list[tuple[float, ...]] = []
        self.joint_length: list[float] = []
        self.last = self._now()

    def _now(self) -> float:
        self.backend.synchronize()
        return time.perf_counter()

    def lap(self, phase: str) -> None:
        """Charge the time since the last lap to `phase`."""
        now = self._now()
        self.phase_s[phase] += now - self.last
        self.last = now

    def judged(
        self, request: DecodeRequest, drafts: Drafts, target_probs_NV: torch.Tensor, drafted: list[int], outcome: Round
    ) -> None:
        """Note the acceptance probability of every tested position of a round."""
        rule = RULES[request.rule]
        probs = rule.acceptance_probs(drafts.tokens_G, drafts.probs_GV, target_probs_NV).tolist()
        if rule.jointly:
            # A drafted end token closes the round if it is kept, so what stands behind it is never kept.
            end_at = first_end(drafted, request.eos_token_ids)
            self.joint_length.append(sum(probs if end_at is None else probs[: end_at + 1]))
            self.acceptance_probs.append(())
        else:
            tested = outcome.accepted + (outcome.emitted > outcome.accepted and outcome.accepted < outcome.drafted)
            self.acceptance_probs.append(tuple(probs[:tested]))
        self.last = self._now()


def first_end(tokens: Sequence[int], eos_token_ids: Sequence[int]) -> int | None:
    """Place of the first end token."""
    return next((place for place, token in enumerate(tokens) if token in eos_token_ids), None)


def next_draft_length(length: int, last: Round, *, longest: int) -> int:
    """Two more after a round whose drafts were all accepted, else one less; in 1..longest. It knows the past only: lossless.

    Source:  transformers' heuristic schedule of assisted generation, which knows no longest
    """
    return min(length + 2, longest) if last.accepted == last.drafted else max(length - 1, 1)


class ReferenceBackend:
    """Both arms of the measurement on two loaded models: `num_draft_tokens = 0` is the autoregressive baseline."""

    name = "reference"
    capabilities = Capabilities(
        rules=frozenset(RULES),
        families=frozenset({"causal", "encoder-decoder"}),
        schedules=True,
        adaptive_draft_length=True,
    )

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        *,
        forward: Forward = "fused",
        weights: Layout = "packed",
        compiled: bool = False,
        draft_token_ids: Sequence[int] | None = None,
    ) -> None:
        """draft_token_ids: of the rows of the draft's head, where it has been restricted (`backends.forwards.draft_head`)."""
        self.target = remembering(target, forward, weights, compiled=compiled)
        self.draft = remembering(draft, forward, weights, compiled=compiled)
        self.device = target.device
        self.vocab_size = target.config.get_text_config().vocab_size
        self.draft_token_ids_M = None if draft_token_ids is None else torch.tensor(draft_token_ids, device=self.device)

    def generate(self, request: DecodeRequest) -> Generation:
        trace = self._decode(request, probe=None)
        return Generation(trace.token_ids, trace.finish_reason, trace.rounds, trace.first_token_s)

    def replay(self, request: DecodeRequest) -> Replay:
        """The same request again with phases timed (synchronised at each) and acceptance probabilities noted."""
        probe = Probe(self)
        trace = self._decode(request, probe=probe)
        joint = tuple(probe.joint_length) if RULES[request.rule].jointly else None
        return Replay(
            trace.token_ids, trace.rounds, tuple(probe.acceptance_probs), joint, PhaseSeconds(**probe.phase_s)
        )

    @torch.inference_mode()
    def _decode(self, request: DecodeRequest, *, probe: Probe | None) -> Trace:
        start = time.perf_counter()
        if request.rule not in RULES:
            raise ValueError(f"expected an acceptance rule of {', '.join(sorted(RULES))}, got {request.rule!r}")
        generator = torch.Generator(self.device).manual_seed(request.seed)
        speculative = request.num_draft_tokens > 0
        tokens = list(request.prompt_ids)
        tokens.append(self._prefill(request, generator, speculative=speculative))
        first_token_s = time.perf_counter() - start
        if probe:
            probe.lap("prefill")

        rounds: list[Round] = []
        length = request.num_draft_tokens
        end = len(request.prompt_ids) + request.max_new_tokens
        while len(tokens) < end and tokens[-1] not in request.eos_token_ids:
            if speculative:
                # The target adds one token of its own, so drafting up to the limit would waste the last draft.
                num_drafts = min(length, end - len(tokens) - 1)
                rounds.append(self._round(request, tokens, num_drafts, generator, probe))
                if request.draft_length == "adaptive":
                    length = next_draft_length(length, rounds[-1], longest=request.num_draft_tokens)
            else:
                tokens.append(self._step(request, tokens[-1], generator))
        finished: FinishReason = "stop" if tokens[-1] in request.eos_token_ids else "length"
        return Trace(tuple(tokens[len(request.prompt_ids) :]), finished, tuple(rounds), first_token_s)

    def _prefill(self, request: DecodeRequest, generator: torch.Generator, *, speculative: bool) -> int:
        """Feed the prompt to the models that will run and draw the first token from the target."""
        self.target.reset()
        prompt = torch.tensor([request.prompt_ids], device=self.device)
        probs = self._target_probs(self.target.feed(prompt, num_logits=1), request)
        if speculative:
            self.draft.reset()
            self.draft.feed(prompt, num_logits=1)
        return int(sample(probs, self._uniforms(1, generator)))

    def _step(self, request: DecodeRequest, newest: int, generator: torch.Generator) -> int:
        """One autoregressive step: the target is fed the newest token and its own next token is drawn."""
        logits = self.target.feed(torch.tensor([[newest]], device=self.device), num_logits=1)
        return int(sample(self._target_probs(logits, request), self._uniforms(1, generator)))

    def _round(
        self,
        request: DecodeRequest,
        tokens: list[int],
        num_drafts: int,
        generator: torch.Generator,
        probe: Probe | None,
    ) -> Round:
        """One draft-then-verify pass; the emitted tokens are appended to `tokens`."""
        rule = RULES[request.rule]
        uniforms = self._uniforms(num_drafts + rule.num_uniforms(num_drafts), generator)
        if probe:
            probe.lap("other")

        drafts = self._draft_tokens(request, tokens, uniforms[:num_drafts], rule)
        if probe:
            probe.lap("draft")

        newest = torch.tensor([tokens[-1]], device=self.device)
        fed = torch.cat((newest, drafts.tokens_G))[None]
        logits = self.target.feed(fed, num_logits=num_drafts + 1)
        if probe:
            probe.lap("verify")

        target_probs = self._target_probs(logits, request)
        judgement = rule.judge(drafts.tokens_G, drafts.probs_GV, target_probs, uniforms[num_drafts:])
        outcome = torch.stack((judgement.num_accepted, judgement.next_token))
        # The round's one transfer to the host.
        *drafted, accepted, next_token = torch.cat((drafts.tokens_G, outcome)).tolist()
        if probe:
            probe.lap("accept")

        emitted = [*drafted[:accepted], next_token]
        end_at = first_end(emitted, request.eos_token_ids)
        if end_at is not None:
            emitted = emitted[: end_at + 1]
        tokens.extend(emitted)
        self.target.rewind(len(tokens) - 1)
        self.draft.rewind(len(tokens) - 1)
        result = Round(drafted=num_drafts, accepted=min(accepted, len(emitted)), emitted=len(emitted))
        if probe:
            probe.lap("other")
            probe.judged(request, drafts, target_probs, drafted, result)
        return result

    def _draft_tokens(self, request: DecodeRequest, tokens: list[int], uniforms_G: torch.Tensor, rule: Rule) -> Drafts:
        """Draft one token a forward. The first forward also feeds what the draft has not seen (1 or 2 tokens)."""
        if uniforms_G.numel() == 0:
            nothing = torch.empty(0, self.vocab_size, device=self.device)
            return Drafts(torch.empty(0, dtype=torch.long, device=self.device), nothing)
        fed = torch.tensor([tokens[self.draft.length :]], device=self.device)
        drafted, probs, token_ids_M = [], [], self.draft_token_ids_M
        for uniform in uniforms_G.split(1):
            logits = self.draft.feed(fed, num_logits=1)
            temperature = request.draft_temperature_at(self.draft.length - len(request.prompt_ids))
            probs.append(warp(logits, temperature=temperature, top_k=request.top_k, top_p=request.top_p))
            token = probs[-1].argmax(-1) if rule.drafting == "argmax" else sample(probs[-1], uniform)
            drafted.append(token if token_ids_M is None else token_ids_M[token])
            fed = drafted[-1][None]
        probs_GM = torch.cat(probs)
        probs_GV = probs_GM if token_ids_M is None else draft_head.spread(probs_GM, token_ids_M, self.vocab_size)
        return Drafts(torch.cat(drafted), probs_GV)

    def _target_probs(self, logits_NV: torch.Tensor, request: DecodeRequest) -> torch.Tensor:
        """Rows behind the last tokens fed, each at the temperature of the new token that it judges."""
        # What was fed ends one token before the one that the last row judges.
        last = self.target.length - len(request.prompt_ids)
        temperatures = [request.temperature_at(last - above) for above in reversed(range(len(logits_NV)))]
        if len(set(temperatures)) == 1:
            return warp(logits_NV, temperature=temperatures[0], top_k=request.top_k, top_p=request.top_p)
        rows = zip(logits_NV.split(1), temperatures, strict=True)
        return torch.cat([warp(row_1V, temperature=t, top_k=request.top_k, top_p=request.top_p) for row_1V, t in rows])

    def _uniforms(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(count, generator=generator, device=self.device, dtype=torch.float64)

    @torch.inference_mode()
    def time_forwards(self, request: DecodeRequest, *, context_length: int, samples: int) -> tuple[ForwardSeconds, ...]:
        """Bare model calls behind the prompt, repeated or cut to `context_length` tokens; caches rewound in between."""
        repeats = -(-context_length // len(request.prompt_ids))
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

    def _forward_seconds(self, model: Remembering, tokens_BT: torch.Tensor) -> float:
        length = model.length
        self.synchronize()
        start = time.perf_counter()
        model.feed(tokens_BT, num_logits=tokens_BT.shape[1])
        self.synchronize()
        seconds = time.perf_counter() - start
        model.rewind(length)
        return seconds

    def _floor_seconds(self, model: Remembering, num_tokens: int) -> float | None:
        """Of the linear layers alone (`backends.forwards.floor`)."""
        products = floor.products_of(model.model, model if isinstance(model, FusedLlama) else None)
        if not products:
            return None
        rows = floor.inputs_for(products, num_tokens, model.model.get_input_embeddings().weight)
        self.synchronize()
        start = time.perf_counter()
        floor.run(products, rows)
        self.synchronize()
        return time.perf_counter() - start

    @torch.inference_mode()
    def generate_natively(self, request: DecodeRequest) -> Generation:
        """The engine's own plain decode, `model.generate`, with the same sampling options. It knows no schedule."""
        if request.schedule:
            raise ValueError(f"expected one temperature, got the schedule {schedule_text(request.schedule)}")
        greedy = request.temperature == 0
        sampling: dict[str, Any] = {"top_k": request.top_k, "top_p": request.top_p, "temperature": request.temperature}
        config = GenerationConfig(
            max_new_tokens=request.max_new_tokens,
            eos_token_id=list(request.eos_token_ids) or None,
            pad_token_id=request.eos_token_ids[0] if request.eos_token_ids else 0,
            do_sample=not greedy,
            decoder_start_token_id=getattr(self.target.model.config, "decoder_start_token_id", None),
            **({} if greedy else sampling),
        )
        prompt = torch.tensor([request.prompt_ids], device=self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        model, checkpoints_own = self.target.model, self.target.model.generation_config
        # What the request leaves unset, such as an end token to be ignored, generate would take from the checkpoint.
        model.generation_config = GenerationConfig()
        try:
            # generate draws from the global random state: keep the caller's untouched.
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(request.seed)
                output = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    generation_config=config,
                    **cache_for_generate(model),
                )
        finally:
            model.generation_config = checkpoints_own
        num_before = 1 if model.config.is_encoder_decoder else prompt.shape[1]  # the decoder's start, or the prompt
        token_ids = tuple(output[0, num_before:].tolist())
        finished: FinishReason = "stop" if token_ids[-1] in request.eos_token_ids else "length"
        return Generation(token_ids, finished, (), None)

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def settings(self) -> Mapping[str, Scalar]:
        config = self.target.model.config
        return {
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "forward_target": "fused" if isinstance(self.target, FusedLlama) else "transformers",
            "forward_draft": "fused" if isinstance(self.draft, FusedLlama) else "transformers",
            "attention": config._attn_implementation,
            "dtype": str(self.target.model.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "weights": self.target.layout if isinstance(self.target, FusedLlama) else "plain",
            "compiled": isinstance(self.target, CompiledLlama),
            **({} if self.draft_token_ids_M is None else {"draft_vocabulary": len(self.draft_token_ids_M)}),
        }

    def close(self) -> None:
        del self.target, self.draft
        gc.collect()  # hooks of a device map hold their model in a circle
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> ReferenceBackend:
    """Load both models of a pair on one device, or the target as the pair's device map spreads it.

    Options: `forward`: `fused` (where we have one for the architecture, and the target lies on one device: then it is the
             default) or `transformers`
             `weights`: `packed` (of a fused forward, laid out anew where the processor gains by it, which takes their memory
             a second time) or `plain`
             `compile`: `true`: the fused forwards of both models as graphs of `torch.compile` (`backends.forwards.compiled_llama`),
             in both arms; or `false`
             `draft_vocabulary`: the draft proposes only so many tokens, the most frequent ones (`backends.forwards.draft_head`)
    Raises:  ValueError: the device is absent, or an option is none of these
    """
    if unknown := sorted(set(options) - OPTIONS):
        raise ValueError(f"backend reference takes the options {', '.join(sorted(OPTIONS))}, got {', '.join(unknown)}")
    forward = options.get("forward", "transformers" if pair.device_map else "fused")
    if forward not in ("fused", "transformers"):
        raise ValueError(f"backend reference: expected fused or transformers for forward, got {forward!r}")
    if pair.device_map and forward == "fused":
        raise ValueError(f"backend reference: expected forward=transformers for a device_map, got {forward!r}")
    weights = options.get("weights", "packed")
    if weights not in ("packed", "plain"):
        raise ValueError(f"backend reference: expected packed or plain for weights, got {weights!r}")
    compiled = options.get("compile", "false")
    if compiled not in ("true", "false"):
        raise ValueError(f"backend reference: expected true or false for compile, got {compiled!r}")
    if compiled == "true" and (forward, weights) != ("fused", "packed"):
        raise ValueError("backend reference: expected forward=fused and weights=packed with compile=true")
    token_ids = _draft_token_ids(pair, options.get("draft_vocabulary"))
    target = load_model(pair.target, dtype=pair.dtype, device=device, device_map=pair.device_map)
    draft = load_model(pair.draft, dtype=pair.dtype, device=str(target.device))
    if token_ids is not None:
        draft_head.restrict(draft, token_ids)
    return ReferenceBackend(
        target,
        draft,
        forward=forward,  # type: ignore[arg-type]
        weights=weights,  # type: ignore[arg-type]
        compiled=compiled == "true",
        draft_token_ids=token_ids,
    )


def _draft_token_ids(pair: ModelPair, asked: str | None) -> tuple[int, ...] | None:
    if asked is None:
        return None
    if not asked.isdecimal():
        raise ValueError(f"backend reference: expected a number of tokens for draft_vocabulary, got {asked!r}")
    return draft_head.frequent_tokens(Path(pair.draft), int(asked), always=end_token_ids(pair))
