"""One language model and its key-value cache: feed tokens, read logits, rewind exactly.

Of an encoder-decoder model the first tokens fed are the encoder's; what they give is the logits behind the decoder's start
token, so that both kinds are used alike: the prompt first, then what is generated.

Shape letters: B batch (always 1), T tokens fed, N logit rows asked for, V vocabulary.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of layers


class CachedModel:
    """A model that remembers what it has been fed. `length` is the number of tokens in the cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        # Made without the configuration, by which layers with a sliding window would keep too little to be rewound.
        self.cache = DynamicCache()
        self.length = 0

    def feed(self, tokens_BT: torch.Tensor, *, num_logits: int) -> torch.Tensor:
        """Append tokens and return the logits behind the last `num_logits` of them, (N, V) in the model's dtype."""
        outputs = self.model(tokens_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=num_logits)
        self.length += tokens_BT.shape[1]
        return outputs.logits[0]

    def rewind(self, length: int) -> None:
        """Drop everything behind the first `length` tokens. A view is taken; nothing is copied."""
        if length < self.length:
            self.cache.crop(length - self.length)
            self.length = length


class CachedEncoderDecoder:
    """The same of an encoder-decoder model, whose encoder runs once a text. `length` counts the prompt."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.start_BT = torch.tensor([[model.config.decoder_start_token_id]], device=model.device)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.length = 0

    def feed(self, tokens_BT: torch.Tensor, *, num_logits: int) -> torch.Tensor:
        """Append tokens and return the logits behind the last `num_logits` of them, (N, V) in the model's dtype.

        Raises: ValueError: more than one row of logits behind the prompt, of which the decoder sees none
        """
        fed = tokens_BT
        if self.length == 0:
            if num_logits != 1:
                raise ValueError(f"expected num_logits = 1 behind the prompt of an encoder, got {num_logits}")
            self.encoded = self.model.get_encoder()(tokens_BT)
            fed = self.start_BT
        outputs = self.model(
            encoder_outputs=self.encoded, decoder_input_ids=fed, past_key_values=self.cache, use_cache=True
        )
        self.length += tokens_BT.shape[1]
        return outputs.logits[0, -num_logits:]

    def rewind(self, length: int) -> None:
        """Drop everything behind the first `length` tokens, which may not be less than the prompt's. Nothing is copied."""
        if length < self.length:
            self.cache.self_attention_cache.crop(length - self.length)
            self.length = length


def cache_for_generate(model: PreTrainedModel) -> dict[str, EncoderDecoderCache]:
    """What transformers' `generate` must be given for a decoder deeper than its encoder, by whose depth it makes the cache.

    Source:  docs/upstream/transformers-deeper-decoder.md
    """
    if not has_deeper_decoder(model):
        return {}
    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def has_deeper_decoder(model: PreTrainedModel) -> bool:
    """Than its encoder, as a T5 may have."""
    config = model.config
    decoder_layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    return bool(config.is_encoder_decoder and decoder_layers > config.num_hidden_layers)


def check_rewindable(model: PreTrainedModel) -> None:
    """Raises: ValueError: what the model remembers is no cache of keys and values, so no rejected token can be taken back"""
    config = model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENTION)
    if model._is_stateful or others:
        kind = f"which has {', '.join(others)} layers" if others else "which is recurrent"
        raise ValueError(f"expected a model whose cache can be rewound, got {config.model_type}, {kind}")


def cached(model: PreTrainedModel) -> CachedModel | CachedEncoderDecoder:
    """The model with its cache.

    Raises:  as `check_rewindable`
    """
    check_rewindable(model)
    return CachedEncoderDecoder(model) if model.config.is_encoder_decoder else CachedModel(model)
