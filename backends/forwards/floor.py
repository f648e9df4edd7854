"""The floor of a forward: its linear layers alone, which stream every weight once. What a forward takes beyond it is overhead.

Shape letters: T tokens fed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backends.forwards import products as of_weights
from backends.forwards.fused_llama import FusedLlama
from backends.forwards.products import Product


def products_of(model: PreTrainedModel, fused: FusedLlama | None) -> tuple[Product, ...]:
    """The products that one forward of a decoder computes, in its order and as it computes them.

    Empty where that depends on the tokens (a mixture of experts), or not every layer runs (an encoder's), where they lie on
    several devices, or are no linear layers.
    """
    if fused is not None:
        return tuple(fused.products)
    config = model.config.get_text_config()
    known = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)}
    if any(weight.dim() > 1 and id(weight) not in known for weight in model.parameters()):
        return ()  # products of another kind, as GPT-2's, or of experts
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    of_several_devices = len({linear.weight.device for linear in linears}) > 1
    if model.config.is_encoder_decoder or getattr(config, "num_local_experts", None) or of_several_devices:
        return ()
    return tuple(of_weights.product(linear.weight, "plain") for linear in linears)


def inputs_for(products: Sequence[Product], num_tokens: int, like: Tensor) -> dict[int, Tensor]:
    """Random rows for each width that is taken, of the device and type of `like`."""
    generator = torch.Generator(like.device).manual_seed(0)
    return {
        width: torch.randn(num_tokens, width, generator=generator, device=like.device, dtype=like.dtype)
        for width in {product.shape[1] for product in products}
    }


def run(products: Sequence[Product], rows: dict[int, Tensor]) -> None:
    """All of them, one behind the other."""
    for product in products:
        product(rows[product.shape[1]])
