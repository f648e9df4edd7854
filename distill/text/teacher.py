"""The target as it teaches: it writes text, here or through an engine, and its head gives distributions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from backends.models.checkpoints import model_hash
from backends.models.loading import load_model
from bench.protocols import Backend
from bench.records.decoding import DecodeRequest
from distill.text.generation import decoder_hidden, product_dtype
from distill.text.prompts import Prompts
from distill.text.sampler import Answer, Request, Sampler, sample_answers
from distill.text.table import Shares, TextPlan, prompts_hash


@dataclass(frozen=True, slots=True)
class Teacher:
    """The target, loaded, with everything that its text depends on."""

    model: PreTrainedModel
    tokenizer: Any
    end_token_ids: tuple[int, ...]
    sha256: str

    @property
    def head_VD(self) -> Tensor:
        return self.model.get_output_embeddings().weight.detach()

    def plan(
        self, prompts: Prompts, shares: Shares, *, max_new_tokens: int, batch_rows: int, seed: int, through: str = ""
    ) -> TextPlan:
        """Return the plan of this model's text on these prompts."""
        ends = self.end_token_ids
        return TextPlan(self.sha256, prompts_hash(prompts), shares, max_new_tokens, ends, batch_rows, seed, through)

    def sampler(self, max_new_tokens: int) -> Sampler:
        return partial(sample_answers, self.model, max_new_tokens=max_new_tokens, end_token_ids=self.end_token_ids)


def load_teacher(folder: Path, *, device: str) -> Teacher:
    """Load the target, in bfloat16 where that is fast (`product_dtype`).

    Raises:  ValueError: its logits are not head(hidden state), it has no end token, or the device is absent
    """
    dtype = str(product_dtype(device.partition(":")[0])).removeprefix("torch.")
    model = load_model(str(folder), dtype=dtype, device=device)
    check_head(model)
    end = model.generation_config.eos_token_id
    if end is None:
        raise ValueError(f"expected an end token in the generation config of {folder}, got none")
    ends = tuple(end) if isinstance(end, list) else (end,)
    return Teacher(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), ends, model_hash(folder))


@torch.inference_mode()
def check_head(model: PreTrainedModel) -> None:
    """Check that the model's logits are its output head times its final hidden states, without a bias or a soft cap.

    Raises:  ValueError: they are not, so stored hidden states would not give the distribution
    """
    head = model.get_output_embeddings()
    probe = torch.tensor([[1, 2, 3]], device=model.device)  # any tokens
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"expected an output head without bias, got {head}")
    if model.config.is_encoder_decoder:
        expected = model(probe, decoder_input_ids=probe).logits
        encoded = model.get_encoder()(probe).last_hidden_state
        got = head(decoder_hidden(model, encoded, torch.ones_like(probe), probe))
    else:
        expected = model(probe).logits
        got = head(model.base_model(probe).last_hidden_state)
    if not torch.allclose(got, expected, rtol=1e-2, atol=1e-2):  # bf16 rounding; a scale or a cap moves logits far more
        raise ValueError(f"the logits of {type(model).__name__} are not its head on its hidden states")


def through_backend(backend: Backend, *, max_new_tokens: int, end_token_ids: tuple[int, ...]) -> Sampler:
    """Return a sampler that uses an engine, one request at a time. It gives no hidden states: they are filled in later."""

    decode = partial(DecodeRequest, max_new_tokens=max_new_tokens, eos_token_ids=end_token_ids)

    def answer(request: Request) -> Answer:
        asked = decode(request.prompt_ids, temperature=request.temperature, seed=request.seed)
        return Answer(torch.tensor(backend.generate(asked).token_ids), None)

    return lambda requests: list(map(answer, requests))
