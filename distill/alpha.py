"""Acceptance without a decoder: one teacher-forced pass of the draft over text that the target sampled.

On a text drawn from the target at T, token x was an accepted draft token with probability min(1, q(x) / p(x)) wherever a
draft token was tested (rejection rule). Propagated over the slots of the rounds this gives the decoder's alpha and block
efficiency for every k. The plain mean over the text weighs positions differently: it is `alpha_text`, never alpha.
At T = 0 both are the argmax agreement on the target's greedy text.
Shape letters: N answer tokens, C of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.theory import SlotTotals, propagate_slots
from distill.batches import Batch, in_order
from distill.losses import CHUNK_ROWS
from distill.text import Row

BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class TextAcceptance:
    """Acceptance along one text at one decode T."""

    overlap: tuple[float, ...]  # sum_v min(p_v, q_v) at each answer token: beta
    accepted: tuple[float, ...]  # min(1, q(x) / p(x)) of each answer token x; meaningful at the T of the text


def acceptance(
    draft: PreTrainedModel,
    rows: Sequence[Row],
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
    hidden_ND, target_hidden_ND = batch.hidden_ND(draft), batch.target_hidden_ND().to(device)
    labels_N, head_VD = batch.labels_N().to(device), draft.get_output_embeddings().weight
    found = torch.empty(len(temperatures), 2, len(labels_N))
    for start in range(0, len(labels_N), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        draft_logits_CV = (hidden_ND[rows] @ head_VD.T).float()
        target_logits_CV = (target_hidden_ND[rows] @ target_head_VD.T).float()
        for place, (decode_t, draft_t) in enumerate(temperatures):
            target_CV, draft_CV = probabilities(target_logits_CV, decode_t), probabilities(draft_logits_CV, draft_t)
            label_C1 = labels_N[rows, None]
            ratio_C1 = draft_CV.gather(1, label_C1) / target_CV.gather(1, label_C1)
            # 0 / 0: the token is off the target's support, which rounding does to a text of another T
            found[place, 1, rows] = ratio_C1.nan_to_num_(0.0).clamp_(max=1).squeeze(1)
            found[place, 0, rows] = torch.minimum(target_CV, draft_CV, out=target_CV).sum(-1)
    return found


def probabilities(logits_CV: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T), (C, V) float32; T = 0 is one-hot on the argmax."""
    if temperature == 0:
        return torch.zeros_like(logits_CV).scatter_(1, logits_CV.argmax(-1, keepdim=True), 1.0)
    return ((logits_CV - logits_CV.amax(-1, keepdim=True)) / temperature).softmax(-1)


def alpha_text(texts: Sequence[TextAcceptance]) -> float:
    """Mean acceptance probability over all answer tokens."""
    return sum(sum(text.overlap) for text in texts) / sum(len(text.overlap) for text in texts)


def slot_totals(texts: Sequence[TextAcceptance], num_draft_tokens: int) -> SlotTotals:
    """The decoder's expected counts over these texts. The first token of each comes from prefill, in no round."""
    return reduce(
        add, (propagate_slots(text.accepted[1:], num_draft_tokens) for text in texts if len(text.accepted) > 1)
    )
