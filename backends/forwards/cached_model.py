"""One language model and its key-value cache: feed tokens, read logits, rewind exactly.

Row t of the logits judges token t + 1: it is the prediction after token t. A rejected token is taken back by a rewind, so
models whose state cannot be rewound (recurrent ones) are refused.

For an encoder-decoder model the first tokens fed go to the encoder, and the logits are those after the decoder's start token.
So both kinds are used alike: first the prompt, then what is generated.

Shape letters: B batch (always 1), T tokens fed, N logit rows requested, V vocabulary.
"""

from __future__ import annotations

from typing import Self

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel


class CachedModel:
    """A model that remembers what it has been fed. `length` is the number of tokens in the cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.reset()

    def twin(self) -> Self:
        """Return the same model with another cache. Weights are shared."""
        return type(self)(self.model)

    def reset(self) -> None:
        """Forget everything."""
        # Without the model's configuration: with it, layers with a sliding window would keep too little for a rewind.
        self.cache = DynamicCache()
        self.length = 0

    def feed(self, tokens_BT: torch.Tensor, *, num_logits: int) -> torch.Tensor:
        """Append tokens and return the logits after the last `num_logits` of them, (N, V) in the model's dtype."""
        outputs = self.model(tokens_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=num_logits)
        self.length += tokens_BT.shape[1]
        return outputs.logits[0]

    def rewind(self, length: int) -> None:
        """Drop everything after the first `length` tokens. A view is taken; nothing is copied."""
        if length < self.length:
            self.cache.crop(length - self.length)  # a negative number: how many tokens to remove
            self.length = length


class CachedEncoderDecoder(CachedModel):
    """The same for an encoder-decoder model, whose encoder runs once per prompt. `length` counts the prompt.

    A rewind must leave the prompt. It crops the decoder's own keys and values: the encoder's do not depend on the output.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.start_BT = torch.tensor([[model.config.decoder_start_token_id]], device=model.device)

    def reset(self) -> None:
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.length = 0

    def feed(self, tokens_BT: torch.Tensor, *, num_logits: int) -> torch.Tensor:
        """Raises: ValueError: more than one row for the prompt, of which the decoder sees no token."""
        fed = tokens_BT
        if self.length == 0:
            if num_logits != 1:
                raise ValueError(f"expected num_logits = 1 for the prompt of an encoder, got {num_logits}")
            self.encoded = self.model.get_encoder()(tokens_BT)
            fed = self.start_BT
        outputs = self.model(encoder_outputs=self.encoded, decoder_input_ids=fed, past_key_values=self.cache, use_cache=True)
        self.length += tokens_BT.shape[1]
        return outputs.logits[0, -num_logits:]


def cached(model: PreTrainedModel) -> CachedModel:
    """Return the model with its cache. Raises: as `check_rewindable`."""
    check_rewindable(model)
    return CachedEncoderDecoder(model) if model.config.is_encoder_decoder else CachedModel(model)


def check_rewindable(model: PreTrainedModel) -> None:
    """Raises: ValueError: rejected tokens cannot be taken back, because the model's state is no cache of keys and values."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    others = sorted(layers - {"full_attention", "sliding_attention", "chunked_attention"})
    if model._is_stateful or others:
        kind = f"which has {', '.join(others)} layers" if others else "which is recurrent"
        raise ValueError(f"expected a model whose cache can be rewound, got {config.model_type}, {kind}")


def has_deeper_decoder(model: PreTrainedModel) -> bool:
    """Return whether the decoder has more layers than the encoder, as in some T5s."""
    config = model.config
    decoder_layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    return bool(config.is_encoder_decoder and decoder_layers > config.num_hidden_layers)


def cache_for_generate(model: PreTrainedModel) -> dict[str, EncoderDecoderCache]:
    """Return the cache to pass to transformers' `generate`, which would make it as deep as the encoder; {} if that is right."""
    # See docs/upstream/transformers-deeper-decoder.md.
    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())} if has_deeper_decoder(model) else {}
