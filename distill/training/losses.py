"""The losses of distillation: how far the draft's next-token distribution is from the target's, and the gradient of that.

p and q are softmax(logits / T) of target and draft. A loss is its textbook definition times T: then its gradient at the
draft's logits does not grow like 1/T as T falls. At T = 0 every loss is the cross-entropy on the target's argmax, with the
draft's softmax at temperature 1.

A function of `LOSSES` takes log p and log q, which it may overwrite. It returns the definition without the factor T, one value
per row. It writes T times its gradient at the draft's logits to `slope_CV`: there the factor T and the 1/T of the softmax
cancel, so the formulas below contain neither.

`head_loss` applies a loss to the product with an output head. It computes the gradient itself, one chunk of rows at a time, so
that logits of all rows never exist together. Within a chunk, one block of rows at a time is in float32.
Shape letters: N rows, C rows of a chunk or a block, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.training.vocabulary import VocabularyPart

CHUNK_ROWS = 128  # fewer rows make the products with the head slower, more rows need more memory

# On a CPU, a block of few rows stays in the cache and its memory in the heap. Float32 copies of whole chunks would go back to
# the system each time, and return page by page, which costs more than the arithmetic.
CPU_BLOCK_ROWS = 8
LOWEST_TEMPERATURE = 1e-3  # at lower ones (above 0) float32 has no digits left for the draft's small probabilities

# Takes which rows, and their draft logits in the type of the head. Returns loss_C; the gradient replaces the logits.
ChunkLoss = Callable[[slice, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name, as a recipe holds it."""

    name: str = "forward_kl"  # a key of LOSSES
    temperature: float = 1.0  # KD loss T
    beta: float = 0.5  # js: weight of the target in the mixture
    decay: float = 3.0  # lk: how fast the KL part fades as acceptance grows

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ValueError(f"expected a loss of {', '.join(LOSSES)}, got {self.name!r}")
        if not (self.temperature == 0 or LOWEST_TEMPERATURE <= self.temperature < math.inf):
            raise ValueError(f"expected a loss temperature of 0 or at least {LOWEST_TEMPERATURE}, got {self.temperature}")
        if not 0 < self.beta < 1:
            raise ValueError(f"expected beta between 0 and 1, got {self.beta}")
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"expected decay >= 0, got {self.decay}")

    def on_logits(self, target_logits_CV: Tensor, draft_logits_CV: Tensor, log_weight_V: Tensor | None = None) -> Tensor:
        """Return the loss of each row, (C,); the gradient replaces `draft_logits_CV`. Both inputs are float32 and overwritten.

        Args:    log_weight_V: log of how many tokens each token represents; None: itself only
        """
        if self.temperature == 0:
            return cross_entropy(target_logits_CV.argmax(-1), draft_logits_CV)
        if log_weight_V is not None:
            # exp((logit + T log w) / T) = w exp(logit / T): the token counts w times in every sum.
            target_logits_CV.add_(log_weight_V, alpha=self.temperature)
            draft_logits_CV.add_(log_weight_V, alpha=self.temperature)
        log_target_CV = _log_softmax(target_logits_CV, self.temperature)
        log_draft_CV = _log_softmax(draft_logits_CV, self.temperature)
        slope_CV = draft_logits_CV  # its content is no longer needed
        return LOSSES[self.name](self, log_target_CV, log_draft_CV, slope_CV).mul_(self.temperature)


def cross_entropy(label_C: Tensor, draft_logits_CV: Tensor) -> Tensor:
    """Return -log q(label), with q at temperature 1. The gradient, q - one_hot(label), replaces the logits."""
    log_draft_CV = torch.log_softmax(draft_logits_CV, -1)
    loss_C = -log_draft_CV.gather(1, label_C[:, None]).squeeze(1)
    torch.exp(log_draft_CV, out=draft_logits_CV)
    draft_logits_CV[torch.arange(len(label_C), device=label_C.device), label_C] -= 1
    return loss_C


