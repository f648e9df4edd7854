"""A model that computes the logits after each context once, for tests that decode thousands of short texts."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


class LogitsByContext:
    """Takes the place of a model with a cache in the reference decoder: a small vocabulary has few contexts of a few tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.rows: dict[tuple[int, ...], torch.Tensor] = {}
        self.tokens: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return len(self.tokens)

    def reset(self) -> None:
        self.tokens = ()

    def rewind(self, length: int) -> None:
        self.tokens = self.tokens[:length]

    def feed(self, tokens_BT: torch.Tensor, *, num_logits: int) -> torch.Tensor:
        self.tokens += tuple(tokens_BT[0].tolist())
        ends = range(self.length - num_logits + 1, self.length + 1)
        return torch.cat([self._row(self.tokens[:end]) for end in ends])

    def _row(self, context: tuple[int, ...]) -> torch.Tensor:
        if context not in self.rows:
            self.rows[context] = self.model(torch.tensor([context]), use_cache=False).logits[0, -1:]
        return self.rows[context]
