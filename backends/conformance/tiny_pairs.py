"""Small random pairs for the conformance kit: real transformers code of several architectures, a millisecond a call.

Each target has an entropy of about 2 nats per token at T = 0.8. `near` is the target, disturbed and overconfident, so that q
differs from p in a direction that a test of the output can see. `same` has equal weights. `disjoint` shares no token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel

from backends.models.checkpoints import model_family
from bench.records.decoding import ModelPair

Relation = Literal["near", "same", "disjoint"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
VOCAB_SIZE = 64
END_TOKENS = (2, 19, 40)  # enough that sampled outputs end on their own within 60 tokens
WINDOW = 8  # of sliding attention: much shorter than an output


def _llama_like(config: Callable[..., PretrainedConfig], **options: Any) -> PretrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,  # heads of 32, the smallest that every engine's attention kernels take
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "initializer_range": 0.25,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": END_TOKENS[0],
    }
    return config(**(common | options))


ARCHITECTURES: Mapping[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: _llama_like(transformers.LlamaConfig),
    "gpt2": lambda: _llama_like(transformers.GPT2Config, num_key_value_heads=2),
    # Soft-capped logits, and a layer with a sliding window below one with full attention.
    "gemma2": lambda: _llama_like(
        transformers.Gemma2Config,
        num_hidden_layers=2,
        head_dim=32,
        sliding_window=WINDOW,
        final_logit_softcapping=10.0,
        attn_logit_softcapping=20.0,
        query_pre_attn_scalar=32,
    ),
    "qwen3": lambda: _llama_like(transformers.Qwen3Config, head_dim=32),
    "mixtral": lambda: _llama_like(transformers.MixtralConfig, num_local_experts=4, num_experts_per_tok=2),
    "t5": lambda: transformers.T5Config(
        vocab_size=VOCAB_SIZE,
        d_model=64,
        d_kv=32,
        d_ff=96,
        num_layers=2,
        num_heads=2,
        n_positions=512,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        initializer_factor=2.0,
        decoder_start_token_id=0,
        eos_token_id=END_TOKENS[0],
    ),
}

# A T5 is chosen so that greedy output does not repeat itself at once: the seed, a factor of its embedding (which is the head
# too: unscaled, every token would predict itself), and a factor of its last norm.
T5_SEED, T5_EMBEDDING, T5_NORM = 3, 0.3, 1.84

# What is added to the weights of a `near` draft, for all architectures. It is chosen for the draft and never for a result:
# checks with fixed seeds keep their stated false-alarm rate only if no setting is picked because they pass with it.
NOISE = 0.015


def family_of(architecture: str) -> str:
    """Return the family as a pair names it."""
    return model_family(ARCHITECTURES[architecture]())


def tiny_models(relation: Relation, architecture: str = "llama") -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return a random target and draft.

    Raises:  ValueError: disjoint models of another architecture than Llama
    """
    target = _tiny(architecture, seed=1)
    if relation == "same":
        return target, copy.deepcopy(target)
    if relation == "near":
        return target, _disturbed(target, seed=2, noise=NOISE, confidence=2.0)
    if architecture != "llama":
        raise ValueError(f"disjoint models are made of Llamas only, got {architecture}")
    half = VOCAB_SIZE // 2
    return _confined(target, slice(0, half)), _confined(_tiny(architecture, seed=3), slice(half, VOCAB_SIZE))


def tiny_pair(folder: Path, relation: Relation, *, architecture: str = "llama", dtype: str = "float32") -> ModelPair:
    """Save the tiny models under `folder` as two checkpoints with tokenizers, and return the pair."""
    tokenizer = _tokenizer()
    for name, model in zip(("target", "draft"), tiny_models(relation, architecture), strict=True):
        model.to(getattr(torch, dtype)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return ModelPair(
        name=f"tiny-{relation}",
        target=str(folder / "target"),
        draft=str(folder / "draft"),
        family=family_of(architecture),
        dtype=dtype,
        licence="Apache-2.0",
    )


def _tiny(architecture: str, *, seed: int) -> PreTrainedModel:
    config = ARCHITECTURES[architecture]()
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(T5_SEED if architecture == "t5" else seed)
        model: PreTrainedModel = auto.from_config(config).eval()
        if architecture == "t5":
            model.shared.weight.mul_(T5_EMBEDDING)
            _sharpen(model, T5_NORM)
    return model


@torch.no_grad()
def _sharpen(model: PreTrainedModel, factor: float) -> None:
    """Multiply all logits."""
    last = model.decoder.final_layer_norm if model.config.is_encoder_decoder else model.get_output_embeddings()
    last.weight.mul_(factor)


@torch.no_grad()
def _disturbed(model: PreTrainedModel, *, seed: int, noise: float, confidence: float) -> PreTrainedModel:
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for weight in draft.parameters():
        weight.add_(noise * torch.randn(weight.shape, generator=generator))
    _sharpen(draft, confidence)
    return draft


@torch.no_grad()
def _confined(model: Any, allowed: slice) -> PreTrainedModel:
    """Give other ids than the allowed ones no mass. Llama has no bias, so one channel of the stream is made constant."""
    model.model.embed_tokens.weight[:, 0] = 1.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    push = torch.full((VOCAB_SIZE,), -1e4)  # times the normalised channel, at least 0.05, gives -500: exp underflows to 0
    push[allowed] = 0.0
    model.lm_head.weight[:, 0] = push
    return model


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = ("<unk>", "<s>", "</s>", *(f"t{i}" for i in range(3, VOCAB_SIZE)))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