def forward_kl(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """Return KL(p || q) = sum_v p_v (log p_v - log q_v). Gradient: q - p.

    Source:  Hinton et al. 2015, arXiv 1503.02531; for speculative decoding Zhou et al. 2024 (DistillSpec), arXiv 2310.08461
    """
    torch.exp(log_draft_CV, out=slope_CV)
    log_ratio_CV = torch.sub(log_target_CV, log_draft_CV, out=log_draft_CV)
    target_CV = log_target_CV.exp_()
    slope_CV.sub_(target_CV)
    return torch.linalg.vecdot(target_CV, log_ratio_CV)


def reverse_kl(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """Return KL(q || p) = sum_v q_v (log q_v - log p_v). Gradient: q (log q - log p - KL).

    Source:  Gu et al. 2024 (MiniLLM), arXiv 2306.08543
    """
    log_ratio_CV = torch.sub(log_draft_CV, log_target_CV, out=log_target_CV)
    return _through_softmax(log_draft_CV.exp_(), log_ratio_CV, slope_CV)


def jensen_shannon(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """Return b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q.

    Gradient: q (g - sum_v q_v g_v), g = (1 - b) log(q / m).
    Source:  Agarwal et al. 2024 (GKD), arXiv 2306.13649, equation 1
    """
    target_CV, draft_CV = log_target_CV.exp(), log_draft_CV.exp()
    mixture_CV = torch.lerp(draft_CV, target_CV, loss.beta, out=slope_CV)
    # Where p and q both vanish in float32, so do their terms in the sums, whatever finite number replaces log m.
    log_mixture_CV = mixture_CV.clamp_(min=torch.finfo(torch.float32).tiny).log_()
    target_part_C = torch.linalg.vecdot(target_CV, log_target_CV.sub_(log_mixture_CV))
    log_ratio_CV = log_draft_CV.sub_(log_mixture_CV).mul_(1 - loss.beta)
    return target_part_C.mul_(loss.beta) + _through_softmax(draft_CV, log_ratio_CV, slope_CV)


def total_variation(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """Return 1 - alpha, alpha = sum_v min(p_v, q_v).

    Gradient: q (g - sum_v q_v g_v), g = -1 where q < p, else 0.
    Source:  Zhou et al. 2024 (DistillSpec), arXiv 2310.08461
    """
    return 1 - _alpha(log_target_CV, log_draft_CV, slope_CV)


def _alpha(log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """Return alpha, and write the gradient of 1 - alpha."""
    target_CV, draft_CV = log_target_CV.exp_(), log_draft_CV.exp_()
    falls_short_CV = draft_CV < target_CV
    torch.minimum(target_CV, draft_CV, out=target_CV)
    alpha_C = target_CV.sum(-1)
    _through_softmax(draft_CV, falls_short_CV.float().neg_(), slope_CV)
    return alpha_C


def lk(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """Return w KL(p || q) + (1 - w) (1 - alpha), w = exp(-decay alpha) of the same row, a constant in the gradient.

    While hardly anything is accepted, total variation has almost no gradient and KL leads. Later acceptance itself does.

    Source:  Samarin et al. 2026 (LK losses), arXiv 2602.23881
    """
    variation_slope_CV = torch.empty_like(slope_CV)
    distance_C = total_variation(loss, log_target_CV.clone(), log_draft_CV.clone(), variation_slope_CV)
    divergence_C = forward_kl(loss, log_target_CV, log_draft_CV, slope_CV)
    weight_C = torch.exp(-loss.decay * (1 - distance_C))
    slope_CV.mul_(weight_C[:, None]).addcmul_(variation_slope_CV, (1 - weight_C)[:, None])
    return torch.lerp(distance_C, divergence_C, weight_C)


def log_acceptance(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """Return -log alpha, alpha = sum_v min(p_v, q_v). Its gradient is that of total variation divided by alpha.

    So a row of low acceptance, on which total variation has almost no gradient, counts as much as others.

    Source:  Samarin et al. 2026 (LK losses), arXiv 2602.23881
    """
    alpha_C = _alpha(log_target_CV, log_draft_CV, slope_CV).clamp_(min=torch.finfo(torch.float32).tiny)
    slope_CV.div_(alpha_C[:, None])
    return -alpha_C.log()


LOSSES = {
    **{"forward_kl": forward_kl, "reverse_kl": reverse_kl, "js": jensen_shannon},
    **{"tv": total_variation, "lk": lk, "log_alpha": log_acceptance},
}


def _log_softmax(logits_CV: Tensor, temperature: float) -> Tensor:
    if temperature == 1:
        return torch.log_softmax(logits_CV, -1)
    # Subtract the maximum before the division by a small T: otherwise the rest loses its digits to the maximum.
    return torch.log_softmax(logits_CV.sub_(logits_CV.amax(-1, keepdim=True)).div_(temperature), -1)


def _through_softmax(draft_CV: Tensor, slope_of_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """Apply the chain rule from q to its logits: write q (g - sum_v q_v g_v), return sum_v q_v g_v."""
    mean_C = torch.linalg.vecdot(draft_CV, slope_of_draft_CV)
    torch.sub(slope_of_draft_CV, mean_C[:, None], out=slope_CV).mul_(draft_CV)
    return mean_C


def soft_labels(loss: Loss, target_hidden_ND: Tensor, head_VD: Tensor, part: VocabularyPart | None = None) -> ChunkLoss:
    """Return the loss against the target's distribution, computed from its final hidden states and its head.

    Args:    part: the only tokens whose logits are computed; None: all
    """
    weight_V = None
    if part is not None:
        head_VD, weight_V = head_VD[part.token_ids_M], part.log_weight_M.to(head_VD.device)

    def on_chunk(rows: slice, draft_logits_CV: Tensor) -> Tensor:
        logits_CV = target_hidden_ND[rows] @ head_VD.T
        return _in_blocks(draft_logits_CV, lambda block, draft: loss.on_logits(logits_CV[block].float(), draft, weight_V))

    return on_chunk


def hard_labels(label_N: Tensor, part: VocabularyPart | None = None) -> ChunkLoss:
    """Return the loss against the text's own tokens.

    Args:    part: the only tokens whose logits are computed, all labels among them; None: all
    """
    place_N = label_N if part is None else torch.searchsorted(part.token_ids_M, label_N)

    def on_chunk(rows: slice, draft_logits_CV: Tensor) -> Tensor:
        place_C = place_N[rows].to(draft_logits_CV.device)
        if part is None:
            return _in_blocks(draft_logits_CV, lambda block, draft: cross_entropy(place_C[block], draft))
        weight_V = part.log_weight_M.to(draft_logits_CV.device)
        return _in_blocks(draft_logits_CV, lambda block, draft: cross_entropy(place_C[block], draft.add_(weight_V)))

    return on_chunk


def _in_blocks(draft_logits_CV: Tensor, on_block: ChunkLoss) -> Tensor:
    """Return the loss of each row of a chunk, from blocks in float32; the gradient replaces the logits."""
    losses = []
    for block in blocks(len(draft_logits_CV), draft_logits_CV.device.type):
        logits_CV = draft_logits_CV[block].float()
        losses.append(on_block(block, logits_CV))
        draft_logits_CV[block] = logits_CV
    return torch.cat(losses)


def blocks(num_rows: int, device_type: str) -> Iterator[slice]:
    """Return the blocks of a chunk, whose rows may be in float32 at once. The last one may end after the chunk."""
    block_rows = CPU_BLOCK_ROWS if device_type == "cpu" else CHUNK_ROWS
    return (slice(start, start + block_rows) for start in range(0, num_rows, block_rows))


def head_loss(hidden_ND: Tensor, head_VD: Tensor, on_chunk: ChunkLoss) -> Tensor:
    """Return the loss of hidden_ND @ head_VD.T summed over rows, differentiable in both. Products are in the head's type."""
    return _HeadLoss.apply(hidden_ND, head_VD, on_chunk)


class _HeadLoss(torch.autograd.Function):
    """Computes the gradient in the forward pass, while the logits of a chunk exist; `backward` only scales it."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, on_chunk: ChunkLoss) -> Tensor:
        total = torch.zeros((), device=hidden_ND.device)
        slope_ND = torch.empty_like(hidden_ND)
        head_slope_VD = torch.zeros_like(head_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden_ND), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            hidden_CD = hidden_ND[rows].to(head_VD.dtype)
            slope_CV = hidden_CD @ head_VD.T  # the logits; on_chunk replaces them by the gradient
            total += on_chunk(rows, slope_CV).sum()
            slope_ND[rows] = slope_CV @ head_VD
            if head_slope_VD is not None:
                head_slope_VD += slope_CV.T @ hidden_CD
        ctx.save_for_backward(slope_ND, head_slope_VD)
        ctx.head_dtype = head_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None, None]:
        slope_ND, head_slope_VD = ctx.saved_tensors
        head_slope = None if head_slope_VD is None else (upstream * head_slope_VD).to(ctx.head_dtype)
        return upstream.to(slope_ND.dtype) * slope_ND, head_slope, None
