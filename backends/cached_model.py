"""One causal language model and its key-value cache: feed tokens, read logits, rewind exactly.

Shape letters: B batch (always 1), T tokens fed, N logit rows asked for, V vocabulary.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedModel


class CachedModel:
    """A model that remembers what it has been fed. `length` is the number of tokens in the cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.cache = DynamicCache(config=self.model.config)
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
