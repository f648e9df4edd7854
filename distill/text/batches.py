"""Rows of stored text as padded batches. Rows of similar length share a batch.

Padding follows the text. A causal model cannot attend to later tokens, so no mask is needed.
Shape letters: B rows, T tokens of the longest row, A tokens of the longest answer, N answer tokens of all rows one after the
other, D hidden size.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from distill.text.generation import decoder_hidden, padded
from distill.text.sampler import Answer, Request
from distill.text.table import HIDDEN, TextRow, TextTable, write_hidden
from distill.text.workers import ALONE, Workers

WINDOW_BATCHES = 32  # rows of so many batches are sorted by length together: little padding, and still mixed


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows, ready for a teacher-forced pass."""

    rows: tuple[TextRow, ...]

    def token_ids_BT(self) -> Tensor:
        """Return prompts and answers without the last token of each answer, which predicts nothing."""
        return pad_sequence([torch.cat((row.prompt, row.answer[:-1])) for row in self.rows], batch_first=True)

    def labels_N(self) -> Tensor:
        """Return the answer tokens."""
        return torch.cat([row.answer for row in self.rows])

    def target_hidden_ND(self) -> Tensor:
        """Return the target's stored hidden states, on the CPU."""
        return torch.cat([row.hidden_AD() for row in self.rows])

    @property
    def answer_lengths(self) -> list[int]:
        return [len(row.answer) for row in self.rows]

    @property
    def num_tokens(self) -> int:
        return sum(self.answer_lengths)

    def hidden_ND(self, model: PreTrainedModel) -> Tensor:
        """Return the hidden states of `model` that its head multiplies to predict each answer token."""
        if model.config.is_encoder_decoder:
            prompts_BT, mask_BT = padded([row.prompt for row in self.rows], model.device)
            start_1 = torch.tensor([model.config.decoder_start_token_id])
            decoded_BA, answered_BA = padded([torch.cat((start_1, row.answer[:-1])) for row in self.rows], model.device)
            encoded_BTD = model.get_encoder()(prompts_BT, attention_mask=mask_BT).last_hidden_state
            return decoder_hidden(model, encoded_BTD, mask_BT, decoded_BA)[answered_BA.bool()]
        token_ids_BT = self.token_ids_BT().to(model.device)
        hidden_BTD = model.base_model(token_ids_BT, use_cache=False).last_hidden_state
        # Answer token i of row b is predicted at column len(prompt) - 1 + i: one before its own place.
        firsts = (index * token_ids_BT.shape[1] + len(row.prompt) - 1 for index, row in enumerate(self.rows))
        places = [torch.arange(first, first + length) for first, length in zip(firsts, self.answer_lengths, strict=True)]
        return hidden_BTD.flatten(0, 1)[torch.cat(places).to(model.device)]


def in_order(rows: Iterable[TextRow], *, batch_tokens: int) -> list[Batch]:
    """Return batches of at most `batch_tokens` places, padding included, in the order of the rows.

    A row that is longer than that is a batch by itself.
    """
    taken: list[list[TextRow]] = []
    longest = 0  # of the last batch
    for row in rows:
        longest = max(longest, row.length)
        if taken and longest * (len(taken[-1]) + 1) <= batch_tokens:
            taken[-1].append(row)
        else:
            taken.append([row])
            longest = row.length
    return [Batch(tuple(batch)) for batch in taken]


def shuffled(rows: Sequence[TextRow], *, batch_tokens: int, seed: int) -> list[Batch]:
    """Return all rows once, in batches of similar length and random order, which depends only on the seed."""
    rng = random.Random(seed)
    mixed = rng.sample(list(rows), len(rows))
    mean_length = sum(row.length for row in mixed) / len(mixed)
    window = max(1, round(WINDOW_BATCHES * batch_tokens / mean_length))
    batches: list[Batch] = []
    for start in range(0, len(mixed), window):
        by_length = sorted(mixed[start : start + window], key=lambda row: row.length)
        batches += in_order(by_length, batch_tokens=batch_tokens)
    return rng.sample(batches, len(batches))


@torch.inference_mode()
def with_target_states(target: PreTrainedModel, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Answer]:
    """Return answers that another model wrote, with the hidden states of the target at their tokens."""
    texts = zip(requests, answers, strict=True)
    rows = [TextRow(None, 0, torch.tensor(asked.prompt_ids), given.token_ids_A, asked.temperature) for asked, given in texts]
    parts = [batch.hidden_ND(target) for batch in in_order(rows, batch_tokens=8192)]
    hidden = torch.cat(parts).cpu().split([len(row.answer) for row in rows])
    return [Answer(row.answer, of_row) for row, of_row in zip(rows, hidden, strict=True)]


@torch.inference_mode()
def fill_in(table: TextTable, target: PreTrainedModel, *, workers: Workers = ALONE) -> None:
    """Compute and store the hidden states of every shard that has none: text that an engine sampled comes without them."""
    for shard in table.shards[workers.index :: workers.count]:  # the share of this process
        if not (table.folder / HIDDEN.format(shard.index)).is_file():
            parts = [batch.hidden_ND(target) for batch in in_order(shard.rows, batch_tokens=8192)]
            write_hidden(table.folder, shard.index, torch.cat(parts).cpu())
    workers.wait()
