"""Small random causal models, in memory or as checkpoints: real transformers code, milliseconds a call."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 24
HEED_CTRL_C = ("env", "--default-signal=INT")  # before a command: children of a background job would ignore it


def tiny_llama(
    *, seed: int, num_layers: int = 2, vocab_size: int = VOCAB_SIZE, spread: float = 0.35
) -> LlamaForCausalLM:
    """A Llama with grouped heads; `spread` is the standard deviation of its weights: larger means more decided."""
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


def nearby(model: LlamaForCausalLM, *, seed: int, noise: float = 0.05) -> LlamaForCausalLM:
    """A draft that mostly agrees with `model`: the same weights, disturbed."""
    draft = LlamaForCausalLM(model.config).eval()
    draft.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(noise * torch.randn(weight.shape, generator=generator))
    return draft


def save_checkpoint(model: LlamaForCausalLM, folder: Path) -> str:
    """A plain checkpoint folder with a word tokenizer: w0 .. wN, of which w0 is unknown, w1 begins and w2 ends a text."""
    words = {f"w{index}": index for index in range(model.config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", bos_token="w1", eos_token="w2").save_pretrained(
        folder
    )
    model.save_pretrained(folder)
    return str(folder)
