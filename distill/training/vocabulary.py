"""A part of the output head for each batch: the tokens that always matter, and a weighted sample of the others.

With a vocabulary of 49,152 and 4 layers, most of a training step is products with the head and sums over the vocabulary. A few
thousand tokens hold nearly all probability. The others still have to be pushed down, otherwise their probability grows
unnoticed. So each batch draws m of its n other tokens, and each drawn one has the importance weight n / m in every softmax and
sum: n / m times a sum over the drawn tokens estimates the sum over all others. Example: n = 48,000, m = 1,000: weight 48.
Shape letters: M tokens in the part, N answer tokens, V vocabulary.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.text.table import TextRow

SAMPLED_SHARE = 0.25  # of the tokens of a part; the others are the frequent ones


@dataclass(frozen=True, slots=True)
class VocabularyPart:
    """Some tokens of the vocabulary, in ascending order, and how many tokens each represents."""

    token_ids_M: Tensor
    log_weight_M: Tensor  # 0 for the frequent tokens and the labels, log(n / m) for drawn ones; float32


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Draws parts. Each holds the frequent tokens, all tokens of the batch, and a sample of the others."""

    frequent: Tensor  # (V,) bool
    num_sampled: int

    def part(self, labels_N: Tensor) -> VocabularyPart:
        """Return the part for a batch. Its answer tokens are the seed, so that a resumed run draws the same."""
        kept_V = self.frequent.clone()
        kept_V[labels_N] = True
        others = (~kept_V).nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(zlib.crc32(labels_N.numpy().tobytes()))
        drawn = others[torch.randperm(len(others), generator=generator)[: self.num_sampled]]
        weight_V = torch.zeros(len(kept_V))
        if len(drawn):
            weight_V[drawn] = math.log(len(others) / len(drawn))
        kept_V[drawn] = True
        token_ids_M = kept_V.nonzero().squeeze(1)
        return VocabularyPart(token_ids_M, weight_V[token_ids_M])


def vocabulary_of(rows: Sequence[TextRow], vocabulary_size: int, num_tokens: int) -> Vocabulary:
    """Return parts of about `num_tokens` tokens: those most frequent in the answers of `rows`, and a sample.

    Raises:  ValueError: fewer than 4 tokens, or more than the vocabulary has
    """
    check_size(num_tokens, vocabulary_size)
    counts_V = torch.bincount(torch.cat([row.answer for row in rows]), minlength=vocabulary_size)
    num_sampled = round(SAMPLED_SHARE * num_tokens)
    frequent = torch.zeros(vocabulary_size, dtype=torch.bool)
    frequent[counts_V.argsort(descending=True, stable=True)[: num_tokens - num_sampled]] = True
    return Vocabulary(frequent, num_sampled)


def check_size(num_tokens: int, vocabulary_size: int) -> None:
    """Raise ValueError if a part cannot have so many tokens."""
    if not 4 <= num_tokens <= vocabulary_size:
        raise ValueError(f"expected a vocabulary of 4 to {vocabulary_size} tokens, got {num_tokens}")
