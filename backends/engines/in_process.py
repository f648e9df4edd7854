"""What the engines that decode in this process share: the device, the clock of a replay, and one call of `generate`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from backends.forwards.cached_model import cache_for_generate
from bench.records.decoding import DecodeRequest, FinishReason, PhaseSeconds, Scalar


class InProcess:
    """An engine whose models lie in this process, on one device."""

    target: Any
    draft: Any
    device: torch.device

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def close(self) -> None:
        del self.target, self.draft
        gc.collect()  # the hooks of a device map and their model refer to each other
        if self.device.type == "cuda":  # torch would keep the freed memory for itself
            torch.cuda.empty_cache()


def settings_of(model: PreTrainedModel) -> dict[str, Scalar]:
    """Return the versions and settings under which a model runs."""
    return {
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "attention": model.config._attn_implementation,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }


class PhaseClock:
    """Seconds per phase of a replay. It waits for the device at every lap, so timed runs carry none."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.seconds = PhaseSeconds(0.0, 0.0, 0.0, 0.0, 0.0)
        self.restart()

    def restart(self) -> None:
        """Charge the time since the last lap to no phase."""
        self.synchronize()
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Charge the time since the last lap to `phase`."""
        before = self.last
        self.restart()
        self.seconds = replace(self.seconds, **{phase: getattr(self.seconds, phase) + self.last - before})


def finish_reason(token_ids: Sequence[int], request: DecodeRequest) -> FinishReason:
    """Return why an output ended."""
    return "stop" if token_ids[-1] in request.eos_token_ids else "length"


def call_generate(
    model: PreTrainedModel,
    request: DecodeRequest,
    options: Mapping[str, Any],
    *,
    processors: Sequence[Any] = (),
    draft: PreTrainedModel | None = None,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """Call transformers' `generate` for one request, and return the prompt (or the decoder's start) and the new tokens.

    Settings of the checkpoint (its top-p, repetition penalty, end tokens) and generate's own top_k = 50 are not mixed in.

    Args:    options: of the generation config: sampling and speculation
             processors: of the logits, after those that generate makes from its config
    """
    prompt = torch.tensor([request.prompt_ids], device=model.device)
    config = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        eos_token_id=list(request.eos_token_ids) or None,
        # A draft ignores tokens equal to the padding token, end tokens excepted: docs/upstream/transformers-draft-padding.md.
        pad_token_id=next(iter(request.eos_token_ids), None),
        do_sample=request.temperature > 0,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        **options,
    )
    # generate takes from the model what the config leaves open, such as an end token that the request ignores.
    checkpoints_own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        # generate draws from the global random state. The caller's state stays as it is.
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(request.seed)
            return model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                assistant_model=draft,
                streamer=streamer,
                **cache_for_generate(model),
            )
    finally:
        model.generation_config = checkpoints_own
