"""Sample answers from a model in large batches, and keep the hidden state from which each token was drawn.

Each row has its own temperature and its own seed. So its answer does not depend on the other rows of the batch, beyond the
rounding of a batched matrix product. Rows that have ended leave the batch.
Shape letters: B rows still running, A tokens of an answer, D hidden size, V vocabulary, N places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from distill.text.generation import CausalRows, EncoderDecoderRows, grouped_attention

BLOCK = 256  # a draw first chooses a block of so many tokens, then a token of that block
DROP_WHEN_FINISHED = 1 / 8  # share of rows that must have ended before the cache is copied without them


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to sample."""

    prompt_ids: tuple[int, ...]
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What was sampled. Row i of `hidden_AD` is the final hidden state from which token i was drawn."""

    token_ids_A: Tensor
    hidden_AD: Tensor | None  # None: the engine does not return them


Sampler = Callable[[Sequence[Request]], Sequence[Answer]]


@torch.inference_mode()
def sample_answers(
    model: PreTrainedModel, requests: Sequence[Request], *, max_new_tokens: int, end_token_ids: Sequence[int]
) -> list[Answer]:
    """Draw one answer for each request, all in one batch. An answer includes its end token, if it has one."""
    device, count = model.device, len(requests)
    head = model.get_output_embeddings()
    temperature_B = torch.tensor([request.temperature for request in requests], device=device)
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]  # on the CPU: the same on every device
    uniforms = [torch.rand(max_new_tokens, generator=each, dtype=torch.float64) for each in generators]
    uniform_BA = torch.stack(uniforms).to(device)
    end_tokens = torch.tensor(list(end_token_ids), dtype=torch.long, device=device)
    drawn_BA = torch.zeros(count, max_new_tokens, dtype=torch.long, device=device)
    length_B = torch.zeros(count, dtype=torch.long, device=device)
    hidden_BAD = torch.empty(count, max_new_tokens, head.weight.shape[1], dtype=model.dtype, device=device)

    kind = EncoderDecoderRows if model.config.is_encoder_decoder else CausalRows
    batch = kind(model, [request.prompt_ids for request in requests], room=max_new_tokens)
    rows = torch.arange(count, device=device)  # which request each row of the shrinking batch answers
    running = torch.ones(count, dtype=torch.bool, device=device)
    with grouped_attention(model):
        for step in range(max_new_tokens):
            hidden_BD = batch.hidden_BD()
            tokens_B = draw(head(hidden_BD), temperature_B[rows], uniform_BA[rows, step])
            hidden_BAD[rows, step] = hidden_BD
            drawn_BA[rows, step] = tokens_B
            length_B[rows] += running
            running &= ~torch.isin(tokens_B, end_tokens)
            left = int(running.sum())  # on a GPU the only synchronisation of a step, unless rows are dropped
            if left == 0:
                break
            if left <= len(rows) * (1 - DROP_WHEN_FINISHED):
                kept = running.nonzero().squeeze(1)
                batch.keep(kept)
                rows, tokens_B, running = rows[kept], tokens_B[kept], running[kept]
            batch.fed_BT = tokens_B[:, None]
    return [Answer(drawn_BA[row, :end].cpu(), hidden_BAD[row, :end].cpu()) for row, end in enumerate(length_B.tolist())]


def draw(logits_BV: Tensor, temperature_B: Tensor, uniform_B: Tensor) -> Tensor:
    """Draw one token per row from softmax(logits / T), by the inverse of the cumulative distribution. T = 0 is the argmax.

    Args:    uniform_B: float64 in [0, 1)
    Returns: (B,) int64
    """
    scores_BV = logits_BV.float()
    best_B = scores_BV.argmax(-1)
    scale_B1 = temperature_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    probs_BV = scores_BV.sub_(scores_BV.gather(1, best_B[:, None])).div_(scale_B1).exp_()
    # Two levels, a block and a token of it: a running sum over the whole vocabulary costs more than the softmax.
    blocks = F.pad(probs_BV, (0, -probs_BV.shape[1] % BLOCK)).view(len(probs_BV), -1, BLOCK)
    block_B, rest_B = _invert(blocks.sum(-1, dtype=torch.float64), uniform_B)
    within_B, _ = _invert(blocks[torch.arange(len(blocks)), block_B].double(), rest_B)
    return torch.where(temperature_B == 0, best_B, block_B * BLOCK + within_B)


def _invert(mass_BN: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place whose share of the mass contains `uniform_B`, and how far into that share it lies, in [0, 1).

    Example: masses 1, 3 and uniform 0.5 give place 1, and (0.5 * 4 - 1) / 3 = 1/3.
    """
    upto_BN = mass_BN.cumsum(-1)
    point_B1 = (uniform_B * upto_BN[:, -1])[:, None]
    place_B1 = torch.searchsorted(upto_BN, point_B1, right=True).clamp_(max=mass_BN.shape[1] - 1)
    share_B1 = mass_BN.gather(1, place_B1)
    into_B1 = (point_B1 - (upto_BN.gather(1, place_B1) - share_B1)) / share_B1
    return place_B1.squeeze(1), into_B1.squeeze(1).clamp_(0, 1 - 2**-53)  # 1 itself would be the next place
