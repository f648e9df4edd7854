"""Decode many prompts at once, one token per row and step. Rows that have ended can be dropped from the batch.

A causal model reads its prompts padded on the left, so that all of them end in the last column. An encoder-decoder encodes
them once, and its decoder begins with its start token. Both return the hidden states that the output head multiplies.
Shape letters: B rows in the batch, T tokens, A tokens of an answer, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "specheat_grouped"


class RoomyLayer(DynamicLayer):
    """Keys and values in a buffer with room for the whole answer: a step writes one column and copies nothing."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new columns, and return all columns so far."""
        length, added = self.get_seq_length(), key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], added + self.room, key_states.shape[3])
            self.buffers = [key_states.new_empty(shape), value_states.new_empty((*shape[:3], value_states.shape[3]))]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, length : length + added] = new
        self.keys, self.values = (buffer[:, :, : length + added] for buffer in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Drop all other rows."""
        length = self.get_seq_length()
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)


def _grouped_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend with one query token per row, without a copy of each key head for each of its query heads.

    The query heads that share a key head stand in for the sequence of queries of that head.
    """
    rows, heads, length, width = query.shape
    if length > 1:  # the prompts, in the first step
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width)
    mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=options.get("scaling"))
    return mixed.view(rows, 1, heads, width), None


AttentionInterface.register(GROUPED, _grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a causal model that uses sdpa attend in groups of query heads."""
    before = model.config._attn_implementation
    # `_grouped_attention` computes neither attention with sinks nor the position bias of a T5.
    if before != "sdpa" or model.config.is_encoder_decoder:
        yield
        return
    model.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class CausalRows:
    """One growing row per prompt, continued by a causal model."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], room: int) -> None:
        self.model = model
        self.fed_BT, mask_BT = padded(prompts, model.device, side="left")  # what the next step reads; later the drawn tokens
        self.mask_BT = F.pad(mask_BT, (0, room), value=1)
        self.positions_BT = (self.mask_BT.cumsum(1) - 1).clamp_(min=0)
        self.cache = Cache(layer_class_to_replicate=partial(RoomyLayer, room))

    def hidden_BD(self) -> Tensor:
        """Run the model on `fed_BT`, and return the last hidden state of each row."""
        start = self.cache.get_seq_length()
        upto = start + self.fed_BT.shape[1]
        outputs = self.model.base_model(
            self.fed_BT,
            attention_mask=self.mask_BT[:, :upto],
            position_ids=self.positions_BT[:, start:upto],
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.cache.batch_select_indices(rows)
        self.mask_BT, self.positions_BT = self.mask_BT[rows], self.positions_BT[rows]


class EncoderDecoderRows:
    """One growing row per prompt, continued by the decoder of an encoder-decoder; the prompts are encoded once."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], room: int) -> None:
        self.model = model
        prompts_BT, self.mask_BT = padded(prompts, model.device)
        self.encoded_BTD = model.get_encoder()(prompts_BT, attention_mask=self.mask_BT).last_hidden_state
        self.fed_BT = torch.full((len(prompts), 1), model.config.decoder_start_token_id, device=model.device)
        self.caches = Cache(layer_class_to_replicate=partial(RoomyLayer, room)), DynamicCache()  # of the answer, the prompt
        self.cache = EncoderDecoderCache(*self.caches)

    def hidden_BD(self) -> Tensor:
        """Run the decoder on `fed_BT`, and return what the head multiplies, for each row."""
        return decoder_hidden(self.model, self.encoded_BTD, self.mask_BT, self.fed_BT, cache=self.cache)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        for cache in self.caches:  # the joint cache refuses, because the layers are not transformers' own
            cache.batch_select_indices(rows)
        self.mask_BT, self.encoded_BTD = self.mask_BT[rows], self.encoded_BTD[rows]


def product_dtype(device_type: str) -> torch.dtype:
    """Return the type in which large matrix products are fast: bfloat16, or float32 on a CPU that only emulates bfloat16."""
    emulated = device_type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16


def decoder_hidden(
    model: PreTrainedModel, encoded_BTD: Tensor, mask_BT: Tensor, decoded_BA: Tensor, *, cache: Cache | None = None
) -> Tensor:
    """Return what the head of an encoder-decoder multiplies at each token of its decoder, (B, A, D).

    Args:    encoded_BTD: the encoder's output for the prompts
    """
    hidden_BAD = model.get_decoder()(
        decoded_BA,
        encoder_hidden_states=encoded_BTD,
        encoder_attention_mask=mask_BT,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state
    if getattr(model.config, "scale_decoder_outputs", False):  # of a T5 that uses one matrix for embedding and head
        return hidden_BAD * model.config.d_model**-0.5
    return hidden_BAD


def padded(rows: Sequence[Sequence[int]], device: torch.device, *, side: str = "right") -> tuple[Tensor, Tensor]:
    """Return rows padded on one side to the longest, (B, T), and a mask with 1 at their tokens."""
    tokens = [torch.as_tensor(row) for row in rows]
    masks = [torch.ones(len(row), dtype=torch.long) for row in tokens]
    return tuple(pad_sequence(each, batch_first=True, padding_side=side).to(device) for each in (tokens, masks))
