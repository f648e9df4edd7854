"""Transformers' own speculative decoding, `model.generate`: with a draft model tuned or as it comes, and by prompt lookup.

Nothing of the library is replaced. What happened is read from outside: a forward pre-hook on the target holds what was fed,
so the draft tokens, and a streamer what was emitted, a round at a time. Both only keep references until the text is done.

    fed          prompt d1 .. dG | newest d1 .. dG | ...      generate drafts before the target has run at all:
    streamed     prompt | d1 .. dA own | d1 .. dA own | ...   the first round carries the prefill, and rounds cover the text

The draft tokens that passed are the common start of drafted and emitted, for a token that replaces a rejected one differs
from it: the residual distribution has no mass there. `first_token_s` is the time to the end of the first round.

Shape letters: F tokens fed, G draft positions of a round, N rows, V vocabulary.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import takewhile
from typing import Any

import torch
import transformers
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils import is_sklearn_available

from backends.acceptance.rules import RULES
from backends.acceptance.warping import warp
from backends.forwards.cached_model import cache_for_generate, check_rewindable, has_deeper_decoder
from backends.models.loading import load_model
from bench.errors import BackendUnavailable
from bench.protocols import Capabilities
from bench.records.decoding import (
    DecodeRequest,
    FinishReason,
    Generation,
    ModelPair,
    PhaseSeconds,
    Replay,
    Round,
    Scalar,
    num_tested,
)


class Watch(BaseStreamer):
    """One call of `generate` seen from outside."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.first_token_s: float | None = None
        self.fed: list[torch.Tensor] = []  # (1, F) a target forward
        self.streamed: list[torch.Tensor] = []  # the prompt, then what each round or step emitted, on the host

    @contextmanager
    def attached(self, target: PreTrainedModel) -> Iterator[None]:
        handle = target.register_forward_pre_hook(self.before_target, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def before_target(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.fed.append(kwargs["decoder_input_ids" if "decoder_input_ids" in kwargs else "input_ids"])

    def put(self, value: torch.Tensor) -> None:
        self.streamed.append(value)
        if len(self.streamed) == 2:
            self.first_token_s = time.perf_counter() - self.start

    def end(self) -> None:
        pass

    def drafted(self, index: int) -> list[int]:
        """Draft tokens of a round: what was fed behind the newest token, in the first round behind the prompt."""
        num_known = self.streamed[0].numel() if index == 0 else 1
        return self.fed[index][0, num_known:].tolist()

    def emitted(self, index: int) -> list[int]:
        return self.streamed[1 + index].flatten().tolist()

    def round(self, index: int) -> Round:
        drafted, emitted = self.drafted(index), self.emitted(index)
        accepted = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(drafted, emitted, strict=False)))
        return Round(drafted=len(drafted), accepted=accepted, emitted=len(emitted))

    def rounds(self) -> tuple[Round, ...]:
        return tuple(self.round(index) for index in range(len(self.fed)))

    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for index in range(len(self.streamed) - 1) for token in self.emitted(index))


