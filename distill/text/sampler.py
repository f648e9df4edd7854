"""Samples text from a model in large batches, keeping the hidden state behind every token it drew.

A row is one text. It has its own temperature and its own seed, so what it says does not depend on the rows around it
(beyond the rounding of a batched matrix product). Finished rows leave the batch.
Shape letters: B rows still running, T tokens, A tokens of an answer, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from distill.text.generation import texts_of

BLOCK = 256  # tokens whose probabilities are added up first when one is drawn
DROP_WHEN_FINISHED = 1 / 8  # share of rows whose end is worth a copy of the cache


@dataclass(frozen=True, slots=True)
class Ask:
    """One text to sample."""

    prompt_ids: tuple[int, ...]
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What was sampled. TextRow i of `hidden_AD` is the final hidden state from which token i was drawn."""

    token_ids_A: Tensor
    hidden_AD: Tensor | None  # None: the engine keeps them to itself


@torch.inference_mode()
def sample_answers(
    model: PreTrainedModel, asks: Sequence[Ask], *, max_new_tokens: int, end_token_ids: Sequence[int]
) -> list[Answer]:
    """Draw one answer for each ask, all in one batch. An answer includes its end token, if it has one."""
    device, count = model.device, len(asks)
    head = model.get_output_embeddings()
    temperature_B = torch.tensor([ask.temperature for ask in asks], device=device)
    uniform_BA = torch.stack([_uniforms(ask.seed, max_new_tokens) for ask in asks]).to(device)
    end_tokens = torch.tensor(list(end_token_ids), dtype=torch.long, device=device)
    drawn_BA = torch.zeros(count, max_new_tokens, dtype=torch.long, device=device)
    length_B = torch.zeros(count, dtype=torch.long, device=device)
    hidden_BAD = torch.empty(count, max_new_tokens, head.weight.shape[1], dtype=model.dtype, device=device)

    texts = texts_of(model, [ask.prompt_ids for ask in asks], room=max_new_tokens)
    rows = torch.arange(count, device=device)  # of the asks, in the order in which the texts hold them
    running = torch.ones(count, dtype=torch.bool, device=device)
    with texts.running():
        for step in range(max_new_tokens):
            hidden_BD = texts.hidden_BD()
            tokens_B = draw(head(hidden_BD), temperature_B[rows], uniform_BA[rows, step])
            hidden_BAD[rows, step] = hidden_BD
            drawn_BA[rows, step] = tokens_B
            length_B[rows] += running
            running &= ~torch.isin(tokens_B, end_tokens)
            left = int(running.sum())
            if left == 0:
                break
            if left <= len(rows) * (1 - DROP_WHEN_FINISHED):
                kept = running.nonzero().squeeze(1)
                texts.keep(kept)
                rows, tokens_B, running = rows[kept], tokens_B[kept], running[kept]
            texts.feed(tokens_B)
    return [
        Answer(drawn_BA[row, :length].cpu(), hidden_BAD[row, :length].cpu())
        for row, length in enumerate(length_B.tolist())
    ]


def draw(logits_BV: Tensor, temperature_B: Tensor, uniform_B: Tensor) -> Tensor:
    """One token a row from softmax(logits / T), by inverse cumulative distribution; T = 0 is the argmax.

    Args:    uniform_B: float64 in [0, 1)
    Returns: (B,) int64
    """
    scores_BV = logits_BV.float()
    best_B = scores_BV.argmax(-1)
    scale_B1 = temperature_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    probs_BV = scores_BV.sub_(scores_BV.gather(1, best_B[:, None])).div_(scale_B1).exp_()
    # Two levels, the block and the token within it: a running sum over the whole vocabulary costs more than softmax.
    blocks = F.pad(probs_BV, (0, -probs_BV.shape[1] % BLOCK)).view(len(probs_BV), -1, BLOCK)
    block_B, rest_B = _invert(blocks.sum(-1, dtype=torch.float64), uniform_B)
    within_B, _ = _invert(blocks[torch.arange(len(blocks)), block_B].double(), rest_B)
    return torch.where(temperature_B == 0, best_B, block_B * BLOCK + within_B)


def _invert(mass_BN: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The place in whose share of the mass `uniform_B` falls, and how far into that share, in [0, 1)."""
    upto_BN = mass_BN.cumsum(-1)
    point_B1 = (uniform_B * upto_BN[:, -1])[:, None]
    place_B1 = torch.searchsorted(upto_BN, point_B1, right=True).clamp_(max=mass_BN.shape[1] - 1)
    share_B1 = mass_BN.gather(1, place_B1)
    into_B1 = (point_B1 - (upto_BN.gather(1, place_B1) - share_B1)) / share_B1
    return place_B1.squeeze(1), into_B1.squeeze(1).clamp_(0, 1 - 2**-53)


def _uniforms(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
