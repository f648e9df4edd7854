"""The floor of a forward: its linear layers alone, which read every weight once. All further time is overhead.

Shape letters: T tokens fed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backends.forwards.fused_llama import FusedLlama
from backends.forwards.products import Product, product


def products_of(model: PreTrainedModel, fused: FusedLlama | None) -> tuple[Product, ...]:
    """Return the products that one forward of a decoder computes, in its order and layout.

    Empty if they depend on the tokens (a mixture of experts), if not every layer runs (an encoder's), if they lie on several
    devices, or if they are not linear layers.
    """
    if fused is not None:
        return tuple(fused.products)
    config = model.config.get_text_config()
    known = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)}
    if any(weight.dim() > 1 and id(weight) not in known for weight in model.parameters()):
        return ()  # products of another kind: GPT-2's, or those of experts
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    on_several_devices = len({linear.weight.device for linear in linears}) > 1
    if model.config.is_encoder_decoder or getattr(config, "num_local_experts", None) or on_several_devices:
        return ()
    return tuple(product(linear.weight, "plain") for linear in linears)


def inputs_for(products: Sequence[Product], num_tokens: int, like: Tensor) -> dict[int, Tensor]:
    """Return random rows for each input width, on the device and in the dtype of `like`."""
    generator = torch.Generator(like.device).manual_seed(0)  # random numbers: kernels run faster on zeros
    return {
        width: torch.randn(num_tokens, width, generator=generator, device=like.device, dtype=like.dtype)
        for width in {each.weight_ND.shape[1] for each in products}
    }


def run(products: Sequence[Product], rows: dict[int, Tensor]) -> None:
    """Compute all of them, one after the other."""
    for each in products:
        each(rows[each.weight_ND.shape[1]])
