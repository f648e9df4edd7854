"""`FusedLlama` through torch.compile: layers as one compiled function over buffers of fixed shape.

A compiled function is made for each number of tokens fed and each length of the buffer that attention looks at. That length
grows in steps, so that short texts do not read long buffers; a mask hides what is not there. All layers share the function,
because they differ in their weights alone. Prompts and other long stretches go through the plain forward.
Shape letters: T tokens fed, L places of the buffer that attention looks at, D hidden size, K key heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from backends.fused_llama import FusedLlama, normed

LONGEST = 16  # tokens of one compiled step
STEP = 128  # places by which the buffer grows that attention looks at


class CompiledLlama(FusedLlama):
    """A model that remembers what it has been fed, as `CachedModel`; steps of up to LONGEST tokens are compiled."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__(model)
        self.compiled: Callable[..., Tensor] = torch.compile(self._through, fullgraph=True, dynamic=False)

    def feed(self, tokens_BT: Tensor, *, num_logits: int) -> Tensor:
        num_tokens = tokens_BT.shape[1]
        start, end = self.length, self.length + num_tokens
        if start == 0 or num_tokens > LONGEST:
            return super().feed(tokens_BT, num_logits=num_logits)
        seen = -(-end // STEP) * STEP
        if seen > self.room:
            self._make_room(max(seen, 2 * self.room))
        places_T = torch.arange(start, end, device=self.device)
        mask_TL = torch.arange(seen, device=self.device) <= places_T[:, None]
        stream_TD = F.embedding(tokens_BT[0], self.embedding)
        cos_T1E, sin_T1E = self.cos_L1E[start:end], self.sin_L1E[start:end]
        for layer in self.layers:
            stream_TD = self.compiled(
                stream_TD,
                *(layer.qkv, layer.out, layer.gate_up, layer.down, layer.attention_norm, layer.mlp_norm),
                *(layer.keys_KLE[:, :seen], layer.values_KLE[:, :seen]),
                *(cos_T1E, sin_T1E, mask_TL, places_T),
            )
        self.length = end
        return F.linear(normed(stream_TD[-num_logits:], self.last_norm, self.eps), self.head)

    def _through(
        self,
        stream_TD: Tensor,
        qkv: Tensor,
        out: Tensor,
        gate_up: Tensor,
        down: Tensor,
        attention_norm: Tensor,
        mlp_norm: Tensor,
        keys_KLE: Tensor,
        values_KLE: Tensor,
        cos_T1E: Tensor,
        sin_T1E: Tensor,
        mask_TL: Tensor,
        places_T: Tensor,
    ) -> Tensor:
        """One layer; keys and values of the tokens fed are written into the buffers."""
        num_tokens, heads, key_heads = len(stream_TD), self.num_heads, self.num_key_heads
        rows = F.linear(normed(stream_TD, attention_norm, self.eps), qkv)
        rows = rows.view(num_tokens, heads + 2 * key_heads, self.head_width)
        qk, v_TKE = rows[:, : heads + key_heads], rows[:, heads + key_heads :]
        swapped = qk.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
        turned = torch.addcmul(qk * cos_T1E, swapped, sin_T1E)
        keys_KLE.index_copy_(1, places_T, turned[:, heads:].transpose(0, 1))
        values_KLE.index_copy_(1, places_T, v_TKE.transpose(0, 1))
        mixed = F.scaled_dot_product_attention(
            turned[:, :heads].transpose(0, 1)[None],
            keys_KLE[None],
            values_KLE[None],
            attn_mask=mask_TL,
            enable_gqa=heads > key_heads,
        )
        stream_TD = stream_TD + F.linear(mixed[0].transpose(0, 1).reshape(num_tokens, -1), out)
        gate, up = F.linear(normed(stream_TD, mlp_norm, self.eps), gate_up).chunk(2, -1)
        return stream_TD + F.linear(F.silu(gate) * up, down)
