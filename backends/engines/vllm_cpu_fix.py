"""A vLLM plug-in that works around two faults of its speculative decoding on a CPU: a wrong temperature, and a crash.

See docs/upstream/vllm-cpu-temperature.md and vllm-cpu-top-k.md. vLLM calls `apply` in each of its processes (entry-point group
`vllm.general_plugins`). It replaces two functions, only on a CPU, and only if a probe shows that this vLLM needs it.
SPECHEAT_VLLM_CPU_FIX=0 switches it off.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

SWITCH = "SPECHEAT_VLLM_CPU_FIX"
NOT_LOADED, OFF, NOT_NEEDED, ACTIVE = "not loaded", "off", "not needed", "active"

state = NOT_LOADED  # what `apply` did in this process


def apply() -> None:
    """Apply what this process needs. A second call does nothing."""
    global state
    if state == NOT_LOADED:
        state = OFF if os.environ.get(SWITCH, "1") == "0" else _apply()


def _apply() -> str:
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    # A GPU, or a CPU for which Triton compiles, runs the sampler's own kernels, which are correct.
    if not current_platform.is_cpu() or HAS_TRITON:
        return NOT_NEEDED
    from vllm.v1.sample import rejection_sampler

    state = NOT_NEEDED
    if not expands_rightly():
        rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens
        state = ACTIVE
    if not takes_no_rows(rejection_sampler.apply_top_k_top_p):
        rejection_sampler.apply_top_k_top_p = only_with_rows(rejection_sampler.apply_top_k_top_p)
        state = ACTIVE
    return state


def expands_rightly() -> bool:
    """Return whether vLLM's own replacement of that kernel for CPUs writes into the tensor it is given."""
    from vllm.platforms import current_platform
    from vllm.utils import cpu_triton_utils

    current_platform.import_kernels()
    expanded = torch.full((3,), float("nan"))
    cu_num_tokens = torch.tensor([1, 3], dtype=torch.int32)
    cpu_triton_utils._expand_kernel_impl(expanded, torch.tensor([0.7, 0.0]), cu_num_tokens, 0, 1)
    return torch.equal(expanded, torch.tensor([0.7, 1.0, 1.0]))  # the faulty one leaves the NaNs


Truncate = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]


def takes_no_rows(truncate: Truncate) -> bool:
    """Return whether vLLM's top-k accepts a step without draft tokens, such as the one after a prompt."""
    try:
        truncate(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int32), None)
    except RuntimeError:
        return False
    return True


def only_with_rows(truncate: Truncate) -> Truncate:
    """Return the same function, which does nothing if there are no rows."""
    return lambda logits, k, p: truncate(logits, k, p) if len(logits) else logits


def expand_batch_to_tokens(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> torch.Tensor:
    """Repeat a request's value for each of its draft tokens: x = [a, b], cu_num_tokens = [1, 3] gives [a, b, b].

    It replaces vLLM's function of this name and has its arguments. Values equal to `replace_from` become `replace_to`.
    """
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return replaced.repeat_interleave(counts, output_size=num_tokens)
