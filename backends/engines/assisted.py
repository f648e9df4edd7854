"""Transformers' own speculative decoding, `model.generate`: with a draft model (tuned, or by default), or by prompt lookup.

Nothing of the library is replaced. What happens is read from outside, by a `Watch` (`backends.engines.generate_call`).

Shape letters: G draft positions of a round, N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import GenerationConfig, PreTrainedModel, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.utils import is_sklearn_available

from backends.acceptance.rules import RULES
from backends.acceptance.warping import warp
from backends.engines.generate_call import GenerateDecoding, Watch
from backends.engines.in_process import InProcess, PhaseClock, call_generate, settings_of
from backends.forwards.cached_model import check_rewindable, has_deeper_decoder
from backends.models.loading import load_model
from bench.errors import BackendUnavailable
from bench.protocols import Capabilities
from bench.records.decoding import AUTOREGRESSIVE, DecodeRequest, Generation, ModelPair, Replay, Scalar, num_tested


class Probe(Watch):
    """The instruments of a replay: seconds per phase, synchronised at each, and acceptance probabilities."""

    def __init__(self, backend: GenerateBackend, request: DecodeRequest) -> None:
        super().__init__()
        self.backend = backend
        self.request = request
        self.clock = PhaseClock(backend.synchronize)
        self.acceptance_probs: list[tuple[float, ...]] = []
        self.draft_logits: list[Tensor] = []  # of this round, (1, V) each

    def attach(self, target: PreTrainedModel) -> list[RemovableHandle]:
        hooks = [*super().attach(target), target.register_forward_hook(self.after_target)]
        draft = self.backend.draft
        return hooks if draft is None else [*hooks, draft.register_forward_hook(self.after_draft)]

    def before_target(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        super().before_target(module, args, kwargs)
        self.lap("draft")

    def after_target(self, module: torch.nn.Module, args: Any, outputs: Any) -> None:
        self.lap("verify")
        self.target_logits = outputs.logits[0].clone()  # generate warps float32 logits in place

    def after_draft(self, module: torch.nn.Module, args: Any, outputs: Any) -> None:
        self.draft_logits.append(outputs.logits[0, -1:])  # the row after the newest token; a prompt has more

    def put(self, value: Tensor) -> None:
        super().put(value)
        self.lap("accept")
        if self.fed:
            self.note_acceptance(len(self.fed) - 1)
            self.clock.restart()

    def lap(self, phase: str) -> None:
        """Charge the time since the last lap. The first round is the prefill, its drafts included."""
        self.clock.lap("prefill" if len(self.fed) <= 1 else phase)

    def note_acceptance(self, index: int) -> None:
        """Note the acceptance probability of every tested position of a round."""
        round_ = self.round(index)
        probs: list[float] = []
        if num_tested(round_):
            drafts = torch.tensor(self.drafted(index), device=self.backend.device)
            draft_probs = self.backend.draft_probs(drafts, self.draft_logits, self.request)
            # The last G + 1 rows: in the first round the rows before them belong to the prompt.
            target_probs = warped(self.target_logits[-len(drafts) - 1 :], self.request)
            probs = RULES[self.request.rule].acceptance_probs(drafts, draft_probs, target_probs)[: num_tested(round_)].tolist()
        self.acceptance_probs.append(tuple(probs))
        self.draft_logits.clear()


def warped(logits_NV: Tensor, request: DecodeRequest) -> Tensor:
    """Return the distributions at the request's temperature and truncation."""
    return warp(logits_NV, temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)


