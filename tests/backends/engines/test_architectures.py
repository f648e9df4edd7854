"""Decoders other than Llama, small and random: both arms follow the target, or the model is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from backends.certification.scoring import TargetScorer, Text, near_tie_tolerance
from backends.engines.assisted import Assisted
from backends.engines.reference import ReferenceBackend
from backends.forwards.cached_model import CachedModel, cached
from bench.analysis import certificate
from bench.records.decoding import DecodeRequest
from bench.records.runs import Evidence
from tests.support.tiny_models import VOCAB_SIZE, nearby

WINDOW = 8  # far less than the texts below
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.35,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ARCHITECTURES: Mapping[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.35,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gemma2": lambda: Gemma2Config(
        **SIZES,
        sliding_window=WINDOW,
        final_logit_softcapping=6.0,
        attn_logit_softcapping=10.0,
        query_pre_attn_scalar=8,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8
    ),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}
REQUEST = DecodeRequest(prompt_ids=(5, 9, 3, 7, 4), max_new_tokens=40, num_draft_tokens=3, seed=4)


def tiny(config: PretrainedConfig, *, seed: int = 1) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def backend(request: pytest.FixtureRequest) -> ReferenceBackend:
    target = tiny(ARCHITECTURES[request.param]())
    return ReferenceBackend(target, nearby(target, seed=2, noise=0.03))


@torch.inference_mode()
def test_the_cache_gives_what_a_fresh_forward_gives_also_after_a_rewind(backend: ReferenceBackend) -> None:
    model = backend.target.model
    tokens = torch.randint(3, VOCAB_SIZE, (1, 40), generator=torch.Generator().manual_seed(0))
    remembering = CachedModel(model)
    whole = model(tokens, use_cache=False).logits[0]
    torch.testing.assert_close(remembering.feed(tokens[:, :30], num_logits=30), whole[:30], atol=1e-3, rtol=1e-3)
    # Further back than the window, which a cache that keeps no more than the window could not.
    remembering.rewind(30 - 2 * WINDOW)
    again = remembering.feed(tokens[:, 30 - 2 * WINDOW :], num_logits=10 + 2 * WINDOW)
    torch.testing.assert_close(again, whole[30 - 2 * WINDOW :], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("num_draft_tokens", [1, 4])
def test_greedy_texts_are_those_of_generate(backend: ReferenceBackend, num_draft_tokens: int) -> None:
    request = replace(REQUEST, temperature=0.0, num_draft_tokens=num_draft_tokens)
    plain = replace(request, num_draft_tokens=0)
    expected = backend.generate_natively(plain).token_ids
    assert backend.generate(request).token_ids == backend.generate(plain).token_ids == expected
    theirs = Assisted(nearby(backend.target.model, seed=0, noise=0.0), nearby(backend.draft.model, seed=0, noise=0.0))
    assert theirs.generate(request).token_ids == expected


def test_sampled_texts_follow_the_target_at_their_own_temperature_only(backend: ReferenceBackend) -> None:
    """1,200 tokens; false alarms at most 1 in 100. The conformance kit certifies most of these architectures."""
    model = backend.target.model
    prompts = [(3 + seed % 20, 9, 3 + seed % 7, 4)[: 2 + seed % 3] for seed in range(30)]
    texts = []
    for seed, prompt in enumerate(prompts):
        found = backend.generate(replace(REQUEST, prompt_ids=prompt, seed=seed))
        texts.append(Text(prompt, found.token_ids, (0,) * len(found.token_ids), seed))
    near_tie = near_tie_tolerance(model, prompts, 3)
    verdicts = []
    for temperature in (1.0, 2.0):
        scored = TargetScorer(model).score_texts(texts, temperature=temperature, near_tie=near_tie)
        sample = certificate.Sample(Evidence("float32", near_tie, scored), temperature)
        verdicts.append(certificate.certify([sample]))
    assert verdicts[0].verdict != "LOSSY", verdicts[0].words
    assert verdicts[1].verdict == "LOSSY"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=1, eos_token_id=2),
            "got mamba, which has linear_attention layers",
        ),
        (
            Lfm2Config(**SIZES, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
            "got lfm2, which has conv layers",
        ),
    ],
    ids=["recurrent", "hybrid"],
)
def test_a_model_that_cannot_take_a_token_back_is_refused(config: PretrainedConfig, reason: str) -> None:
    model = tiny(config)
    for load in (cached, lambda model: ReferenceBackend(model, model), lambda model: Assisted(model, model)):
        with pytest.raises(ValueError, match=f"expected a model whose cache can be rewound, {reason}"):
            load(model)  # type: ignore[operator]
