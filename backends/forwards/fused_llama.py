"""Llama-type models in fewer, larger operations than transformers' own forward, which gives the same logits to rounding.

On a CPU much of transformers' time for one token of a small model goes into many small operations. The suite `backends` records
both forwards side by side: this one as AR arm, the other as the engine's own plain decode. Here products that share an input
are merged, weights are laid out beforehand (`backends.forwards.products`), keys and values go into a buffer that exists
already, and no module is called. Source of the equations: Touvron et al. 2023, arXiv 2302.13971.

Shape letters: B batch (always 1), T tokens fed, N logit rows requested, L tokens known, V vocabulary, D hidden size,
H query heads, K key heads, G query heads of one key head, R = G T rows of one key head, E width of a head.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from backends.forwards.products import Layout, Product, can_pack, product

FIRST_ROOM = 512  # tokens that the buffers hold at first


@dataclass(slots=True)
class Layer:
    """One decoder layer: its products and norms, and the keys and values of the tokens so far."""

    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    attention_norm: Tensor
    mlp_norm: Tensor
    cache_KLE: Tensor  # keys of all key heads, then values


def supports(model: PreTrainedModel) -> bool:
    """Return whether this module computes a model of this kind."""
    return (
        type(model) is LlamaForCausalLM
        and model.config.hidden_act == "silu"
        and not model.config.attention_bias
        and not model.config.mlp_bias
        and model.lm_head.bias is None
        and model.model.rotary_emb.rope_type in ("default", "linear", "llama3")  # angles that depend on the position alone
        # Another class of layer is quantised or has an adapter.
        and all(type(layer.self_attn.q_proj) is nn.Linear for layer in model.model.layers)
    )


class FusedLlama:
    """The same interface as `CachedModel`: `length` is the number of tokens in the cache."""

    def __init__(self, model: LlamaForCausalLM, layout: Layout = "packed") -> None:
        config = model.config
        self.model = model
        self.eps = config.rms_norm_eps
        self.num_heads, self.num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_width = model.model.layers[0].self_attn.head_dim
        self.embedding = model.model.embed_tokens.weight
        self.layout: Layout = layout if can_pack(self.embedding) else "plain"
        self.last_norm = model.model.norm.weight
        self.layers = [self._layer(layer) for layer in model.model.layers]
        self.head = product(model.lm_head.weight, self.layout)
        of_layers = ((layer.qkv, layer.out, layer.gate_up, layer.down) for layer in self.layers)
        self.products = [*chain.from_iterable(of_layers), self.head]  # in the order of one forward
        self.length = 0
        self._make_room(FIRST_ROOM)

    def _layer(self, layer: nn.Module) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return Layer(
            qkv=product(_fused(attention.q_proj, attention.k_proj, attention.v_proj), self.layout),
            out=product(attention.o_proj.weight, self.layout),
            gate_up=product(_fused(mlp.gate_proj, mlp.up_proj), self.layout),
            down=product(mlp.down_proj.weight, self.layout),
            attention_norm=layer.input_layernorm.weight,
            mlp_norm=layer.post_attention_layernorm.weight,
            cache_KLE=torch.empty(0),
        )

    def _make_room(self, room: int) -> None:
        """Make buffers and angles for so many tokens; the cache's content is kept."""
        for layer in self.layers:
            # Zeros, because a NaN in a masked place would spread: 0 times NaN is NaN.
            buffer_KLE = self.embedding.new_zeros((2 * self.num_key_heads, room, self.head_width))
            if self.length:
                buffer_KLE[:, : self.length] = layer.cache_KLE[:, : self.length]
            layer.cache_KLE = buffer_KLE
        positions = torch.arange(room, device=self.embedding.device)[None]
        cos_BLE, sin_BLE = self.model.model.rotary_emb(self.embedding, positions)
        self.cos_L1E = cos_BLE[0, :, None].clone()
        # Rotation: (x1, x2) cos + (-x2, x1) sin. The sign is stored in sin, so that a roll by half the width gives (x2, x1).
        half = self.head_width // 2
        self.sin_L1E = torch.cat((-sin_BLE[0, :, None, :half], sin_BLE[0, :, None, half:]), -1)
        self.room = room

    def twin(self) -> Self:
        """Return the same model with another cache. Weights and graphs are shared."""
        made = copy.copy(self)
        made.layers = [replace(layer) for layer in self.layers]  # their caches are replaced below
        made.length = 0
        made._make_room(FIRST_ROOM)
        return made

    def reset(self) -> None:
        self.length = 0  # the next tokens overwrite the buffers

    def rewind(self, length: int) -> None:
        """Drop everything after the first `length` tokens. Nothing is copied: the next tokens overwrite it."""
        self.length = min(self.length, length)

    def feed(self, tokens_BT: Tensor, *, num_logits: int) -> Tensor:
        """Append tokens and return the logits after the last `num_logits` of them, (N, V) in the model's dtype."""
        num_tokens = tokens_BT.shape[1]
        start, end = self.length, self.length + num_tokens
        if end > self.room:
            self._make_room(max(end, 2 * self.room))  # doubled, so that copies stay rare
        heads, key_heads, width = self.num_heads, self.num_key_heads, self.head_width
        cos_T1E, sin_T1E = self.cos_L1E[start:end], self.sin_L1E[start:end]
        mask_RL = causal_mask(start, num_tokens, heads // key_heads, self.embedding)
        stream_TD = F.embedding(tokens_BT[0], self.embedding)
        for layer in self.layers:
            qkv = layer.qkv(normed(stream_TD, layer.attention_norm, self.eps))
            qkv = qkv.view(num_tokens, heads + 2 * key_heads, width)
            qk = qkv[:, : heads + key_heads]
            torch.addcmul(qk * cos_T1E, qk.roll(width // 2, -1), sin_T1E, out=qk)
            layer.cache_KLE[:, start:end] = qkv[:, heads:].transpose(0, 1)
            # The query heads of one key head become rows of one product, so that no key is read twice: (K, G, T, E).
            grouped = qkv[:, :heads].view(num_tokens, key_heads, -1, width).permute(1, 2, 0, 3)
            mixed = F.scaled_dot_product_attention(
                grouped.reshape(1, key_heads, -1, width),
                layer.cache_KLE[None, :key_heads, :end],
                layer.cache_KLE[None, key_heads:, :end],
                attn_mask=mask_RL,
            )
            mixed_TD = mixed.view(key_heads, -1, num_tokens, width).permute(2, 0, 1, 3).reshape(num_tokens, -1)
            stream_TD = layer.out.add(mixed_TD, stream_TD)
            gate, up = layer.gate_up(normed(stream_TD, layer.mlp_norm, self.eps)).chunk(2, -1)
            stream_TD = layer.down.add(F.silu(gate).mul_(up), stream_TD)
        self.length = end
        return self.head(normed(stream_TD[-num_logits:], self.last_norm, self.eps))


def _fused(*linears: nn.Module) -> Tensor:
    """Return one weight for products of the same input. The modules keep views of it, so memory is not needed twice."""
    fused = torch.cat([linear.weight for linear in linears]).detach()
    for linear, part in zip(linears, fused.split([len(linear.weight) for linear in linears]), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    return fused


def normed(stream_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return the root-mean-square norm, in float32 before the weight, as transformers computes it."""
    if stream_TD.dtype == torch.float32:
        return F.rms_norm(stream_TD, weight_D.shape, weight_D, eps)
    return F.rms_norm(stream_TD.float(), weight_D.shape, None, eps).to(stream_TD.dtype) * weight_D


def causal_mask(start: int, num_tokens: int, num_groups: int, like: Tensor) -> Tensor | None:
    """Return 0 where a token may look and minus infinity after it, repeated for each group; None for a single token.

    Example: start = 2 and two tokens give the rows (0, 0, 0, -inf) and (0, 0, 0, 0).
    """
    if num_tokens == 1:
        return None
    mask_TL = like.new_full((num_tokens, start + num_tokens), float("-inf"))
    return mask_TL.triu_(start + 1).repeat(num_groups, 1)