class GenerateBackend(InProcess):
    """Both arms are one call of `target.generate`, the baseline without the speculation, which a subclass defines."""

    name: str
    capabilities: Capabilities
    draft: PreTrainedModel | None

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel | None) -> None:
        for model in filter(None, (target, draft)):
            check_rewindable(model)
        if draft is not None and has_deeper_decoder(draft):
            raise BackendUnavailable(
                "transformers cannot draft with a decoder that is deeper than its encoder "
                "(docs/upstream/transformers-deeper-decoder.md); backend reference can"
            )
        self.target = target
        self.draft = draft
        self.device = target.device

    def start(self, request: DecodeRequest) -> GenerateDecoding:
        return GenerateDecoding(request, lambda watch: self.decode(request, watch), self.target)

    def generate(self, request: DecodeRequest) -> Generation:
        watch = Watch()
        self.decode(request, watch)
        return watch.generation(request)

    def replay(self, request: DecodeRequest) -> Replay:
        """Decode the speculative request again, instrumented."""
        probe = Probe(self, request)
        self.decode(request, probe)
        probe.lap("other")
        return Replay(probe.token_ids(), probe.rounds(), tuple(probe.acceptance_probs), None, probe.clock.seconds)

    def decode(self, request: DecodeRequest, watch: Watch) -> None:
        """Decode one request while `watch` looks on."""
        if request.rule not in self.capabilities.rules:
            rules = ", ".join(self.capabilities.rules)
            raise ValueError(f"backend {self.name}: expected the rule {rules}, got {request.rule!r}")
        if request.schedule:
            raise ValueError(f"backend {self.name}: expected one temperature, got a schedule of them")
        if request.draft_temperature not in (None, request.temperature):
            expected = f"the draft at decode T {request.temperature:g}"
            raise ValueError(f"backend {self.name}: expected {expected}, got {request.draft_temperature:g}")
        sampling, processors = self.sampling(request) if request.temperature else ({}, [])
        if request.num_draft_tokens == AUTOREGRESSIVE:
            call_generate(self.target, request, sampling, processors=processors, streamer=watch)
            return
        options = sampling | self.speculation(request)
        hooks = watch.attach(self.target)
        try:
            call_generate(self.target, request, options, processors=processors, draft=self.draft, streamer=watch)
        finally:
            for hook in hooks:
                hook.remove()

    def sampling(self, request: DecodeRequest) -> tuple[dict[str, Any], list[Any]]:
        """Return the sampling options of the generation config, and logits processors that run after those of the config."""
        return {"temperature": request.temperature, "top_k": request.top_k, "top_p": request.top_p}, []

    def speculation(self, request: DecodeRequest) -> dict[str, Any]:
        """Return the options of the generation config that turn speculation on, besides the draft model."""
        return {}

    def draft_probs(self, drafts_G: Tensor, logits_G1V: list[Tensor], request: DecodeRequest) -> Tensor:
        """Return the distributions that a round's draft tokens were drawn from, (G, V)."""
        raise NotImplementedError

    def settings(self) -> Mapping[str, Scalar]:
        return settings_of(self.target)


class AssistedDefault(GenerateBackend):
    """`generate(assistant_model=...)` with default options: the engine chooses how much it drafts, k only turns it on.

    The draft samples at T squared (docs/upstream/transformers-draft-temperature.md), up to 20 tokens a round, and stops
    after one whose probability was below 0.4. The output follows the target all the same.
    """

    name = "assisted-default"
    capabilities = Capabilities(
        rules=frozenset({"rejection"}),
        draft_temperature=False,
        gaps={
            **dict.fromkeys(("replay", "draft_equal_to_target"), "the draft samples at T squared"),
            **dict.fromkeys(
                ("books[rejection]", "disjoint_support", "end_token[accepted-6]", "end_token[bonus-1]"),
                "the engine chooses how many tokens to draft",
            ),
        },
    )

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel) -> None:
        super().__init__(target, draft)
        # The request's end tokens hold for both models; the draft's other settings are those of its checkpoint.
        draft.generation_config.eos_token_id = None

    def draft_probs(self, drafts_G: Tensor, logits_G1V: list[Tensor], request: DecodeRequest) -> Tensor:
        return warped(warped(torch.cat(logits_G1V), request).log(), request)

    def settings(self) -> Mapping[str, Scalar]:
        assert self.draft is not None
        config = self.draft.generation_config
        return {
            **super().settings(),
            "num_assistant_tokens_schedule": config.num_assistant_tokens_schedule,  # None: the version's default
            "assistant_confidence_threshold": config.assistant_confidence_threshold,
            "assistant_confidence_adapts": is_sklearn_available(),  # with it, generate tunes a threshold above 0
        }


