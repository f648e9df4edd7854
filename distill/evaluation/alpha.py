"""Acceptance without a decoder: one teacher-forced pass of the draft over text that the target sampled.

On a text drawn from the target at T, token x was an accepted draft token with probability min(1, q(x) / p(x)) wherever a
draft token was tested (rejection rule). Propagated over the slots of the rounds this gives the decoder's alpha and block
efficiency for every k. The plain mean over the text weighs positions differently: it is `alpha_text`, never alpha.
At T = 0 both are the argmax agreement on the target's greedy text.
Shape letters: N answer tokens, C of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.statistics.theory import SlotTotals, propagate_slots
from distill.text.batches import Batch, in_order
from distill.text.table import TextRow
from distill.training.losses import CHUNK_ROWS, blocks

BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class TextAcceptance:
    """Acceptance along one text at one decode T."""

    overlap: tuple[float, ...]  # sum_v min(p_v, q_v) at each answer token: beta
    accepted: tuple[float, ...]  # min(1, q(x) / p(x)) of each answer token x; meaningful at the T of the text


def acceptance(
    draft: PreTrainedModel,
    rows: Sequence[TextRow],
    target_head_VD: Tensor,
    temperatures: Sequence[tuple[float, float]],
) -> tuple[tuple[TextAcceptance, ...], ...]:
    """Acceptance along each row, for each (decode T, draft T). The target is not run: rows bring its hidden states.

    Returns: one tuple a temperature, with one entry a row, in their order
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index].length)
    found: list[list[TextAcceptance | None]] = [[None] * len(rows) for _ in temperatures]
    done = 0
    for batch in in_order([rows[index] for index in order], batch_tokens=BATCH_TOKENS):
        for of_temperature, values in zip(
            found, _batch_acceptance(draft, batch, target_head_VD, temperatures), strict=True
        ):
            per_row = values.split(batch.answer_lengths, dim=1)
            for index, (overlap, accepted) in zip(order[done:], per_row, strict=False):
                of_temperature[index] = TextAcceptance(tuple(overlap.tolist()), tuple(accepted.tolist()))
        done += len(batch.rows)
    return tuple(tuple(texts) for texts in found)  # type: ignore[arg-type]


@torch.inference_mode()
def _batch_acceptance(
    draft: PreTrainedModel, batch: Batch, target_head_VD: Tensor, temperatures: Sequence[tuple[float, float]]
) -> Tensor:
    """(temperatures, 2, N): overlap and accepted."""
    device = draft.device
    hidden_ND, target_hidden_ND = batch.hidden_ND(draft), batch.target_hidden_ND().to(device, target_head_VD.dtype)
    labels_N, head_VD = batch.labels_N().to(device), draft.get_output_embeddings().weight
    found = torch.empty(len(temperatures), 2, len(labels_N))
    for start in range(0, len(labels_N), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        draft_logits_CV, target_logits_CV = hidden_ND[rows] @ head_VD.T, target_hidden_ND[rows] @ target_head_VD.T
        for block in blocks(len(draft_logits_CV), device.type):
            at = slice(start + block.start, start + block.stop)
            both = target_logits_CV[block].float(), draft_logits_CV[block].float()
            for place, (decode_t, draft_t) in enumerate(temperatures):
                target_CV, draft_CV = probabilities(both[0], decode_t), probabilities(both[1], draft_t)
                label_C1 = labels_N[at, None]
                ratio_C1 = draft_CV.gather(1, label_C1) / target_CV.gather(1, label_C1)
                # 0 / 0: the token is off the target's support, which rounding does to a text of another T
                found[place, 1, at] = ratio_C1.nan_to_num_(0.0).clamp_(max=1).squeeze(1)
                found[place, 0, at] = torch.minimum(target_CV, draft_CV, out=target_CV).sum(-1)
    return found


def probabilities(logits_CV: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T), (C, V) float32; T = 0 is one-hot on the argmax."""
    if temperature == 0:
        return torch.zeros_like(logits_CV).scatter_(1, logits_CV.argmax(-1, keepdim=True), 1.0)
    return (logits_CV - logits_CV.amax(-1, keepdim=True)).div_(temperature).softmax(-1)


def alpha_text(texts: Sequence[TextAcceptance]) -> float:
    """Mean acceptance probability over all answer tokens."""
    return sum(sum(text.overlap) for text in texts) / sum(len(text.overlap) for text in texts)


def slot_totals(texts: Sequence[TextAcceptance], num_draft_tokens: int) -> SlotTotals:
    """The decoder's expected counts over these texts. The first token of each comes from prefill, in no round."""
    of_texts = (propagate_slots(text.accepted[1:], num_draft_tokens) for text in texts)
    return reduce(add, of_texts, SlotTotals(tested=0.0, accepted=0.0, emitted=0, rounds=0.0))


@dataclass(frozen=True, slots=True)
class Split:
    """How alpha_text gets from one decode T to another: the same contexts at another T, then the contexts of that T."""

    frozen: float  # alpha_text at the one T
    rescaled: float  # at the other T, along the text of the one
    shifted: float  # alpha_text at the other T

    @property
    def rescaling(self) -> float:
        """What the softmax alone does."""
        return self.rescaled - self.frozen

    @property
    def context_shift(self) -> float:
        """What other contexts do."""
        return self.shifted - self.rescaled


def split(
    draft: PreTrainedModel, rows_at: Mapping[float, Sequence[TextRow]], target_head_VD: Tensor, *, frozen_at: float
) -> dict[float, Split]:
    """The way from `frozen_at` to each decode T. It is one of alpha_text: slots of rounds have no frozen contexts.

    Args:    rows_at: text that the target sampled at each T; draft T = decode T
    """
    on_frozen = acceptance(draft, rows_at[frozen_at], target_head_VD, [(at, at) for at in rows_at])
    rescaled = {at: alpha_text(texts) for at, texts in zip(rows_at, on_frozen, strict=True)}
    found: dict[float, Split] = {}
    for at, rows in rows_at.items():
        (along,) = acceptance(draft, rows, target_head_VD, [(at, at)])
        found[at] = Split(rescaled[frozen_at], rescaled[at], alpha_text(along))
    return found
