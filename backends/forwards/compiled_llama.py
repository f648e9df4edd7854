"""The fused forward (`backends.forwards.fused_llama`) as one graph of `torch.compile`, for the few tokens of a decoding step.

Between two products there are then two or three compiled loops instead of about twenty calls. Two graphs are compiled: one for
a single token, and one for any other number up to MOST_TOKENS. Longer inputs, such as a prompt, are fed by `FusedLlama`. Each
graph packs the weights for itself, so they take their memory four times in all. CPU only; a C++ compiler is needed.

Shape letters: as in `backends.forwards.fused_llama`; S tokens that attention reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor
from transformers import PreTrainedModel

from backends.forwards.fused_llama import FusedLlama, normed, supports
from backends.forwards.products import Layout
from bench.errors import first_line

MOST_TOKENS = 16


class Graph(nn.Module):
    """The equations of `FusedLlama.feed`, with weights as parameters: only parameters can be frozen."""

    def __init__(self, fused: FusedLlama) -> None:
        super().__init__()
        self.eps, self.head_width = fused.eps, fused.head_width
        self.num_heads, self.num_key_heads = fused.num_heads, fused.num_key_heads
        self.embedding, self.last_norm = _frozen(fused.embedding), _frozen(fused.last_norm)
        self.head = _frozen(fused.head.weight_ND)
        self.layers = nn.ModuleList()
        for layer in fused.layers:
            weights = {name: getattr(layer, name).weight_ND for name in ("qkv", "out", "gate_up", "down")}
            weights |= {"attention_norm": layer.attention_norm, "mlp_norm": layer.mlp_norm}
            self.layers.append(nn.ParameterDict({name: _frozen(weight) for name, weight in weights.items()}))

    def forward(
        self, tokens_T: Tensor, places_T: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, seen_S: Tensor, caches: list[Tensor]
    ) -> Tensor:
        """Return the logits (T, V) of tokens at these places. Keys and values go into the caches.

        Args:    seen_S: 0, 1, .., the places of all tokens in the cache, those just fed included
        """
        num_tokens, num_seen, eps, width = len(tokens_T), len(seen_S), self.eps, self.head_width
        heads, key_heads = self.num_heads, self.num_key_heads
        mask_RS = None
        if num_tokens > 1:
            mask_RS = (seen_S <= places_T[:, None]).repeat(heads // key_heads, 1)
        stream_TD = F.embedding(tokens_T, self.embedding)
        for weights, cache_KLE in zip(self.layers, caches, strict=True):
            qkv = F.linear(normed(stream_TD, weights["attention_norm"], eps), weights["qkv"])
            qkv = qkv.view(num_tokens, heads + 2 * key_heads, width)
            qk, values = qkv[:, : heads + key_heads], qkv[:, heads + key_heads :]
            qk = qk * cos_T1E + qk.roll(width // 2, -1) * sin_T1E
            cache_KLE.index_copy_(1, places_T, torch.cat((qk[:, heads:], values), 1).transpose(0, 1))
            keys_KSE, values_KSE = cache_KLE[:key_heads, :num_seen], cache_KLE[key_heads:, :num_seen]
            grouped = qk[:, :heads].view(num_tokens, key_heads, -1, width).permute(1, 2, 0, 3)
            mixed = F.scaled_dot_product_attention(
                grouped.reshape(1, key_heads, -1, width), keys_KSE[None], values_KSE[None], attn_mask=mask_RS
            )
            mixed = mixed.view(key_heads, -1, num_tokens, width).permute(2, 0, 1, 3).reshape(num_tokens, -1)
            stream_TD = stream_TD + F.linear(mixed, weights["out"])
            gate, up = F.linear(normed(stream_TD, weights["mlp_norm"], eps), weights["gate_up"]).chunk(2, -1)
            stream_TD = stream_TD + F.linear(F.silu(gate) * up, weights["down"])
        return F.linear(normed(stream_TD, self.last_norm, eps), self.head)


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=False)


class CompiledLlama(FusedLlama):
    """A `FusedLlama` whose forward of a few tokens is compiled. Making one takes minutes.

    Raises:  ValueError: another architecture or device, or this machine has no C++ compiler
    """

    def __init__(self, model: PreTrainedModel, layout: Layout = "packed") -> None:
        if not supports(model) or model.device.type != "cpu":
            got = f"{model.config.model_type} on {model.device.type}"
            raise ValueError(f"backend reference: compile=true is for Llama-type models on a CPU, got {got}")
        super().__init__(model, layout)
        self.graph: Callable[..., Tensor] = torch.compile(Graph(self), fullgraph=True)
        try:
            self._compile()
        except RuntimeError as error:
            needed = "a C++ compiler that torch.compile can use"
            raise ValueError(f"backend reference: compile=true needs {needed}: {first_line(error)}") from error

    def _compile(self) -> None:
        """Compile both graphs for any length. The sample lengths avoid 0 and 1, which torch takes for constants."""
        tokens_BT = torch.zeros(1, 3, dtype=torch.long)
        # Each model adds two graphs to the same function, for which torch's limit is low.
        limit = dynamo.patch(recompile_limit=1000)
        # Freezing: weights become constants, which are packed once. C++ wrapper: no Python runs between the kernels.
        # As options of `torch.compile` these settings would come too late for the first graph.
        settings = inductor.patch(freezing=True, cpp_wrapper=True)
        with torch.inference_mode(False), torch.no_grad(), settings, limit:
            for num_tokens in (1, 3):
                *of_tokens, seen_S, caches = self._inputs(tokens_BT[:, :num_tokens], 5)
                for tensor in (seen_S, *(of_tokens if num_tokens > 1 else ())):
                    torch._dynamo.mark_dynamic(tensor, 0)
                for cache_KLE in caches:
                    torch._dynamo.mark_dynamic(cache_KLE, 1)
                self.graph(*of_tokens, seen_S, caches)

    def _inputs(self, tokens_BT: Tensor, start: int) -> tuple[Any, ...]:
        """Return the graph's inputs for tokens at the places `start`, start + 1, .."""
        end = start + tokens_BT.shape[1]
        of_tokens = (tensor[start:end] for tensor in (self.places_L, self.cos_L1E, self.sin_L1E))
        return tokens_BT[0].clone(), *of_tokens, self.places_L[:end], self.caches

    def _make_room(self, room: int) -> None:
        # A tensor made in inference mode cannot be written to outside it, where the graph runs.
        with torch.inference_mode(False), torch.no_grad():
            super()._make_room(room)
            self.caches = [layer.cache_KLE for layer in self.layers]
            self.places_L = torch.arange(room)

    def feed(self, tokens_BT: Tensor, *, num_logits: int) -> Tensor:
        num_tokens = tokens_BT.shape[1]
        if num_tokens > MOST_TOKENS:
            return super().feed(tokens_BT, num_logits=num_logits)
        if (end := self.length + num_tokens) > self.room:
            self._make_room(max(end, 2 * self.room))
        # Inductor freezes weights only outside inference mode.
        with torch.inference_mode(False), torch.no_grad():
            logits_TV: Tensor = self.graph(*self._inputs(tokens_BT, self.length))
        self.length = end
        return logits_TV[-num_logits:]
