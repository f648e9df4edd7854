"""What a draft is trained to lower: how far its next-token distribution is from the target's, and the slope of that.

p and q are softmax(logits / T) of target and draft. A loss is its textbook definition times T, because then its slope at the
logits does not grow like 1/T as T falls. T = 0 is cross-entropy on the target's argmax with the draft's softmax at 1, whatever
the loss. A function of `LOSSES` takes log p and log q, which it may write over, returns the definition without the factor, a
value a row, and writes T times its gradient at the draft's logits to `slope_CV`: the two factors cancel there.

`head_loss` applies one behind an output head with the slope taken by hand: a chunk of rows at a time goes through the head, and
a block of these at a time is in float32. Shape letters: N rows, C rows of a chunk or a block, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

CHUNK_ROWS = 128  # fewer make the products with the head slower, more need memory

# On a CPU: a block stays in the cache and its memory in the heap. Whole chunks in float32 go back to the system every time, and
# come again page by page, which costs more than the arithmetic on them.
CPU_BLOCK_ROWS = 8
LOWEST_TEMPERATURE = 1e-3  # below it, and above 0, float32 has no digits left for the draft's small probabilities

# Which rows, and their draft logits in the type of the head -> loss_C; the gradient takes the place of the logits
ChunkLoss = Callable[[slice, Tensor], Tensor]


class DivergenceLoss(Protocol):
    def __call__(self, loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name, as it stands in a recipe."""

    name: str = "forward_kl"  # a key of LOSSES
    temperature: float = 1.0  # KD loss T
    beta: float = 0.5  # js: weight of the target in the mixture
    decay: float = 3.0  # lk: how fast the KL part fades as acceptance grows

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ValueError(f"expected a loss of {', '.join(LOSSES)}, got {self.name!r}")
        if not (self.temperature == 0 or LOWEST_TEMPERATURE <= self.temperature < float("inf")):
            raise ValueError(
                f"expected a loss temperature of 0 or at least {LOWEST_TEMPERATURE}, got {self.temperature}"
            )
        if not 0 < self.beta < 1:
            raise ValueError(f"expected beta between 0 and 1, got {self.beta}")
        if not 0 <= self.decay < float("inf"):
            raise ValueError(f"expected decay >= 0, got {self.decay}")

    def on_logits(
        self, target_logits_CV: Tensor, draft_logits_CV: Tensor, log_weight_V: Tensor | None = None
    ) -> Tensor:
        """Loss of each row, (C,); the gradient takes the place of `draft_logits_CV`. Both float32 and written over.

        Args:    log_weight_V: log of how many tokens each stands for; none: each for itself
        """
        if self.temperature == 0:
            return cross_entropy(target_logits_CV.argmax(-1), draft_logits_CV)
        if log_weight_V is not None:
            target_logits_CV.add_(log_weight_V, alpha=self.temperature)
            draft_logits_CV.add_(log_weight_V, alpha=self.temperature)
        log_target_CV = _log_softmax(target_logits_CV, self.temperature)
        log_draft_CV = _log_softmax(draft_logits_CV, self.temperature)
        slope_CV = draft_logits_CV  # its content is no longer needed
        return LOSSES[self.name](self, log_target_CV, log_draft_CV, slope_CV).mul_(self.temperature)


def cross_entropy(label_C: Tensor, draft_logits_CV: Tensor) -> Tensor:
    """Hard labels: -log q(label), q at temperature 1. Gradient, in place of the logits: q - one_hot(label)."""
    log_draft_CV = torch.log_softmax(draft_logits_CV, -1)
    loss_C = -log_draft_CV.gather(1, label_C[:, None]).squeeze(1)
    torch.exp(log_draft_CV, out=draft_logits_CV)
    draft_logits_CV[torch.arange(len(label_C), device=label_C.device), label_C] -= 1
    return loss_C


def forward_kl(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v). Gradient: q - p."""
    torch.exp(log_draft_CV, out=slope_CV)
    log_ratio_CV = torch.sub(log_target_CV, log_draft_CV, out=log_draft_CV)
    target_CV = log_target_CV.exp_()
    slope_CV.sub_(target_CV)
    return torch.linalg.vecdot(target_CV, log_ratio_CV)


def reverse_kl(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """KL(q || p) = sum_v q_v (log q_v - log p_v). Gradient: q (log q - log p - KL)."""
    log_ratio_CV = torch.sub(log_draft_CV, log_target_CV, out=log_target_CV)
    return _through_softmax(log_draft_CV.exp_(), log_ratio_CV, slope_CV)


def jensen_shannon(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q. Gradient: q (g - sum_v q_v g_v), g = (1 - b) log(q / m).

    Source:  Agarwal et al. 2024 (GKD), arXiv 2306.13649, equation 1
    """
    target_CV, draft_CV = log_target_CV.exp(), log_draft_CV.exp()
    mixture_CV = torch.lerp(draft_CV, target_CV, loss.beta, out=slope_CV)
    # Where p and q both vanish in float32 so does their share of the sums, whatever finite number stands for log m.
    log_mixture_CV = mixture_CV.clamp_(min=torch.finfo(torch.float32).tiny).log_()
    target_part_C = torch.linalg.vecdot(target_CV, log_target_CV.sub_(log_mixture_CV))
    log_ratio_CV = log_draft_CV.sub_(log_mixture_CV).mul_(1 - loss.beta)
    return target_part_C.mul_(loss.beta) + _through_softmax(draft_CV, log_ratio_CV, slope_CV)


