"""Inflated models compute what the small ones compute, at every position and through the cache, with another cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from backends.forwards.cached_model import CachedModel
from backends.forwards.fused_llama import FusedLlama
from backends.models import checkpoints, inflated, pairs
from backends.models.inflation import SHAPES, Shape, inflate, parse_shape
from bench.errors import BackendUnavailable
from tests.support.tiny_models import VOCAB_SIZE, save_checkpoint, tiny_llama

# The tiny model: 2 layers, hidden 32, 4 heads of which 2 share a key head, each 8 wide, 48 neurons.
LARGER = {
    "wider stream": Shape(2, 80, 4, 2, 8, 48),
    "more queries a key": Shape(2, 96, 12, 3, 8, 48),
    "a key for every query": Shape(2, 96, 6, 6, 8, 64),
    "wider heads": Shape(2, 96, 4, 2, 24, 48),
    "more layers": Shape(5, 48, 4, 2, 8, 48),
    "all of it": Shape(4, 160, 10, 10, 16, 200),
}
PROMPTS = torch.randint(0, VOCAB_SIZE, (3, 40), generator=torch.Generator().manual_seed(0))


def difference(small: LlamaForCausalLM, large: LlamaForCausalLM) -> float:
    """Return the largest difference of log probabilities, over all positions."""
    with torch.inference_mode():
        logits = [model(PROMPTS).logits.log_softmax(-1) for model in (small, large)]
    return float((logits[0] - logits[1]).abs().max())


@pytest.mark.parametrize("name", LARGER)
def test_the_distribution_is_that_of_the_small_model_at_every_position(name: str) -> None:
    small, shape = tiny_llama(seed=1), LARGER[name]
    large = inflate(small, shape)
    assert difference(small, large) < 1e-4
    config = large.config
    assert shape == Shape(
        *(config.num_hidden_layers, config.hidden_size, config.num_attention_heads),
        *(config.num_key_value_heads, config.head_dim, config.intermediate_size),
    )


@pytest.mark.parametrize("remembering", [CachedModel, FusedLlama])
def test_through_the_cache_too(remembering: type) -> None:
    small = tiny_llama(seed=1)
    large = inflate(small, LARGER["all of it"])
    caches = [remembering(model) for model in (small, large)]
    with torch.inference_mode():
        for start, end in ((0, 17), (17, 18), (18, 23), (23, 40)):
            logits = [cache.feed(PROMPTS[:1, start:end], num_logits=end - start) for cache in caches]
            assert float((logits[0].log_softmax(-1) - logits[1].log_softmax(-1)).abs().max()) < 1e-4


def test_a_tied_head_is_untied_and_a_checkpoint_gives_the_same_model_again(tmp_path: Path) -> None:
    tied = LlamaForCausalLM(LlamaConfig(**tiny_llama(seed=1).config.to_dict() | {"tie_word_embeddings": True})).eval()
    large = inflate(tied, LARGER["all of it"])
    assert difference(tied, large) < 1e-4
    large.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert difference(large, again) == 0
    assert difference(large, inflate(tied, LARGER["all of it"])) == 0


def test_nearly_all_weights_of_a_much_larger_model_are_random() -> None:
    large = inflate(tiny_llama(seed=1), Shape(6, 256, 16, 16, 16, 512))
    weights = [weight for name, weight in large.named_parameters() if "embed_tokens" not in name]
    assert sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights) < 0.08


def test_a_fault_in_any_part_would_be_seen() -> None:
    small = tiny_llama(seed=1)
    for part in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj", "input_layernorm"):
        large = inflate(small, LARGER["all of it"])
        with torch.no_grad():
            for name, weight in large.named_parameters():
                if part in name and "layers.0" in name:
                    weight.mul_(1.01)
        assert difference(small, large) > 1e-4, part


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("huge", "expected --inflate 0.5b, 1b, 7b, 13b, 70b or sizes of layers"),
        ("hidden=", "expected --inflate"),
        ("width=3", "expected --inflate"),
    ],
)
def test_a_shape_that_is_none_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_shape(text, tiny_llama(seed=1).config)


def test_sizes_that_are_not_given_stay_and_those_that_are_too_small_are_named() -> None:
    config = tiny_llama(seed=1).config
    assert parse_shape("hidden=64,layers=3", config) == Shape(3, 64, 4, 2, 8, 48)
    assert parse_shape("13B", config) == SHAPES["13b"]
    with pytest.raises(ValueError, match=r"hidden >= 32, neurons >= 48, into which the target fits"):
        inflate(tiny_llama(seed=1), parse_shape("hidden=16,neurons=40", config))
    with pytest.raises(ValueError, match="key_heads >= 4"):
        inflate(tiny_llama(seed=1), Shape(2, 64, 3, 3, 8, 48))
    with pytest.raises(ValueError, match="multiples of key_heads"):
        inflate(tiny_llama(seed=1), Shape(2, 64, 5, 2, 8, 48))


def test_a_checkpoint_is_made_once_and_says_what_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECHEAT_CACHE", str(tmp_path / "cache"))
    small = tiny_llama(seed=1).to(torch.bfloat16)
    pair = pairs.resolve(target=save_checkpoint(small, tmp_path / "target"), draft=save_checkpoint(small, tmp_path / "draft"))
    large = pairs.inflated(pair, "layers=5,hidden=80")
    assert large.name == f"{pair.name} inflated layers=5,hidden=80,heads=4,key_heads=2,head_width=8,neurons=48"
    assert pairs.recorded(large).target == f"target inflated {large.name.partition(' inflated ')[2]}"
    hashes = checkpoints.model_hashes(large)
    assert hashes["uninflated target"] == checkpoints.model_hashes(pair)["target"] != hashes["target"]
    checkpoints.check_compatible(large)
    written = Path(large.target, "model.safetensors").stat().st_mtime_ns
    assert pairs.inflated(pair, "layers=5,hidden=80") == large
    assert Path(large.target, "model.safetensors").stat().st_mtime_ns == written
    # Scaled norms are not rounded on the disk, so in float32 the functions are equal.
    models = [AutoModelForCausalLM.from_pretrained(one.target, dtype=torch.float32) for one in (pair, large)]
    assert difference(*models) < 1e-4
    dtypes = {weight.dtype for weight in safetensors.torch.load_file(Path(large.target, "model.safetensors")).values()}
    assert dtypes == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(
    ("shape", "complaint"), [("13c", "expected --inflate 0.5b"), ("hidden=16", "hidden >= 32"), ("70b", "GiB of")]
)
def test_a_shape_that_cannot_be_made_is_refused(
    shape: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECHEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(inflated, "available_memory_bytes", lambda: 2**36)
    folder = save_checkpoint(tiny_llama(seed=1), tmp_path / "target")
    with pytest.raises(ValueError, match=complaint):
        pairs.inflated(pairs.resolve(target=folder, draft=folder), shape)


def test_other_architectures_cannot_be_inflated(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=VOCAB_SIZE, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    folder = save_checkpoint(GPT2LMHeadModel(config), tmp_path / "gpt2")
    with pytest.raises(ValueError, match="expected a Llama-type target to inflate, got gpt2"):
        inflate(GPT2LMHeadModel(config), LARGER["all of it"])
    with pytest.raises(BackendUnavailable, match="got gpt2"):
        inflated.check_inflatable(checkpoints.model_config(folder), "0.5b")