class Assisted(AssistedDefault):
    """`generate(assistant_model=...)` made comparable: always k draft tokens, and draft and target at the same T.

    The draft runs through `generate` with the target's processors and the target's config, from which it makes the same
    warpers once more. So the warpers are passed as processors and the config stays neutral: each model is then warped once.
    Tokens tied with the last one that top-k keeps are all kept.
    """

    name = "assisted"
    capabilities = Capabilities(rules=frozenset({"rejection"}), draft_temperature=False)

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel) -> None:
        super().__init__(target, draft)
        draft.generation_config = GenerationConfig(num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0)
        if draft.config.is_encoder_decoder:
            draft.register_forward_pre_hook(_without_what_is_cached, with_kwargs=True)

    def sampling(self, request: DecodeRequest) -> tuple[dict[str, Any], list[Any]]:
        warpers: list[Any] = [TemperatureLogitsWarper(request.temperature)]
        if request.top_k:
            warpers.append(TopKLogitsWarper(request.top_k))
        if request.top_p < 1:
            warpers.append(TopPLogitsWarper(request.top_p))
        return {"temperature": 1.0, "top_k": 0, "top_p": 1.0}, warpers

    def decode(self, request: DecodeRequest, watch: Watch) -> None:
        assert self.draft is not None
        self.draft.generation_config.num_assistant_tokens = request.num_draft_tokens  # generate reads it nowhere else
        super().decode(request, watch)

    def draft_probs(self, drafts_G: Tensor, logits_G1V: list[Tensor], request: DecodeRequest) -> Tensor:
        return warped(torch.cat(logits_G1V), request)


def _without_what_is_cached(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Cut from a draft's input what its cache holds already: with an encoder, generate feeds the whole output each round."""
    # See docs/upstream/transformers-encoder-decoder-draft.md.
    fed, known = kwargs["decoder_input_ids"], kwargs["past_key_values"].get_seq_length()
    return args, kwargs | {"decoder_input_ids": fed[:, known:]} if fed.shape[1] > 1 else kwargs


class PromptLookup(GenerateBackend):
    """`generate(prompt_lookup_num_tokens=k)`: drafts follow an earlier occurrence of the newest tokens; no draft model.

    The target samples its own token at every position and keeps the draft tokens equal to them, which is `exact_match`.
    The draft is certain of its token, so the acceptance probability is p(x), as in `one_hot`.
    """

    name = "prompt-lookup"
    capabilities = Capabilities(
        rules=frozenset({"exact_match"}),
        draft_temperature=False,
        gaps=dict.fromkeys(
            ("acceptance", "replay", "draft_equal_to_target", "disjoint_support", "end_token[accepted-6]"),
            "drafts are copied from the output, not drawn from the draft model",
        ),
    )

    def __init__(self, target: PreTrainedModel) -> None:
        super().__init__(target, None)

    def speculation(self, request: DecodeRequest) -> dict[str, Any]:
        return {"prompt_lookup_num_tokens": request.num_draft_tokens}

    def draft_probs(self, drafts_G: Tensor, logits_G1V: list[Tensor], request: DecodeRequest) -> Tensor:
        return torch.nn.functional.one_hot(drafts_G, self.target.config.get_text_config().vocab_size).float()


def load(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> Assisted:
    """Load `assisted`: fixed k, draft at the decode temperature."""
    return Assisted(*_models(Assisted.name, pair, device, options))


def load_default(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> AssistedDefault:
    """Load `assisted-default`: with the options that users get by default."""
    return AssistedDefault(*_models(AssistedDefault.name, pair, device, options))


def load_prompt_lookup(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> PromptLookup:
    """Load `prompt-lookup`: the pair's target alone."""
    if pair.family != "causal":  # an encoder's prompt is no part of what is searched
        raise BackendUnavailable(f"backend {PromptLookup.name} decodes causal pairs; {pair.name} is {pair.family}")
    return PromptLookup(next(_models(PromptLookup.name, pair, device, options)))


def _models(name: str, pair: ModelPair, device: str, options: Mapping[str, str]) -> Iterator[PreTrainedModel]:
    """Yield the target, then the draft, each loaded on demand. Raises: ValueError: an option was given."""
    if options:
        raise ValueError(f"backend {name} takes no options, got {', '.join(sorted(options))}")
    yield load_model(pair.target, dtype=pair.dtype, device=device, device_map=pair.device_map)
    yield load_model(pair.draft, dtype=pair.dtype, device=device)