def total_variation(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """1 - alpha, alpha = sum_v min(p_v, q_v). Gradient: q (g - sum_v q_v g_v), g = -1 where q < p, else 0."""
    target_CV, draft_CV = log_target_CV.exp_(), log_draft_CV.exp_()
    falls_short_CV = draft_CV < target_CV
    torch.minimum(target_CV, draft_CV, out=target_CV)
    distance_C = 1 - target_CV.sum(-1)
    _through_softmax(draft_CV, falls_short_CV.float().neg_(), slope_CV)
    return distance_C


def lk(loss: Loss, log_target_CV: Tensor, log_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """w KL(p || q) + (1 - w) (1 - alpha), w = exp(-decay alpha) of the same row and held fixed in the gradient.

    KL pulls while hardly anything is accepted, where total variation has no slope; acceptance itself takes over.

    Source:  Samarin et al. 2026 (LK losses), arXiv 2602.23881
    """
    variation_slope_CV = torch.empty_like(slope_CV)
    distance_C = total_variation(loss, log_target_CV.clone(), log_draft_CV.clone(), variation_slope_CV)
    divergence_C = forward_kl(loss, log_target_CV, log_draft_CV, slope_CV)
    weight_C = torch.exp(-loss.decay * (1 - distance_C))
    slope_CV.mul_(weight_C[:, None]).addcmul_(variation_slope_CV, (1 - weight_C)[:, None])
    return torch.lerp(distance_C, divergence_C, weight_C)


LOSSES: dict[str, DivergenceLoss] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "js": jensen_shannon,
    "tv": total_variation,
    "lk": lk,
}


def _log_softmax(logits_CV: Tensor, temperature: float) -> Tensor:
    if temperature == 1:
        return torch.log_softmax(logits_CV, -1)
    # The maximum goes first: divided by a small T, the digits of the rest would be lost in its own.
    return torch.log_softmax(logits_CV.sub_(logits_CV.amax(-1, keepdim=True)).div_(temperature), -1)


def _through_softmax(draft_CV: Tensor, slope_of_draft_CV: Tensor, slope_CV: Tensor) -> Tensor:
    """Chain rule from q to its logits: writes q (g - sum_v q_v g_v), returns sum_v q_v g_v."""
    mean_C = torch.linalg.vecdot(draft_CV, slope_of_draft_CV)
    torch.sub(slope_of_draft_CV, mean_C[:, None], out=slope_CV).mul_(draft_CV)
    return mean_C


def soft_labels(
    loss: Loss, target_hidden_ND: Tensor, target_head_VD: Tensor, log_weight_V: Tensor | None = None
) -> ChunkLoss:
    """The target's whole distribution as label, from its final hidden states.

    Args:    log_weight_V: of each token of the head, where some stand for others
    """

    def on_chunk(rows: slice, draft_logits_CV: Tensor) -> Tensor:
        target_logits_CV = target_hidden_ND[rows] @ target_head_VD.T
        return _in_blocks(
            draft_logits_CV,
            lambda block, logits: loss.on_logits(target_logits_CV[block].float(), logits, log_weight_V),
        )

    return on_chunk


def hard_labels(label_N: Tensor, log_weight_V: Tensor | None = None) -> ChunkLoss:
    """The text's own tokens as labels: their places in the head.

    Args:    log_weight_V: of each token of the head, where some stand for others; 0 for every label
    """

    def on_block(label_C: Tensor, logits_CV: Tensor) -> Tensor:
        return cross_entropy(
            label_C, logits_CV if log_weight_V is None else logits_CV.add_(log_weight_V.to(logits_CV.device))
        )

    def on_chunk(rows: slice, draft_logits_CV: Tensor) -> Tensor:
        label_C = label_N[rows].to(draft_logits_CV.device)
        return _in_blocks(draft_logits_CV, lambda block, logits: on_block(label_C[block], logits))

    return on_chunk


def _in_blocks(draft_logits_CV: Tensor, on_block: ChunkLoss) -> Tensor:
    """Loss of each row of a chunk, from blocks in float32; the gradient takes the place of the logits."""
    losses = []
    for block in blocks(len(draft_logits_CV), draft_logits_CV.device.type):
        logits_CV = draft_logits_CV[block].float()
        losses.append(on_block(block, logits_CV))
        draft_logits_CV[block] = logits_CV
    return torch.cat(losses)


def blocks(num_rows: int, device_type: str) -> Iterator[slice]:
    """The rows of a chunk as blocks that may be in float32 at once."""
    block_rows = CPU_BLOCK_ROWS if device_type == "cpu" else CHUNK_ROWS
    for start in range(0, num_rows, block_rows):
        yield slice(start, min(start + block_rows, num_rows))


def head_loss(hidden_ND: Tensor, head_VD: Tensor, on_chunk: ChunkLoss) -> Tensor:
    """Sum over rows of a loss behind an output head, differentiable in the hidden states and in the head.

    Args:    hidden_ND: any float type, multiplied in the type of the head
             on_chunk: loss of some rows, given which and their draft logits, which its gradient replaces
    """
    return _HeadLoss.apply(hidden_ND, head_VD, on_chunk)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, on_chunk: ChunkLoss) -> Tensor:
        total = torch.zeros((), device=hidden_ND.device)
        slope_ND = torch.empty_like(hidden_ND)
        head_slope_VD = torch.zeros_like(head_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden_ND), CHUNK_ROWS):
            rows = slice(start, min(start + CHUNK_ROWS, len(hidden_ND)))
            hidden_CD = hidden_ND[rows].to(head_VD.dtype)
            slope_CV = hidden_CD @ head_VD.T  # the logits, for now
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