class Probe(Watch):
    """The instruments of a replay: seconds per phase, synchronised at each, and acceptance probabilities."""

    def __init__(self, backend: GenerateBackend, request: DecodeRequest) -> None:
        super().__init__()
        self.backend = backend
        self.request = request
        self.phase_s = dict.fromkeys(("prefill", "draft", "verify", "accept", "other"), 0.0)
        self.acceptance_probs: list[tuple[float, ...]] = []
        self.draft_logits: list[torch.Tensor] = []  # of this round, (1, V) each
        self.last = self._now()

    @contextmanager
    def attached(self, target: PreTrainedModel) -> Iterator[None]:
        with ExitStack() as hooks, super().attached(target):
            hooks.callback(target.register_forward_hook(self._behind_target).remove)
            if self.backend.draft is not None:
                hooks.callback(self.backend.draft.register_forward_hook(self._behind_draft).remove)
            yield
        self._lap("other")

    def before_target(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        super().before_target(module, args, kwargs)
        self._lap("draft")

    def _behind_target(self, module: torch.nn.Module, args: Any, outputs: Any) -> None:
        self._lap("verify")
        self.target_logits = outputs.logits[0].clone()  # generate warps float32 logits where they lie

    def _behind_draft(self, module: torch.nn.Module, args: Any, outputs: Any) -> None:
        self.draft_logits.append(outputs.logits[0, -1:])

    def put(self, value: torch.Tensor) -> None:
        super().put(value)
        self._lap("accept")
        if self.fed:
            self._note_acceptance(len(self.fed) - 1)
            self.last = self._now()

    def _note_acceptance(self, index: int) -> None:
        """Note the acceptance probability of every tested position of a round."""
        round_ = self.round(index)
        tested = num_tested(round_)
        if tested:
            drafts = torch.tensor(self.drafted(index), device=self.backend.device)
            draft_probs = self.backend.draft_probs(drafts, self.draft_logits, self.request)
            target_probs = warped(self.target_logits[-len(drafts) - 1 :], self.request)
            probs = RULES[self.request.rule].acceptance_probs(drafts, draft_probs, target_probs)
            self.acceptance_probs.append(tuple(probs[:tested].tolist()))
        else:
            self.acceptance_probs.append(())
        self.draft_logits.clear()

    def _now(self) -> float:
        self.backend.synchronize()
        return time.perf_counter()

    def _lap(self, phase: str) -> None:
        """Charge the time since the last lap; the first round is the prefill, its drafts included."""
        now = self._now()
        self.phase_s["prefill" if len(self.fed) <= 1 else phase] += now - self.last
        self.last = now


def warped(logits_NV: torch.Tensor, request: DecodeRequest) -> torch.Tensor:
    return warp(logits_NV, temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)


class GenerateBackend:
    """Both arms are one call of `target.generate`; `num_draft_tokens = 0` is the same call without its speculation.

    What is sampled is what the request says: settings that a checkpoint carries (its top-p, repetition penalty, end
    tokens) and generate's own top_k = 50 are not mixed in. A subclass says how it speculates.
    """

    name: str
    capabilities: Capabilities

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel | None) -> None:
        for model in filter(None, (target, draft)):
            check_rewindable(model)
        if draft is not None and has_deeper_decoder(draft):
            raise BackendUnavailable(
                "transformers drafts with no decoder that is deeper than its encoder "
                "(docs/upstream/transformers-deeper-decoder.md); backend reference does"
            )
        self.target = target
        self.draft = draft
        self.device = target.device
        # generate fills what a call leaves open, an ignored end token too, from here.
        target.generation_config = GenerationConfig()

    def generate(self, request: DecodeRequest) -> Generation:
        watch = Watch()
        self._decode(request, watch)
        token_ids = watch.token_ids()
        finished: FinishReason = "stop" if token_ids[-1] in request.eos_token_ids else "length"
        return Generation(token_ids, finished, watch.rounds(), watch.first_token_s)

    def replay(self, request: DecodeRequest) -> Replay:
        """The same speculative request again with the instruments on."""
        probe = Probe(self, request)
        self._decode(request, probe)
        return Replay(
            probe.token_ids(), probe.rounds(), tuple(probe.acceptance_probs), None, PhaseSeconds(**probe.phase_s)
        )

    def _decode(self, request: DecodeRequest, watch: Watch) -> None:
        self._check(request)
        speculative, sampled = request.num_draft_tokens > 0, request.temperature > 0
        prompt = torch.tensor([request.prompt_ids], device=self.device)
        config = GenerationConfig(
            max_new_tokens=request.max_new_tokens,
            eos_token_id=list(request.eos_token_ids) or None,
            # The draft does not see what equals it, end tokens excepted: docs/upstream/transformers-draft-padding.md.
            pad_token_id=next(iter(request.eos_token_ids), None),
            do_sample=sampled,
            decoder_start_token_id=getattr(self.target.config, "decoder_start_token_id", None),
            **(self.sampling(request) if sampled else {}),
            **(self.speculation(request) if speculative else {}),
        )
        devices = [self.device] if self.device.type == "cuda" else []
        # generate draws from the global random state: the caller's stays as it is.
        with torch.random.fork_rng(devices=devices), watch.attached(self.target) if speculative else nullcontext():
            torch.manual_seed(request.seed)
            self.target.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                logits_processor=LogitsProcessorList(self.processors(request) if sampled else ()),
                assistant_model=self.draft if speculative else None,
                streamer=watch,
                **cache_for_generate(self.target),
            )

    def _check(self, request: DecodeRequest) -> None:
        if request.rule not in self.capabilities.rules:
            raise ValueError(
                f"backend {self.name}: expected the rule {', '.join(self.capabilities.rules)}, got {request.rule!r}"
            )
        if request.schedule:
            raise ValueError(f"backend {self.name}: expected one temperature, got a schedule of them")
        if request.draft_temperature not in (None, request.temperature):
            raise ValueError(
                f"backend {self.name}: expected the draft at decode T {request.temperature:g}, "
                f"got {request.draft_temperature:g}"
            )

    def sampling(self, request: DecodeRequest) -> dict[str, Any]:
        """Sampling options of the generation config."""
        return {"temperature": request.temperature, "top_k": request.top_k, "top_p": request.top_p}

    def processors(self, request: DecodeRequest) -> Sequence[Any]:
        """Logits processors handed to `generate`, behind those it makes of its config."""
        return ()

    def speculation(self, request: DecodeRequest) -> dict[str, Any]:
        """Options of the generation config that turn speculation on, besides the draft model."""
        return {}

    def draft_probs(
        self, drafts_G: torch.Tensor, logits_G1V: list[torch.Tensor], request: DecodeRequest
    ) -> torch.Tensor:
        """(G, V) the distributions from which a round's draft tokens came."""
        raise NotImplementedError

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def settings(self) -> Mapping[str, Scalar]:
        return {
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "attention": self.target.config._attn_implementation,
            "dtype": str(self.target.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }

    def close(self) -> None:
        del self.target, self.draft
        gc.collect()  # hooks of a device map hold their model in a circle
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class AssistedDefault(GenerateBackend):
    """`generate(assistant_model=...)` as it comes: how much is drafted is up to the engine, k only turns it on.

    The draft samples at T squared (docs/upstream/transformers-draft-temperature.md), up to 20 tokens a round, and stops
    behind one that it gave a probability below 0.4. Neither harms the distribution of the text.
    """

    name = "assisted-default"
    capabilities = Capabilities(
        rules=frozenset({"rejection"}),
        draft_temperature=False,
        gaps={
            **dict.fromkeys(("replay", "draft_equal_to_target"), "the draft samples at T squared"),
            **dict.fromkeys(
                ("books", "disjoint_support", "end_token[accepted-6]", "end_token[bonus-1]"),
                "the engine chooses how many tokens to draft",
            ),
        },
    )

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel) -> None:
        super().__init__(target, draft)
        # The request's end tokens hold for both models; the draft's other settings are as its checkpoint says.
        draft.generation_config.eos_token_id = None

    def draft_probs(
        self, drafts_G: torch.Tensor, logits_G1V: list[torch.Tensor], request: DecodeRequest
    ) -> torch.Tensor:
        return warped(warped(torch.cat(logits_G1V), request).log(), request)

    def settings(self) -> Mapping[str, Scalar]:
        assert self.draft is not None
        config = self.draft.generation_config
        return {
            **super().settings(),
            "num_assistant_tokens_schedule": config.num_assistant_tokens_schedule,  # None: the version's default
            "assistant_confidence_threshold": config.assistant_confidence_threshold,
            "assistant_confidence_adapts": is_sklearn_available(),  # generate tunes a threshold above 0 where it is
        }


