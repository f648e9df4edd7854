"""A draft whose head knows the frequent tokens only. The head is most of what a small draft reads: fewer rows, fewer bytes.

Nothing is lost but acceptance: q is zero elsewhere, and the acceptance rules are lossless for any q. The idea: Zhao et al. 2025
(FR-Spec), arXiv 2502.14856. Shape letters: M tokens kept, V vocabulary, D hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

FREQUENT = "frequent_tokens.json"  # beside a draft's weights: token ids, the most frequent first


def frequent_tokens(folder: Path, count: int, *, always: Sequence[int] = ()) -> tuple[int, ...]:
    """The ids of the `count` most frequent tokens of the text that a draft was trained on, ascending.

    Args:    always: ids that are kept whatever their frequency, such as the end token
    Raises:  ValueError: the folder does not say which tokens are frequent, or names fewer
    """
    try:
        ranked = json.loads((folder / FREQUENT).read_text())
    except OSError as error:
        raise ValueError(
            f"expected {FREQUENT} in {folder}, found none; `specheat distill` writes it beside its drafts"
        ) from error
    if not isinstance(ranked, list) or not all(isinstance(token, int) for token in ranked):
        raise ValueError(f"expected a list of token ids in {folder / FREQUENT}")
    if not len(set(always)) < count <= len(ranked):
        raise ValueError(f"expected a draft vocabulary of {len(set(always)) + 1} to {len(ranked)} tokens, got {count}")
    others = [token for token in ranked if token not in always]
    return tuple(sorted({*always, *others[: count - len(set(always))]}))


@torch.no_grad()
def restrict(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Leave the model these rows of its head, in this order: it returns logits of M tokens. The embedding stays whole.

    Raises:  ValueError: the head has a bias, or there is none
    """
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"expected an output head without bias, got {head}")
    rows_MD = head.weight[torch.tensor(token_ids, device=head.weight.device)].clone()
    smaller = nn.Linear(rows_MD.shape[1], len(rows_MD), bias=False, device="meta")
    smaller.weight = nn.Parameter(rows_MD, requires_grad=False)
    model.set_output_embeddings(smaller)


def spread(probs_GM: Tensor, token_ids_M: Tensor, vocab_size: int) -> Tensor:
    """The same distributions over the whole vocabulary, (G, V)."""
    return probs_GM.new_zeros(len(probs_GM), vocab_size).index_copy_(1, token_ids_M, probs_GM)
