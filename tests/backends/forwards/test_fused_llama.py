"""The fused forward gives transformers' own logits, through the cache and after every rewind."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from backends.engines.reference import Options, load, remembering
from backends.forwards import fused_llama
from backends.forwards.cached_model import CachedModel
from backends.forwards.fused_llama import FusedLlama, supports
from backends.forwards.products import Layout, product
from bench.records.decoding import ModelPair
from tests.support.tiny_models import tiny_llama

LAYOUTS: tuple[Layout, ...] = get_args(Layout)[::-1]  # plain first
TOKENS = torch.randint(0, 64, (1, 40), generator=torch.Generator().manual_seed(3))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    options: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return LlamaForCausalLM(LlamaConfig(**options)).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"head_dim": 16},
        {"tie_word_embeddings": True},
        {"rms_norm_eps": 0.1},
        {"rope_parameters": LLAMA3},
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_logits_are_those_of_transformers(changes: dict[str, Any], layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_llama, "FIRST_ROOM", 8)  # so that the buffers grow on the way
    model = llama(**changes)
    assert supports(model)
    theirs = CachedModel(llama(**changes))
    ours = FusedLlama(model, layout)
    for _ in range(2):
        place = 0
        for fed, kept in ((5, 5), (1, 6), (4, 8), (1, 9), (3, 9), (20, 20), (2, 22)):
            chunk = TOKENS[:, place : place + fed]
            num_logits = min(fed, 3)
            found = ours.feed(chunk, num_logits=num_logits)
            assert torch.allclose(found, theirs.feed(chunk, num_logits=num_logits), atol=2e-5)
            ours.rewind(kept)
            theirs.rewind(kept)
            assert ours.length == theirs.length == kept
            place = kept
        ours.reset()
        theirs.reset()


@torch.inference_mode()
def test_the_models_own_forward_is_what_it_was() -> None:
    model = llama()
    before = model(TOKENS).logits
    for layout in LAYOUTS:
        FusedLlama(model, layout)
        assert torch.equal(model(TOKENS).logits, before)


def test_plain_weights_take_no_more_memory() -> None:
    model = llama()
    multiply = FusedLlama(model, "plain").layers[1].qkv.multiply
    assert isinstance(multiply, partial)
    attention = model.model.layers[1].self_attn
    storages = {linear.weight.untyped_storage().data_ptr() for linear in (attention.q_proj, attention.v_proj)}
    assert storages == {multiply.keywords["weight"].untyped_storage().data_ptr()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 5, 70])
def test_packed_products_are_the_plain_ones(dtype: torch.dtype, num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    rows, weight, others = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((num_rows, 40), (24, 40), (num_rows, 24))
    )
    plain, packed = (product(weight, layout) for layout in LAYOUTS)
    close = {"atol": 1e-4} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.01}
    assert torch.allclose(packed(rows), plain(rows), **close)  # type: ignore[arg-type]
    kept = others.clone()
    assert torch.allclose(packed.add(rows, others), plain.add(rows, others), **close)  # type: ignore[arg-type]
    assert torch.equal(others, kept)


@pytest.mark.parametrize(
    "model",
    [
        llama(attention_bias=True),
        llama(mlp_bias=True),
        llama(hidden_act="gelu"),
        llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}),
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=8)),
    ],
)
def test_other_models_go_through_transformers(model: Any) -> None:
    assert not supports(model)
    assert isinstance(remembering(model, Options()), CachedModel)


def test_transformers_forward_is_used_where_it_is_asked_for() -> None:
    assert isinstance(remembering(tiny_llama(seed=1), Options(forward="transformers")), CachedModel)
    pair = ModelPair("some", "target", "draft", "causal", "float32")
    for options, message in (
        ({"forward": "fast"}, "expected fused or transformers"),
        ({"weights": "heavy"}, "expected packed or plain"),
        ({"speed": "1"}, "got speed"),
    ):
        with pytest.raises(ValueError, match=message):
            load(pair, device="cpu", options=options)
