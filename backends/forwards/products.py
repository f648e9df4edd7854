"""Matrix products with fixed weights. On CPUs the weights are laid out once in oneDNN's own format, if that is possible.

A CPU's general product converts the weight's layout in each call, or reads the weight once for every row. A verification of
four tokens can then take twice as long as one token (docs/performance.md). Packed beforehand, the weight is read once for all
rows. Results differ by rounding, and the weights take their memory a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = Literal["packed", "plain"]


@dataclass(frozen=True, slots=True)
class Product:
    """Rows (T, D) times a weight, which gives rows (T, N)."""

    weight_ND: Tensor
    multiply: Callable[[Tensor], Tensor]
    add: Callable[[Tensor, Tensor], Tensor]  # product of the first + the second, (T, N); neither is changed

    def __call__(self, rows_TD: Tensor) -> Tensor:
        return self.multiply(rows_TD)


def can_pack(weight: Tensor) -> bool:
    """Return whether oneDNN packs such weights on this machine: float32, and bfloat16 if the processor supports it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product(weight_ND: Tensor, layout: Layout) -> Product:
    """Return the product with a weight; plain if it cannot be packed."""
    if layout == "plain" or not can_pack(weight_ND):
        multiply = partial(F.linear, weight=weight_ND)
        return Product(weight_ND, multiply, lambda rows_TD, others_TN: others_TN + multiply(rows_TD))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_ND.detach())  # a copy in oneDNN's own layout
    alone, added = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._linear_pointwise.binary
    return Product(
        weight_ND,
        lambda rows_TD: alone(rows_TD, packed, None, "none", [], ""),
        lambda rows_TD, others_TN: added(rows_TD, others_TN, packed, None, "add"),
    )
