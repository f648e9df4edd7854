"""Rows of text as padded batches: rows of similar length together, padding behind the text, where no token can see it.

Shape letters: B rows, T tokens of the longest, A answer tokens of the longest, N answer tokens of the whole batch (row after
row), D hidden size.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from distill.text.generation import behind_encoder, padded
from distill.text.table import TextRow

WINDOW_BATCHES = 32  # batches whose rows are sorted by length together: little padding, and still mixed


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows, ready for a teacher-forced pass."""

    rows: tuple[TextRow, ...]

    def token_ids_BT(self) -> Tensor:
        # The last token of a text predicts nothing.
        texts = [torch.cat((row.prompt, row.answer[:-1])) for row in self.rows]
        return pad_sequence(texts, batch_first=True)

    def labels_N(self) -> Tensor:
        return torch.cat([row.answer for row in self.rows])

    def target_hidden_ND(self) -> Tensor:
        """The target's hidden states as they came with the text, on CPU."""
        return torch.cat([row.hidden_AD() for row in self.rows])

    @property
    def answer_lengths(self) -> list[int]:
        return [len(row.answer) for row in self.rows]

    @property
    def num_tokens(self) -> int:
        """Answer tokens."""
        return sum(self.answer_lengths)

    def hidden_ND(self, model: PreTrainedModel) -> Tensor:
        """Final hidden states of `model` from which each answer token would be predicted, as its head takes them."""
        return self._behind_encoder(model) if model.config.is_encoder_decoder else self._behind_prompts(model)

    def _behind_encoder(self, model: PreTrainedModel) -> Tensor:
        prompts_BT, mask_BT = padded([row.prompt for row in self.rows], model.device)
        start_1 = torch.tensor([model.config.decoder_start_token_id])
        decoded_BA, answered_BA = padded([torch.cat((start_1, row.answer[:-1])) for row in self.rows], model.device)
        return behind_encoder(model, prompts_BT, mask_BT, decoded_BA)[answered_BA.bool()]

    def _behind_prompts(self, model: PreTrainedModel) -> Tensor:
        token_ids_BT = self.token_ids_BT().to(model.device)
        hidden_BTD = model.base_model(token_ids_BT, use_cache=False).last_hidden_state
        places = torch.cat(
            [
                torch.arange(len(row.answer)) + index * token_ids_BT.shape[1] + len(row.prompt) - 1
                for index, row in enumerate(self.rows)
            ]
        )
        return hidden_BTD.flatten(0, 1)[places.to(model.device)]


def in_order(rows: Iterable[TextRow], *, batch_tokens: int) -> list[Batch]:
    """Batches of at most `batch_tokens` places, padding included (one row at least), in the order of the rows."""
    batches: list[Batch] = []
    taken: list[TextRow] = []
    longest = 0
    for row in rows:
        longest = max(longest, row.length)
        if taken and longest * (len(taken) + 1) > batch_tokens:
            batches.append(Batch(tuple(taken)))
            taken, longest = [], row.length
        taken.append(row)
    return [*batches, Batch(tuple(taken))] if taken else batches


def shuffled(rows: Sequence[TextRow], *, batch_tokens: int, seed: int) -> list[Batch]:
    """All rows once, in batches of similar length and random order; the seed decides everything."""
    rng = random.Random(seed)
    mixed = rng.sample(list(rows), len(rows))
    mean_length = sum(row.length for row in mixed) / len(mixed)
    window = max(1, round(WINDOW_BATCHES * batch_tokens / mean_length))
    batches: list[Batch] = []
    for start in range(0, len(mixed), window):
        batches += in_order(
            sorted(mixed[start : start + window], key=lambda row: row.length), batch_tokens=batch_tokens
        )
    return rng.sample(batches, len(batches))
