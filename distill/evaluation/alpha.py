"""Acceptance without a decoder: one teacher-forced pass of the draft over text that the target sampled.

Suppose that the target sampled token x at T, where its probability is p(x) and the draft's is q(x). Given that a draft token
was tested there (rejection rule), x was the accepted draft token with probability

    P(accepted | x emitted) = q(x) min(1, p(x) / q(x)) / p(x) = min(1, q(x) / p(x)).

Propagated over the slots of the rounds (`bench.statistics.theory.propagate_slots`), this gives the decoder's alpha and block
efficiency for every k. What is counted in a slot is beta, which does not depend on the luck of x.
The plain mean of beta over the text weighs positions differently: it is `alpha_text`, never alpha.
At T = 0 both come from the argmax agreement on the target's greedy text.
Shape letters: N answer tokens, C of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.statistics.theory import SlotTotals, propagate_slots
from distill.text.batches import Batch, in_order
from distill.text.table import TextRow
from distill.training.losses import CHUNK_ROWS, blocks


@dataclass(frozen=True, slots=True)
class TextAcceptance:
    """Acceptance along one answer at one decode T."""

    overlap: tuple[float, ...]  # sum_v min(p_v, q_v) at each answer token: beta
    accepted: tuple[float, ...]  # min(1, q(x) / p(x)) of each answer token x; meaningful at the T of the text


def acceptance(
    draft: PreTrainedModel, rows: Sequence[TextRow], target_head_VD: Tensor, temperatures: Sequence[tuple[float, float]]
) -> tuple[tuple[TextAcceptance, ...], ...]:
    """Measure acceptance along each row, for each (decode T, draft T). The target does not run: its states are stored.

    Returns: one tuple per temperature, with one entry per row, in their order
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index].length)  # rows of similar length share a batch
    found: list[tuple[TextAcceptance, ...]] = []  # of each row in that order, one per temperature
    for batch in in_order([rows[index] for index in order], batch_tokens=4096):
        values = _batch_acceptance(draft, batch, target_head_VD, temperatures)
        for of_row in values.split(batch.answer_lengths, dim=2):
            found.append(tuple(TextAcceptance(*map(tuple, of_temperature)) for of_temperature in of_row.tolist()))
    by_row = [of_row for _, of_row in sorted(zip(order, found, strict=True))]
    return tuple(zip(*by_row, strict=True))


@torch.inference_mode()
def _batch_acceptance(
    draft: PreTrainedModel, batch: Batch, target_head_VD: Tensor, temperatures: Sequence[tuple[float, float]]
) -> Tensor:
    """Return overlap and accepted, (temperatures, 2, N)."""
    device, head_VD = draft.device, draft.get_output_embeddings().weight
    hidden_ND, target_hidden_ND = batch.hidden_ND(draft), batch.target_hidden_ND().to(device, target_head_VD.dtype)
    labels_N = batch.labels_N().to(device)
    found = torch.empty(len(temperatures), 2, len(labels_N))  # on the CPU: each block is copied there
    for start in range(0, len(labels_N), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        draft_logits_CV, target_logits_CV = hidden_ND[rows] @ head_VD.T, target_hidden_ND[rows] @ target_head_VD.T
        for block in blocks(len(draft_logits_CV), device.type):
            at = slice(start + block.start, start + block.stop)
            both, label_C1 = (target_logits_CV[block].float(), draft_logits_CV[block].float()), labels_N[at, None]
            for place, (decode_t, draft_t) in enumerate(temperatures):
                target_CV, draft_CV = probabilities(both[0], decode_t), probabilities(both[1], draft_t)
                ratio_C1 = draft_CV.gather(1, label_C1) / target_CV.gather(1, label_C1)
                # 0 / 0 where the token's probability rounds to 0 at this T: the text was sampled at another one.
                found[place, 1, at] = ratio_C1.nan_to_num_(0.0).clamp_(max=1).squeeze(1)
                found[place, 0, at] = torch.minimum(target_CV, draft_CV, out=target_CV).sum(-1)
    return found


def probabilities(logits_CV: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / T), (C, V) float32. T = 0 gives one-hot on the argmax."""
    if temperature == 0:
        return torch.zeros_like(logits_CV).scatter_(1, logits_CV.argmax(-1, keepdim=True), 1.0)
    return (logits_CV - logits_CV.amax(-1, keepdim=True)).div_(temperature).softmax(-1)


def alpha_text(texts: Sequence[TextAcceptance]) -> float:
    """Return the mean acceptance probability over all answer tokens."""
    return sum(sum(text.overlap) for text in texts) / sum(len(text.overlap) for text in texts)


def slot_totals(texts: Sequence[TextAcceptance], num_draft_tokens: int) -> SlotTotals:
    """Return the decoder's expected counts over these answers. Prefill gives the first token of each, outside all rounds."""
    of_texts = (propagate_slots(text.accepted[1:], num_draft_tokens, text.overlap[1:]) for text in texts)
    return sum(of_texts, start=SlotTotals(tested=0.0, accepted=0.0, emitted=0, rounds=0.0))
