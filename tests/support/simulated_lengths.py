"""Records of the suite `token_length` whose truth is known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from bench.records import token_length
from bench.records.decoding import ModelPair
from bench.records.token_length import Header, JudgedText, LengthRecord

HEADER = Header(
    schema=token_length.SCHEMA,
    suite=token_length.SUITE,
    preset="smoke",
    command=("pytest",),
    created="2026-11-23T10:00:00+00:00",
    environment={"cpu_model": "Example", "num_physical_cores": 2, "device_type": "cpu", "harness_commit": "abcdef0123"},
    backend="reference",
    backend_settings={"forward": "fused"},
    model_pair=ModelPair("example", "target", "draft", "causal", "bfloat16"),
    model_hashes={"target": "1", "draft": "2"},
    prompt_set="instructions",
    prompts_hash="3",
    prompt_format={"chat_template": "none"},
    num_prompts=6,
    num_draft_tokens=2,
    rule="rejection",
    temperatures=(0.5, 1.0),
    draft_temperature=None,
    top_k=0,
    top_p=1.0,
    max_new_tokens=40,
    end_token="natural",
    seed=0,
)


def simulated_text(
    rng: np.random.Generator, prompt_index: int, temperature: float, *, of_length: float, of_entropy: float
) -> JudgedText:
    """Long tokens stand in certain contexts; acceptance depends on length and entropy as asked, and on the prompt."""
    size = 60
    certainty = rng.standard_normal(size)
    num_bytes = np.clip(np.rint(4 + 1.5 * certainty + rng.standard_normal(size)), 1, 12).astype(int)
    uncertainty = np.exp(-0.5 * certainty + 0.3 * rng.standard_normal(size))
    scores = 0.3 * rng.standard_normal() + of_length * (num_bytes - 4) / 1.8 - of_entropy * (uncertainty - 1.2) / 0.7
    probs = 1 / (1 + np.exp(-scores))
    return JudgedText(
        prompt_index=prompt_index,
        temperature=temperature,
        places=tuple(range(1, size + 1)),
        slots=tuple((1 + np.arange(size) % 2).tolist()),
        accepted=tuple((rng.random(size) < probs).astype(int).tolist()),
        acceptance_probs=tuple(probs.tolist()),
        token_ids=tuple(rng.integers(3, 400, size).tolist()),
        num_bytes=tuple(num_bytes.tolist()),
        num_chars=tuple(num_bytes.tolist()),
        special=(0,) * (size - 1) + (1,),
        entropies=tuple(uncertainty.tolist()),
    )


def simulated(seed: int, *, num_prompts: int = 6, of_length: float = 0.0, of_entropy: float = 1.0) -> LengthRecord:
    rng = np.random.default_rng(seed)
    header = replace(HEADER, num_prompts=num_prompts)
    texts = [
        simulated_text(rng, prompt, temperature, of_length=of_length, of_entropy=of_entropy)
        for temperature in header.temperatures
        for prompt in range(num_prompts)
    ]
    return LengthRecord(header, tuple(texts))


def stored(record: LengthRecord, folder: Path) -> Path:
    path = folder / "20261123T100000Z-abcdef0123-reference.jsonl"
    path.write_text("".join(json.dumps(asdict(line)) + "\n" for line in (record.header, *record.texts)))
    return path
