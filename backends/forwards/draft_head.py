"""A draft whose output head has rows for the frequent tokens only. The head is most of what a small draft reads.

Nothing is lost but acceptance: q is zero for other tokens, and the acceptance rules are lossless for any q.
The idea: Zhao et al. 2025 (FR-Spec), arXiv 2502.14856.

Shape letters: G draft positions, M tokens kept, V vocabulary, D hidden size.
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
    """Return the ids of the `count` most frequent tokens of a draft's training text, ascending.

    Args:    always: ids that are kept whatever their frequency, such as the end token
    Raises:  ValueError: the folder does not list its frequent tokens, or lists fewer
    """
    if not (folder / FREQUENT).is_file():
        raise ValueError(f"expected {FREQUENT} in {folder}, found none; `specheat distill` writes it beside its drafts")
    ranked = json.loads((folder / FREQUENT).read_text())
    if not isinstance(ranked, list) or not all(isinstance(token, int) for token in ranked):
        raise ValueError(f"expected a list of token ids in {folder / FREQUENT}")
    kept = set(always)  # they take their places among the `count` tokens
    if not len(kept) < count <= len(ranked):
        raise ValueError(f"expected a draft vocabulary of {len(kept) + 1} to {len(ranked)} tokens, got {count}")
    others = [token for token in ranked if token not in kept]
    return tuple(sorted({*kept, *others[: count - len(kept)]}))


@torch.no_grad()
def restrict(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Keep only these rows of the model's head, in this order: it then returns M logits. The embedding stays whole.

    Raises:  ValueError: there is no head, or it has a bias
    """
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"expected an output head without bias, got {head}")
    rows_MD = head.weight[torch.tensor(token_ids, device=head.weight.device)].clone()
    smaller = nn.Linear(rows_MD.shape[1], len(rows_MD), bias=False, device="meta")  # no memory for weights that are replaced
    smaller.weight = nn.Parameter(rows_MD, requires_grad=False)
    model.set_output_embeddings(smaller)


def spread(probs_GM: Tensor, token_ids_M: Tensor, vocab_size: int) -> Tensor:
    """Return the same distributions over the whole vocabulary, (G, V)."""
    return probs_GM.new_zeros(len(probs_GM), vocab_size).index_copy_(1, token_ids_M, probs_GM)
