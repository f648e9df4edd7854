"""Measure what `torch.compile` gains: bare target forwards of four kinds, in alternating blocks, and their floor.

    python -m tests.studies.compiled_forward --dtype bfloat16 > record.jsonl

It prints one line of JSON per number of tokens, with the milliseconds of every sample of each kind. Calls come in blocks,
because each kind has other weights: the first calls of a block load them into the processor's caches.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backends.forwards import floor
from backends.forwards.cached_model import CachedModel
from backends.forwards.compiled_llama import CompiledLlama
from backends.forwards.fused_llama import FusedLlama
from backends.models import pairs
from backends.models.loading import load_model
from bench.records.environment import capture

CONTEXT = 100
BLOCKS = 3
SAMPLES = 10  # per block, after as many calls that are not timed
KINDS: dict[str, Callable[[Any], Any]] = {
    "transformers": CachedModel,
    "fused, plain": lambda model: FusedLlama(model, "plain"),
    "fused, packed": FusedLlama,
    "compiled": CompiledLlama,
}


def calls_of(models: dict[str, Any], num_tokens: int) -> dict[str, Callable[[], object]]:
    """Return a call of each, after CONTEXT tokens."""
    tokens = torch.arange(300, 300 + num_tokens)[None]

    def fed(model: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            logits: Tensor = model.feed(tokens, num_logits=num_tokens)
            model.rewind(CONTEXT)
            return logits

        return call

    packed = models["fused, packed"]
    rows = floor.inputs_for(packed.products, num_tokens, packed.embedding)
    calls: dict[str, Callable[[], object]] = {name: fed(model) for name, model in models.items()}
    return calls | {"floor": lambda: floor.run(packed.products, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.studies.compiled_forward", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", default="float32", choices=pairs.DTYPES)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 3, 4])
    args = parser.parse_args()
    command = f"python -m tests.studies.compiled_forward {' '.join(sys.argv[1:])}".strip()
    print(json.dumps({"command": command, "environment": capture("cpu")}), flush=True)
    models, made_s = {}, {}
    for name, make in KINDS.items():
        start = time.perf_counter()
        models[name] = make(load_model(pairs.ready().target, dtype=args.dtype, device="cpu"))
        made_s[name] = round(time.perf_counter() - start, 1)
    with torch.inference_mode():
        for model in models.values():
            model.feed(torch.arange(100, 100 + CONTEXT)[None], num_logits=1)
        for num_tokens in args.tokens:
            calls = calls_of(models, num_tokens)
            samples: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(BLOCKS):
                for name, call in calls.items():
                    for sample in range(2 * SAMPLES):
                        start = time.perf_counter()
                        call()
                        if sample >= SAMPLES:
                            samples[name].append(round(1000 * (time.perf_counter() - start), 3))
            line = {"dtype": args.dtype, "num_tokens": num_tokens, "made_s": made_s, "ms": samples}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