class Assisted(AssistedDefault):
    """`generate(assistant_model=...)` made comparable: always k draft tokens, and draft and target at the same T.

    The draft runs through `generate` with the target's processors and the target's config, from which it makes the same
    warpers again. So the warpers go in as processors and the config stays neutral: then they apply once to each model.
    Tokens tied with the last that top-k keeps are all kept.
    """

    name = "assisted"
    capabilities = Capabilities(rules=frozenset({"rejection"}), draft_temperature=False)

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel) -> None:
        super().__init__(target, draft)
        draft.generation_config = GenerationConfig(
            num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
        )
        if draft.config.is_encoder_decoder:
            draft.register_forward_pre_hook(_without_what_it_knows, with_kwargs=True)

    def sampling(self, request: DecodeRequest) -> dict[str, Any]:
        return {"temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def processors(self, request: DecodeRequest) -> Sequence[Any]:
        warpers: list[Any] = [TemperatureLogitsWarper(request.temperature)]
        if request.top_k:
            warpers.append(TopKLogitsWarper(request.top_k))
        if request.top_p < 1:
            warpers.append(TopPLogitsWarper(request.top_p))
        return warpers

    def _decode(self, request: DecodeRequest, watch: Watch) -> None:
        assert self.draft is not None
        self.draft.generation_config.num_assistant_tokens = request.num_draft_tokens  # generate reads it nowhere else
        super()._decode(request, watch)

    def draft_probs(
        self, drafts_G: torch.Tensor, logits_G1V: list[torch.Tensor], request: DecodeRequest
    ) -> torch.Tensor:
        return warped(torch.cat(logits_G1V), request)


def _without_what_it_knows(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A draft with an encoder is fed its whole text each round, behind what its cache holds of it already.

    docs/upstream/transformers-encoder-decoder-draft.md
    """
    fed, known = kwargs["decoder_input_ids"], kwargs["past_key_values"].get_seq_length()
    return args, kwargs | {"decoder_input_ids": fed[:, known:]} if fed.shape[1] > 1 else kwargs


class PromptLookup(GenerateBackend):
    """`generate(prompt_lookup_num_tokens=k)`: drafts are copied from where the newest words stood before; no draft model.

    The target samples its own token at every position and keeps the draft tokens equal to them, which is `exact_match`.
    As the draft is certain of its token, the chance is p(x), as in `one_hot`.
    """

    name = "prompt-lookup"
    capabilities = Capabilities(
        rules=frozenset({"exact_match"}),
        draft_temperature=False,
        gaps=dict.fromkeys(
            ("acceptance", "replay", "draft_equal_to_target", "disjoint_support", "end_token[accepted-6]"),
            "drafts are copied from the text, not drawn from the draft model",
        ),
    )

    def __init__(self, target: PreTrainedModel) -> None:
        super().__init__(target, None)

    def speculation(self, request: DecodeRequest) -> dict[str, Any]:
        return {"prompt_lookup_num_tokens": request.num_draft_tokens}

    def draft_probs(
        self, drafts_G: torch.Tensor, logits_G1V: list[torch.Tensor], request: DecodeRequest
    ) -> torch.Tensor:
        return torch.nn.functional.one_hot(drafts_G, self.target.config.get_text_config().vocab_size).float()


def load(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> Assisted:
    """`assisted`: fixed k, draft at the decode temperature."""
    _check_pair(Assisted.name, pair, options)
    return Assisted(*_models(pair, device))


def load_default(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> AssistedDefault:
    """`assisted-default`: as users run it."""
    _check_pair(AssistedDefault.name, pair, options)
    return AssistedDefault(*_models(pair, device))


def load_prompt_lookup(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> PromptLookup:
    """`prompt-lookup`: the pair's target alone."""
    _check_pair(PromptLookup.name, pair, options, ("causal",))  # the answer copies nothing from an encoder
    return PromptLookup(load_model(pair.target, dtype=pair.dtype, device=device, device_map=pair.device_map))


def _models(pair: ModelPair, device: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    target = load_model(pair.target, dtype=pair.dtype, device=device, device_map=pair.device_map)
    return target, load_model(pair.draft, dtype=pair.dtype, device=device)


def _check_pair(
    name: str, pair: ModelPair, options: Mapping[str, str], families: Sequence[str] = ("causal", "encoder-decoder")
) -> None:
    """Raises: ValueError: an option was given; BackendUnavailable: the pair is of another family."""
    if options:
        raise ValueError(f"backend {name} takes no options, got {', '.join(sorted(options))}")
    if pair.family not in families:
        raise BackendUnavailable(f"backend {name} decodes {' and '.join(families)} pairs; {pair.name} is {pair.family}")
