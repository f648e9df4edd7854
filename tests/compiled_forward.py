"""What `torch.compile` would gain: bare target forwards of four kinds, one beside the other, and their floor.

    python -m tests.compiled_forward --dtype float32 > record.jsonl

`compiled` is the fused forward as one graph over a static cache, its weights frozen so that inductor lays them out (about two
minutes a number of tokens on two cores). A line of JSON for each number of tokens: milliseconds of each kind, sample by sample.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends import floor, pairs
from backends.cached_model import CachedModel
from backends.fused_llama import FusedLlama, causal_mask, normed
from backends.loading import load_model
from bench.environment import capture

CONTEXT = 100
SAMPLES = 15


class Graph(nn.Module):
    """The equations of `FusedLlama`, with weights as parameters, which can be frozen."""

    def __init__(self, fused: FusedLlama) -> None:
        super().__init__()
        self.fused = fused
        kept = [weight for layer in fused.layers for weight in _weights(layer)]
        self.weights = nn.ParameterList(nn.Parameter(weight.detach(), requires_grad=False) for weight in kept)
        self.head = nn.Parameter(fused.model.lm_head.weight.detach(), requires_grad=False)
        self.last_norm = nn.Parameter(fused.last_norm.detach(), requires_grad=False)

    def forward(
        self,
        tokens_T: Tensor,
        start: int,
        cos_L1E: Tensor,
        sin_L1E: Tensor,
        mask_RL: Tensor | None,
        caches: list[Tensor],
    ) -> Tensor:
        heads, key_heads, width, eps = (
            *(self.fused.num_heads, self.fused.num_key_heads),
            *(self.fused.head_width, self.fused.eps),
        )
        num_tokens, end = len(tokens_T), start + len(tokens_T)
        stream_TD = F.embedding(tokens_T, self.head)
        for index, cache_KLE in enumerate(caches):
            qkv_ND, out_ND, gate_up_ND, down_ND, attention_norm, mlp_norm = self.weights[6 * index : 6 * index + 6]
            qkv = F.linear(normed(stream_TD, attention_norm, eps), qkv_ND).view(num_tokens, -1, width)
            qk = qkv[:, : heads + key_heads]
            qk = qk * cos_L1E[start:end] + qk.roll(width // 2, -1) * sin_L1E[start:end]
            cache_KLE[:key_heads, start:end] = qk[:, heads:].transpose(0, 1)
            cache_KLE[key_heads:, start:end] = qkv[:, heads + key_heads :].transpose(0, 1)
            grouped = qk[:, :heads].view(num_tokens, key_heads, -1, width).permute(1, 2, 0, 3)
            mixed = F.scaled_dot_product_attention(
                grouped.reshape(1, key_heads, -1, width),
                cache_KLE[None, :key_heads, :end],
                cache_KLE[None, key_heads:, :end],
                attn_mask=mask_RL,
            )
            mixed = mixed.view(key_heads, -1, num_tokens, width).permute(2, 0, 1, 3).reshape(num_tokens, -1)
            stream_TD = stream_TD + F.linear(mixed, out_ND)
            gate, up = F.linear(normed(stream_TD, mlp_norm, eps), gate_up_ND).chunk(2, -1)
            stream_TD = stream_TD + F.linear(F.silu(gate) * up, down_ND)
        return F.linear(normed(stream_TD, self.last_norm, eps), self.head)


def _weights(layer: Any) -> tuple[Tensor, ...]:
    products = (layer.qkv, layer.out, layer.gate_up, layer.down)
    return (*(product.multiply.keywords["weight"] for product in products), layer.attention_norm, layer.mlp_norm)


def kinds(folder: str, dtype: str, num_tokens: int) -> dict[str, Callable[[], object]]:
    """A call of each, behind CONTEXT tokens."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    plain, packed, theirs = (
        FusedLlama(load_model(folder, dtype=dtype, device="cpu"), "plain"),  # type: ignore[arg-type]
        FusedLlama(load_model(folder, dtype=dtype, device="cpu"), "packed"),  # type: ignore[arg-type]
        CachedModel(load_model(folder, dtype=dtype, device="cpu")),
    )
    prompt = torch.arange(100, 100 + CONTEXT)[None]
    tokens = torch.arange(300, 300 + num_tokens)[None]
    for model in (plain, packed, theirs):
        model.feed(prompt, num_logits=1)  # type: ignore[attr-defined]
    caches = [layer.cache_KLE.clone() for layer in plain.layers]
    mask = causal_mask(CONTEXT, num_tokens, plain.num_heads // plain.num_key_heads, plain.embedding)
    compiled = torch.compile(Graph(plain), dynamic=None)
    products = floor.products_of(packed.model, packed)
    rows = floor.inputs_for(products, num_tokens, packed.embedding)

    def fed(model: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            logits: Tensor = model.feed(tokens, num_logits=num_tokens)
            model.rewind(CONTEXT)
            return logits

        return call

    def graph() -> Tensor:
        logits: Tensor = compiled(tokens[0], CONTEXT, plain.cos_L1E, plain.sin_L1E, mask, caches)
        return logits

    assert torch.allclose(graph(), fed(packed)(), atol=1e-2 if dtype == "float32" else 1.0)
    return {
        "transformers": fed(theirs),
        "fused, plain": fed(plain),
        "fused, packed": fed(packed),
        "compiled, frozen": graph,
        "floor": lambda: floor.run(products, rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.compiled_forward", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", default="float32", choices=pairs.DTYPES)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4])
    args = parser.parse_args()
    command = f"python -m tests.compiled_forward {' '.join(sys.argv[1:])}".strip()
    print(json.dumps({"command": command, "environment": capture("cpu")}), flush=True)
    # Frozen are weights that need no gradient, which those of inference mode are not counted among.
    with torch.no_grad():
        for num_tokens in args.tokens:
            calls = kinds(pairs.ready().target, args.dtype, num_tokens)
            samples: dict[str, list[float]] = {name: [] for name in calls}
            for sample in range(SAMPLES + 3):
                for name, call in calls.items():
                    call()
                    start = time.perf_counter()
                    call()
                    if sample >= 3:
                        samples[name].append(round(1000 * (time.perf_counter() - start), 3))
            print(json.dumps({"dtype": args.dtype, "num_tokens": num_tokens, "ms": samples}), flush=True)


if __name__ == "__main__":
    main()
