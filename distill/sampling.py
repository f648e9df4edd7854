"""Samples text from a model in large batches, keeping the hidden state behind every token it drew.

A row is one text. It has its own temperature and its own seed, so what it says does not depend on the rows around it
(beyond the rounding of a batched matrix product). Finished rows leave the batch.
Shape letters: B rows still running, T tokens, A tokens of an answer, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "specheat_grouped"
BLOCK = 256  # tokens whose probabilities are added up first when one is drawn
DROP_WHEN_FINISHED = 1 / 8  # share of rows whose end is worth a copy of the cache


@dataclass(frozen=True, slots=True)
class Ask:
    """One text to sample."""

    prompt_ids: tuple[int, ...]
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What was sampled. Row i of `hidden_AD` is the final hidden state from which token i was drawn."""

    token_ids_A: Tensor
    hidden_AD: Tensor | None  # None: the engine keeps them to itself


class RoomyLayer(DynamicLayer):
    """Keys and values in a buffer with room for the whole answer: a step writes one column and copies nothing."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        length, added = self.get_seq_length(), key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], added + self.room, key_states.shape[3])
            self.buffers = [key_states.new_empty(shape), value_states.new_empty((*shape[:3], value_states.shape[3]))]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, length : length + added] = new
        self.keys, self.values = (buffer[:, :, : length + added] for buffer in self.buffers)
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        length = self.get_seq_length()
        self.buffers = [buffer[rows] for buffer in self.buffers]
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)


def _grouped_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention in which the query heads of one key head are its queries, so that keys are not repeated in memory."""
    rows, heads, length, width = query.shape
    if length > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width)
    mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=options.get("scaling"))
    return mixed.view(rows, 1, heads, width), None


AttentionInterface.register(GROUPED, _grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def _grouped(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def sample_answers(
    model: PreTrainedModel, asks: Sequence[Ask], *, max_new_tokens: int, end_token_ids: Sequence[int]
) -> list[Answer]:
    """Draw one answer for each ask, all in one batch. An answer includes its end token, if it has one."""
    device, count = model.device, len(asks)
    head = model.get_output_embeddings()
    tokens_BT, mask_BT = _left_padded([ask.prompt_ids for ask in asks], device)
    prompt_length = tokens_BT.shape[1]
    mask_BT = F.pad(mask_BT, (0, max_new_tokens), value=1)
    temperature_B = torch.tensor([ask.temperature for ask in asks], device=device)
    uniform_BA = torch.stack([_uniforms(ask.seed, max_new_tokens) for ask in asks]).to(device)
    end_tokens = torch.tensor(list(end_token_ids), dtype=torch.long, device=device)
    drawn_BA = torch.zeros(count, max_new_tokens, dtype=torch.long, device=device)
    length_B = torch.zeros(count, dtype=torch.long, device=device)
    hidden_BAD = torch.empty(count, max_new_tokens, head.weight.shape[1], dtype=model.dtype, device=device)

    layers = [RoomyLayer(max_new_tokens) for _ in range(model.config.num_hidden_layers)]
    cache = Cache(layers=layers)
    rows = torch.arange(count, device=device)  # of the asks, in the order in which the cache holds them
    running = torch.ones(count, dtype=torch.bool, device=device)
    fed, positions = tokens_BT, (mask_BT.cumsum(1) - 1).clamp_(min=0)
    with _grouped(model):
        for step in range(max_new_tokens):
            upto = prompt_length + step
            hidden_BD = model.base_model(
                fed,
                attention_mask=mask_BT[rows, :upto],
                position_ids=positions[rows, upto - fed.shape[1] : upto],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            tokens_B = draw(head(hidden_BD), temperature_B[rows], uniform_BA[rows, step])
            hidden_BAD[rows, step] = hidden_BD
            drawn_BA[rows, step] = tokens_B
            length_B[rows] += running
            running &= ~torch.isin(tokens_B, end_tokens)
            left = int(running.sum())
            if left == 0:
                break
            if left <= len(rows) * (1 - DROP_WHEN_FINISHED):
                kept = running.nonzero().squeeze(1)
                for layer in layers:
                    layer.keep(kept)
                rows, tokens_B, running = rows[kept], tokens_B[kept], running[kept]
            fed = tokens_B[:, None]
    return [
        Answer(drawn_BA[row, :length].cpu(), hidden_BAD[row, :length].cpu())
        for row, length in enumerate(length_B.tolist())
    ]


def draw(logits_BV: Tensor, temperature_B: Tensor, uniform_B: Tensor) -> Tensor:
    """One token a row from softmax(logits / T), by inverse cumulative distribution; T = 0 is the argmax.

    Args:    uniform_B: float64 in [0, 1)
    Returns: (B,) int64
    """
    scores_BV = logits_BV.float()
    best_B = scores_BV.argmax(-1)
    scale_B1 = temperature_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    probs_BV = scores_BV.sub_(scores_BV.gather(1, best_B[:, None])).div_(scale_B1).exp_()
    # Two levels, the block and the token within it: a running sum over the whole vocabulary costs more than softmax.
    blocks = F.pad(probs_BV, (0, -probs_BV.shape[1] % BLOCK)).view(len(probs_BV), -1, BLOCK)
    block_B, rest_B = _invert(blocks.sum(-1, dtype=torch.float64), uniform_B)
    within_B, _ = _invert(blocks[torch.arange(len(blocks)), block_B].double(), rest_B)
    return torch.where(temperature_B == 0, best_B, block_B * BLOCK + within_B)


def _invert(mass_BN: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The place in whose share of the mass `uniform_B` falls, and how far into that share, in [0, 1)."""
    upto_BN = mass_BN.cumsum(-1)
    point_B1 = (uniform_B * upto_BN[:, -1])[:, None]
    place_B1 = torch.searchsorted(upto_BN, point_B1, right=True).clamp_(max=mass_BN.shape[1] - 1)
    share_B1 = mass_BN.gather(1, place_B1)
    into_B1 = (point_B1 - (upto_BN.gather(1, place_B1) - share_B1)) / share_B1
    return place_B1.squeeze(1), into_B1.squeeze(1).clamp_(0, 1 - 2**-53)


def _uniforms(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and mask of prompts that all end in the last column."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    return tokens, mask
