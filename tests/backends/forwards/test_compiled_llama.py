"""The compiled forward gives the fused one's logits and texts; what cannot be compiled is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.conformance.tiny_pairs import tiny_models, tiny_pair
from backends.engines.reference import load
from backends.forwards import compiled_llama, fused_llama
from backends.forwards.compiled_llama import CompiledLlama
from backends.forwards.fused_llama import FusedLlama
from bench.records.decoding import DecodeRequest

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
TOKENS = torch.randint(0, 64, (1, 90), generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@needs_compiler
@torch.inference_mode()
def test_logits_are_those_of_the_fused_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token, several, a prompt, after rewinds and while buffers grow; only the two graphs made at first are used."""
    monkeypatch.setattr(fused_llama, "FIRST_ROOM", 48)
    ours, theirs = CompiledLlama(tiny_models("same")[0]), FusedLlama(tiny_models("same")[0])  # type: ignore[arg-type]
    place = 0
    with torch.compiler.set_stance("fail_on_recompile"):
        for fed, kept in (
            (20, 20),
            (1, 21),
            (4, 23),
            (1, 24),
            (2, 26),
            (1, 27),
            (16, 43),
            (1, 44),
            (8, 52),
            (5, 54),
            (1, 55),
        ):
            chunk = TOKENS[:, place : place + fed]
            found = ours.feed(chunk, num_logits=min(fed, 3))
            assert torch.allclose(found, theirs.feed(chunk, num_logits=min(fed, 3)), atol=2e-5)
            ours.rewind(kept)
            theirs.rewind(kept)
            place = kept


@pytest.mark.slow
@needs_compiler
def test_the_texts_are_those_of_the_eager_backend(tmp_path: Path) -> None:
    pair = tiny_pair(tmp_path, "near")
    eager, compiled = (load(pair, device="cpu", options={"compile": value}) for value in ("false", "true"))
    assert compiled.settings()["compiled"] is True
    assert eager.settings()["compiled"] is False
    request = DecodeRequest((1, 17, 30), 40, 3, temperature=0.8)
    for k in (0, 1, 3):
        for seed in range(3):
            asked = replace(request, num_draft_tokens=k, seed=seed)
            ours, theirs = compiled.generate(asked), eager.generate(asked)
            assert (ours.token_ids, ours.rounds) == (theirs.token_ids, theirs.rounds)


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_another_architecture_is_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match=f"compile=true is for Llama-type models on a CPU, got {architecture} on cpu"):
        CompiledLlama(tiny_models("same", architecture)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "yes"}, "expected true or false for compile, got 'yes'"),
        ({"compile": "true", "forward": "transformers"}, "expected forward=fused and weights=packed with compile=true"),
        ({"compile": "true", "weights": "plain"}, "expected forward=fused and weights=packed with compile=true"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(tiny_pair(tmp_path, "near"), device="cpu", options=options)


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(compiled_llama.torch, "compile", lambda *arguments, **options: fails)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler .*: InvalidCxxCompiler: No working .*found$"):
        CompiledLlama(tiny_models("same")[0])  # type: ignore[arg-type]
