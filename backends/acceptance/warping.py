"""From logits to probabilities to one token. Order of warping: temperature, top-k, top-p; ties go to the lowest token id.

Probabilities are computed once, in float32, and the same ones are sampled from and judged. A token is drawn from one uniform
number in [0, 1) by inverting the cumulative distribution. Use float64 uniforms: float32 ones are multiples of 2^-24, and rare
tokens would get a wrong share. Nothing here waits for the device.

Shape letters: N rows, V vocabulary, K tokens kept by top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny  # below it float32 would divide by zero
UNITS = 2.0**50  # integer units in probability 1: what is rarer than 2^-50 is never drawn


def warp(logits_NV: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Return the next-token distribution after temperature, top-k and top-p, in that order.

    Args:    logits_NV: any float type, -inf allowed; temperature: 0 is greedy; top_k: 0 is off; top_p: in (0, 1], 1 is off
    Returns: (N, V) float32, rows sum to 1; tokens cut off have probability exactly 0; T = 0 is one-hot on the argmax
    """
    scores_NV = logits_NV.float()
    if temperature == 0:
        best_N1 = scores_NV.argmax(-1, keepdim=True)
        return torch.zeros_like(scores_NV).scatter_(-1, best_N1, 1.0)
    # Subtract the maximum first: a small T then sends the other scores to -inf, and never the maximum to +inf.
    scores_NV = scores_NV - scores_NV.amax(-1, keepdim=True)
    probs_NV = scores_NV.div_(max(temperature, SMALLEST_TEMPERATURE)).softmax(-1)
    if 0 < top_k < probs_NV.shape[-1] or top_p < 1:
        return torch.stack([truncate(probs_V, top_k=top_k, top_p=top_p) for probs_V in probs_NV])
    return probs_NV


def truncate(probs_V: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Keep the top_k likeliest tokens, of these the fewest whose share reaches top_p, and renormalise."""
    likeliest_K = _likeliest(probs_V, top_k or probs_V.numel())
    kept_K = probs_V[likeliest_K]
    if top_p < 1:
        upto_K = kept_K.cumsum(0, dtype=torch.float64)
        # upto - kept is the mass before a token: a token goes once the tokens before it already reach top_p.
        kept_K.masked_fill_(upto_K - kept_K >= top_p * upto_K[-1], 0)
    return torch.zeros_like(probs_V).index_copy_(0, likeliest_K, kept_K / kept_K.sum())


def _likeliest(probs_V: Tensor, count: int) -> Tensor:
    """Return the ids of the likeliest tokens by descending probability, ties by ascending id."""
    # The bits of floats >= 0 sort like the floats. With the id in the lower 32 bits no two keys are equal, so any sort is
    # stable. On a CPU integers are sorted by radix, several times faster than floats.
    ids_V = torch.arange(probs_V.numel(), device=probs_V.device)
    keys_V = (~probs_V.view(torch.int32)).long().bitwise_left_shift_(32).bitwise_or_(ids_V)
    keys_K = keys_V.topk(count, largest=False).values if count < keys_V.numel() else keys_V.sort().values
    return keys_K & 0xFFFFFFFF


def sample(probs_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Draw one token per row, by inverse cumulative distribution; never one of probability 0.

    Args:    probs_NV: float32, rows sum to 1 up to rounding (each is normalised by its own total); uniform_N: in [0, 1)
    Returns: (N,) int64; uniform 1 gives the last token of positive probability
    """
    # A float32 running sum loses tokens below 6e-8, and a parallel one need not even increase. Integers add up exactly in any
    # order: a token without mass spans no interval, CPU and GPU agree, and the cost is that of float32.
    upto_NV = (probs_NV * UNITS).long().cumsum_(-1)
    total_N = upto_NV[:, -1]
    point_N = torch.minimum((uniform_N.double() * total_N).long(), total_N - 1)
    return torch.searchsorted(upto_NV, point_N[:, None], right=True).squeeze(1)
