"""The target as the one who teaches: it writes text, here or through an engine, and its head gives distributions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from backends.models.loading import load_model
from bench.protocols import Backend
from bench.records.decoding import DecodeRequest
from distill.text import hidden
from distill.text.generation import product_dtype
from distill.text.sampler import Answer, Ask, sample_answers
from distill.text.table import Sampler


@dataclass(frozen=True, slots=True)
class Teacher:
    """The target with what it takes to ask it."""

    model: PreTrainedModel
    tokenizer: Any
    end_token_ids: tuple[int, ...]
    sha256: str

    @property
    def head_VD(self) -> Tensor:
        return self.model.get_output_embeddings().weight.detach()

    def sampler(self, max_new_tokens: int) -> Sampler:
        return partial(sample_answers, self.model, max_new_tokens=max_new_tokens, end_token_ids=self.end_token_ids)


def load_teacher(folder: Path, *, device: str) -> Teacher:
    """The target, in bf16 where that is fast (`product_dtype`).

    Raises:  ValueError: its logits are not head(hidden state), it has no end token, or the device is absent
    """
    dtype = str(product_dtype(device.partition(":")[0])).removeprefix("torch.")
    model = load_model(str(folder), dtype=dtype, device=device)
    hidden.check_head(model)
    end = model.generation_config.eos_token_id
    if end is None:
        raise ValueError(f"expected an end token in the generation config of {folder}, got none")
    ends = tuple(end) if isinstance(end, list) else (end,)
    return Teacher(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), ends, _sha256(folder))


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for weights in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        with weights.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def through_backend(backend: Backend, *, max_new_tokens: int, end_token_ids: tuple[int, ...]) -> Sampler:
    """Samples the target's text through an engine, one request after the other; hidden states are filled in later."""

    def answer(ask: Ask) -> Answer:
        request = DecodeRequest(
            prompt_ids=ask.prompt_ids,
            max_new_tokens=max_new_tokens,
            temperature=ask.temperature,
            seed=ask.seed,
            eos_token_ids=end_token_ids,
        )
        return Answer(torch.tensor(backend.generate(request).token_ids), None)

    return lambda asks: [answer(ask) for ask in asks]
