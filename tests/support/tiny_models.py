"""Small random models, in memory or as checkpoints: real transformers code, at milliseconds per call."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

VOCAB_SIZE = 24
Model = TypeVar("Model", bound=PreTrainedModel)
HEED_CTRL_C = (
    "env",
    "--default-signal=INT",
)  # put before a command: children of a background job ignore Ctrl-C otherwise


def tiny_llama(*, seed: int, num_layers: int = 2, vocab_size: int = VOCAB_SIZE, spread: float = 0.35) -> LlamaForCausalLM:
    """Return a Llama with grouped heads. A larger `spread` (standard deviation of weights) makes likely tokens likelier."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=spread,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tiny_t5(
    *, seed: int, vocab_size: int = VOCAB_SIZE, num_layers: int = 2, decoder_layers: int | None = None
) -> T5ForConditionalGeneration:
    """Return an encoder-decoder with some likely tokens. Token 0 starts the decoder, 2 ends an output."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=num_layers,
        num_decoder_layers=decoder_layers or num_layers,
        num_heads=4,
        n_positions=256,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        initializer_factor=2.0,
        decoder_start_token_id=0,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(config).eval()


def nearby(model: Model, *, seed: int, noise: float = 0.05) -> Model:
    """Return a draft that mostly agrees with `model`: the same weights, disturbed."""
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(noise * torch.randn(weight.shape, generator=generator))
    return draft


def save_checkpoint(model: PreTrainedModel, folder: Path) -> str:
    """Save a checkpoint with a tokenizer of the words w0 .. wN: w0 is unknown, w1 begins and w2 ends an output."""
    words = {f"w{index}": index for index in range(model.config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", bos_token="w1", eos_token="w2").save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)
