"""Llama-type models in fewer, larger operations than transformers' own forward, which gives the same logits to rounding.

On a CPU much of transformers' time for one token of a small model goes into small operations, one behind the other; records of
the suite `backends` have both forwards side by side, as AR arm and as the engine's own plain decode. Here the products that
share an input are one, keys and values are written into a buffer that is there already, and no module is called.
Source of the equations: Touvron et al. 2023, arXiv 2302.13971.
Shape letters: B batch (always 1), T tokens fed, N logit rows asked for, L tokens known, V vocabulary, D hidden size,
H query heads, K key heads, G query heads of one key head, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

FIRST_ROOM = 512  # tokens for which keys and values have room at first
STATIC_ROPES = frozenset({"default", "linear", "llama3"})  # angles that depend on the position alone


@dataclass(slots=True)
class Layer:
    """One decoder layer: weights, and keys and values of the tokens so far."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    attention_norm: Tensor
    mlp_norm: Tensor
    keys_KLE: Tensor
    values_KLE: Tensor


def supports(model: PreTrainedModel) -> bool:
    """Whether a model is of the kind that is computed here."""
    return (
        type(model) is LlamaForCausalLM
        and model.config.hidden_act == "silu"
        and not model.config.attention_bias
        and not model.config.mlp_bias
        and model.lm_head.bias is None
        and model.model.rotary_emb.rope_type in STATIC_ROPES
        and all(
            type(layer.self_attn.q_proj) is nn.Linear for layer in model.model.layers
        )  # neither quantised nor adapted
    )


class FusedLlama:
    """A model that remembers what it has been fed, as `CachedModel`. `length` is the number of tokens in the cache."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        config = model.config
        self.model = model
        self.device = model.device
        self.eps = config.rms_norm_eps
        self.num_heads, self.num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_width = model.model.layers[0].self_attn.head_dim
        self.embedding = model.model.embed_tokens.weight
        self.head = model.lm_head.weight
        self.last_norm = model.model.norm.weight
        self.layers = [self._layer(layer) for layer in model.model.layers]
        self.room = 0
        self.length = 0
        self._make_room(FIRST_ROOM)

    def _layer(self, layer: nn.Module) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        nothing = torch.empty(0)
        return Layer(
            qkv=_fused(attention.q_proj, attention.k_proj, attention.v_proj),
            out=attention.o_proj.weight,
            gate_up=_fused(mlp.gate_proj, mlp.up_proj),
            down=mlp.down_proj.weight,
            attention_norm=layer.input_layernorm.weight,
            mlp_norm=layer.post_attention_layernorm.weight,
            keys_KLE=nothing,
            values_KLE=nothing,
        )

    def _make_room(self, room: int) -> None:
        """Buffers and angles for so many tokens; what is in the cache stays."""
        shape = (self.num_key_heads, room, self.head_width)
        for layer in self.layers:
            for name in ("keys_KLE", "values_KLE"):
                buffer = self.embedding.new_zeros(shape)  # a masked place must not hold a NaN
                buffer[:, : self.length] = getattr(layer, name)[:, : self.length] if self.length else 0
                setattr(layer, name, buffer)
        positions = torch.arange(room, device=self.device)[None]
        cos_BLE, sin_BLE = self.model.model.rotary_emb(self.embedding, positions)
        self.cos_L1E = cos_BLE[0, :, None].clone()
        # (x1, x2) turns into (-x2, x1): the halves change places and the first changes its sign.
        half = self.head_width // 2
        self.sin_L1E = torch.cat((-sin_BLE[0, :, None, :half], sin_BLE[0, :, None, half:]), -1)
        self.room = room

    def reset(self) -> None:
        """Forget everything."""
        self.length = 0

    def rewind(self, length: int) -> None:
        """Drop everything behind the first `length` tokens. Nothing is copied: the next ones are written over it."""
        self.length = min(self.length, length)

    def feed(self, tokens_BT: Tensor, *, num_logits: int) -> Tensor:
        """Append tokens and return the logits behind the last `num_logits` of them, (N, V) in the model's dtype."""
        num_tokens = tokens_BT.shape[1]
        start, end = self.length, self.length + num_tokens
        if end > self.room:
            self._make_room(max(end, 2 * self.room))
        cos_T1E, sin_T1E = self.cos_L1E[start:end], self.sin_L1E[start:end]
        mask_TL = _causal_mask(start, num_tokens, self.embedding)
        stream_TD = F.embedding(tokens_BT[0], self.embedding)
        for layer in self.layers:
            stream_TD = stream_TD + self._attention(layer, stream_TD, cos_T1E, sin_T1E, mask_TL, start, end)
            normed_TD = normed(stream_TD, layer.mlp_norm, self.eps)
            gate, up = F.linear(normed_TD, layer.gate_up).chunk(2, -1)
            stream_TD = stream_TD + F.linear(F.silu(gate).mul_(up), layer.down)
        self.length = end
        return F.linear(normed(stream_TD[-num_logits:], self.last_norm, self.eps), self.head)

    def _attention(
        self,
        layer: Layer,
        stream_TD: Tensor,
        cos_T1E: Tensor,
        sin_T1E: Tensor,
        mask_TL: Tensor | None,
        start: int,
        end: int,
    ) -> Tensor:
        num_tokens, heads, key_heads = end - start, self.num_heads, self.num_key_heads
        qkv = F.linear(normed(stream_TD, layer.attention_norm, self.eps), layer.qkv)
        qkv = qkv.view(num_tokens, heads + 2 * key_heads, self.head_width)
        qk, v_TKE = qkv[:, : heads + key_heads], qkv[:, heads + key_heads :]
        swapped = qk.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
        turned = torch.addcmul(qk * cos_T1E, swapped, sin_T1E)
        layer.keys_KLE[:, start:end] = turned[:, heads:].transpose(0, 1)
        layer.values_KLE[:, start:end] = v_TKE.transpose(0, 1)
        mixed = F.scaled_dot_product_attention(
            turned[:, :heads].transpose(0, 1)[None],
            layer.keys_KLE[None, :, :end],
            layer.values_KLE[None, :, :end],
            attn_mask=mask_TL,
            enable_gqa=heads > key_heads,
        )
        return F.linear(mixed[0].transpose(0, 1).reshape(num_tokens, -1), layer.out)


def _fused(*linears: nn.Module) -> Tensor:
    """One weight for products of the same input. The modules keep views of it, so that memory is not needed twice."""
    fused = torch.cat([linear.weight for linear in linears]).detach()
    for linear, part in zip(linears, fused.split([len(linear.weight) for linear in linears]), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    return fused


def normed(stream_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm, in float32 up to the weight, as transformers does it."""
    wide_TD = stream_TD.float()
    scale_T1 = torch.rsqrt(wide_TD.square().mean(-1, keepdim=True) + eps)
    return (wide_TD * scale_T1).to(stream_TD.dtype) * weight_D


def _causal_mask(start: int, num_tokens: int, like: Tensor) -> Tensor | None:
    """0 where a token may look, minus infinity behind it; None where there is one token, which may look everywhere."""
    if num_tokens == 1:
        return None
    mask_TL = like.new_full((num_tokens, start + num_tokens), float("-inf"))
    return mask_TL.triu_(start + 1)
