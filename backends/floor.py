"""The floor of a forward: its linear layers alone, which stream every weight once. What a forward takes beyond it is overhead.

Shape letters: T tokens fed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from backends.fused_llama import FusedLlama


def linear_weights(model: PreTrainedModel, fused: FusedLlama | None) -> tuple[Tensor, ...]:
    """The weights that one forward of a decoder multiplies, in its order; fused ones as they are multiplied.

    Empty where that depends on the tokens (a mixture of experts), or not every layer runs (an encoder's).
    """
    if fused is not None:
        layers = [weight for layer in fused.layers for weight in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        return (*layers, fused.head)
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder or getattr(config, "num_local_experts", None):
        return ()
    return tuple(module.weight for module in model.modules() if isinstance(module, nn.Linear))


def inputs_for(weights: Sequence[Tensor], num_tokens: int) -> dict[int, Tensor]:
    """Random rows for each width that the weights take."""
    generator = torch.Generator(weights[0].device).manual_seed(0)
    return {
        width: torch.randn(num_tokens, width, generator=generator, device=weights[0].device, dtype=weights[0].dtype)
        for width in {weight.shape[1] for weight in weights}
    }


def run(weights: Sequence[Tensor], rows: dict[int, Tensor]) -> None:
    """All products, one behind the other."""
    for weight in weights:
        F.linear(rows[weight.shape[1]], weight)
