"""Acceptance rules: how the target judges the draft tokens of one round, as pure functions of probabilities.

Probabilities are float32, already warped, and the very ones the draft tokens were drawn from. Uniforms lie in [0, 1). They are
independent of each other and of those that drew the draft tokens: one tests each draft token, the last draws the next token.
A test passes if uniform < level. The comparison is strict, so level 0 never passes, level 1 always does, and T = 0 is exact.
Nothing here waits for the device; the caller's one transfer per round fetches the judgement.

Shape letters: G draft positions of the round (may be 0), S = G + 1 positions the target scored, V vocabulary, N rows.
Position i's draft token was drawn from draft_probs_GV[i] and is judged against target_probs_SV[i]:

    draft tokens     x0  x1  x2        num_accepted = 1: x0 is kept, the recovered token replaces x1 (row 1 of both)
    rows             0   1   2   3     num_accepted = 3: all are kept, the bonus token comes from the target's row 3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from backends.acceptance.warping import sample

# Medusa's defaults (`posterior_threshold` and `posterior_alpha` of its code; the second is the root of the first).
TYPICAL_EPSILON = 0.09
TYPICAL_DELTA = 0.3


@dataclass(frozen=True, slots=True)
class Judgement:
    """Outcome of one round, still on the device."""

    num_accepted: Tensor  # () int64, 0..G
    next_token: Tensor  # () int64: the recovered token if num_accepted < G, else the bonus token


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to judge draft tokens. Both functions take draft_tokens_G, draft_probs_GV, target_probs_SV in this order."""

    name: str
    lossless: bool  # emitted tokens follow the target's distribution
    drafting: Literal["sampled", "argmax"]  # how a draft token is chosen from its draft_probs
    jointly: bool  # the draft tokens are judged as one block, so no single position has an alpha
    judge: Callable[[Tensor, Tensor, Tensor, Tensor], Judgement]  # the fourth argument is uniforms_S
    # (G,) probability that the tested draft token is accepted, given the tokens before it. If the rule judges jointly: that
    # the first i + 1 draft tokens are all accepted, given these tokens; the sum is the expected number accepted.
    acceptance_probs: Callable[[Tensor, Tensor, Tensor], Tensor]


def residual_distribution(target_probs_NV: Tensor, draft_probs_NV: Tensor) -> Tensor:
    """Return the distribution of the recovered token, norm(max(0, p - q)).

    Example: p = (0.5, 0.3, 0.2) and q = (0.2, 0.6, 0.2) leave (0.3, 0, 0), so the recovered token is the first.

    Args:    target_probs_NV: may be scaled by a factor up to 1 (block verification)
             draft_probs_NV: a row of zeros means "no draft token here", which makes the bonus token a special case
    Returns: (N, V), rows sum to 1; a row with nothing left (p == q, or by rounding) is target_probs_NV unchanged
    Source:  Leviathan et al. 2023, arXiv 2211.17192, section 2.3
    """
    excess_NV = (target_probs_NV - draft_probs_NV).clamp_min_(0)
    mass_N1 = excess_NV.sum(-1, keepdim=True)
    return torch.where(mass_N1 > 0, excess_NV / mass_N1, target_probs_NV)


def judge_by_rejection(
    draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor, uniforms_S: Tensor
) -> Judgement:
    """Accept with probability min(1, p/q), up to the first rejection; there draw from the residual distribution.

    Source:  Leviathan et al. 2023, arXiv 2211.17192, algorithm 1
    """
    ratio_G = _ratio(draft_tokens_G, draft_probs_GV, target_probs_SV)
    num_accepted = _num_leading(uniforms_S[:-1] < ratio_G)
    recovered_1V = residual_distribution(
        target_probs_SV.index_select(0, num_accepted), _row_or_zeros(draft_probs_GV, num_accepted)
    )
    return Judgement(num_accepted, sample(recovered_1V, uniforms_S[-1:])[0])


def rejection_acceptance_probs(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor) -> Tensor:
    """Return sum_v min(p_v, q_v) at each draft position."""
    # Rounding may lift the sum above 1, and beta (1 - beta) must not be negative.
    return torch.minimum(target_probs_SV[:-1], draft_probs_GV).sum(-1).clamp_max(1)


def judge_one_hot(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor, uniforms_S: Tensor) -> Judgement:
    """Apply the rejection rule with q = 1 at the draft token: accept with p(x), else draw from p without x."""
    certain_GV = torch.zeros_like(draft_probs_GV).scatter_(1, draft_tokens_G[:, None], 1.0)
    return judge_by_rejection(draft_tokens_G, certain_GV, target_probs_SV, uniforms_S)


def one_hot_acceptance_probs(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor) -> Tensor:
    """Return p(argmax q) at each draft position."""
    return _at(target_probs_SV[:-1], draft_probs_GV.argmax(-1))


def judge_by_exact_match(
    draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor, uniforms_S: Tensor
) -> Judgement:
    """Draw the target's own token at every position; accept draft tokens equal to it, up to the first that differs."""
    own_S = sample(target_probs_SV, uniforms_S)
    num_accepted = _num_leading(own_S[:-1] == draft_tokens_G)
    return Judgement(num_accepted, own_S.index_select(0, num_accepted)[0])


def exact_match_acceptance_probs(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor) -> Tensor:
    """Return sum_v p_v q_v at each draft position."""
    return (target_probs_SV[:-1] * draft_probs_GV).sum(-1)


def judge_as_block(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor, uniforms_S: Tensor) -> Judgement:
    """Keep the longest prefix whose own test passes, whatever the tests of shorter prefixes gave.

    Let P_i be the probability that a prefix of i tokens is kept (`_keep_probs`), and R_i = sum_v max(0, P_i p_v - q_v) at the
    next position. Prefix i < G is tested at level R_i / (R_i + 1 - P_i), and the whole block at P_G. The next token is drawn
    from norm(max(0, P_i p - q)).

    Source:  Sun et al. 2024, arXiv 2403.10444, block verification
    """
    keep_S = _keep_probs(draft_tokens_G, draft_probs_GV, target_probs_SV)
    shorter = keep_S[1:-1]
    residual_mass = (shorter[:, None] * target_probs_SV[1:-1] - draft_probs_GV[1:]).clamp_min_(0).sum(-1)
    # 0/0 means P_i = 1 and p == q at the next position. A longer prefix is then certain to be kept, up to rounding, so this
    # one passes as well.
    level = (residual_mass / (residual_mass + 1 - shorter)).nan_to_num(nan=1.0)
    level_G = torch.cat((level, keep_S[1:][-1:]))

    # The largest i whose test passes; 0 if none does. A maximum, not a loop, so that the host need not wait.
    lengths_G = torch.arange(1, len(uniforms_S), device=uniforms_S.device)
    num_accepted = pad(lengths_G * (uniforms_S[:-1] < level_G), (1, 0)).max()  # padded with the 0 of "none passes"
    scaled_1V = keep_S.index_select(0, num_accepted) * target_probs_SV.index_select(0, num_accepted)
    recovered_1V = residual_distribution(scaled_1V, _row_or_zeros(draft_probs_GV, num_accepted))
    return Judgement(num_accepted, sample(recovered_1V, uniforms_S[-1:])[0])


def block_acceptance_probs(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor) -> Tensor:
    """Return P_1 .. P_G, the probability that each prefix of these draft tokens is kept; the sum is the expected number."""
    return _keep_probs(draft_tokens_G, draft_probs_GV, target_probs_SV)[1:]


def judge_as_typical(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor, uniforms_S: Tensor) -> Judgement:
    """Accept what is typical of the target, p(x) > min(epsilon, delta exp(-entropy)); then draw from p. Lossy.

    Source:  Cai et al. 2024 (Medusa), arXiv 2401.10774, section 2.3.1
    """
    num_accepted = _num_leading(_at(target_probs_SV[:-1], draft_tokens_G) > _typical_threshold(target_probs_SV[:-1]))
    return Judgement(num_accepted, sample(target_probs_SV.index_select(0, num_accepted), uniforms_S[-1:])[0])


def typical_acceptance_probs(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor) -> Tensor:
    """Return the draft's mass on tokens typical of the target, at each draft position."""
    typical_GV = target_probs_SV[:-1] > _typical_threshold(target_probs_SV[:-1])[:, None]
    return (draft_probs_GV * typical_GV).sum(-1).clamp_max(1)


def _typical_threshold(target_probs_NV: Tensor) -> Tensor:
    entropy_N = torch.special.entr(target_probs_NV).sum(-1)
    return (TYPICAL_DELTA * (-entropy_N).exp()).clamp_max(TYPICAL_EPSILON)


def _keep_probs(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor) -> Tensor:
    """Return P_0 = 1 and P_i = min(1, P_{i-1} p/q), (S,): block verification keeps the first i draft tokens with P_i."""
    keep = [target_probs_SV.new_ones(())]
    for ratio in _ratio(draft_tokens_G, draft_probs_GV, target_probs_SV).unbind():
        keep.append((keep[-1] * ratio).clamp_max(1))
    return torch.stack(keep)


def _ratio(draft_tokens_G: Tensor, draft_probs_GV: Tensor, target_probs_SV: Tensor) -> Tensor:
    """Return p/q of each draft token; q > 0, because the token was drawn from it."""
    return _at(target_probs_SV[:-1], draft_tokens_G) / _at(draft_probs_GV, draft_tokens_G)


def _at(probs_NV: Tensor, tokens_N: Tensor) -> Tensor:
    return probs_NV.gather(1, tokens_N[:, None]).squeeze(1)


def _num_leading(accepted_G: Tensor) -> Tensor:
    """Return the number of accepted tokens before the first rejection: (1, 1, 0, 1) gives 2."""
    return accepted_G.cumprod(0).sum()  # the product is 0 from the first rejection on


def _row_or_zeros(draft_probs_GV: Tensor, num_accepted: Tensor) -> Tensor:
    """Return the draft's row at the rejected position, (1, V); zeros if every draft token was accepted."""
    num_drafted, vocab_size = draft_probs_GV.shape
    if num_drafted == 0:
        return draft_probs_GV.new_zeros(1, vocab_size)
    # num_accepted is on the device: the index is clamped and the row masked, so that the host need not wait.
    row_1V = draft_probs_GV.index_select(0, num_accepted.clamp_max(num_drafted - 1))
    return row_1V * (num_accepted < num_drafted)


RULES = {
    rule.name: rule
    for rule in (
        # name, lossless, drafting, jointly
        Rule("rejection", True, "sampled", False, judge_by_rejection, rejection_acceptance_probs),
        Rule("one_hot", True, "argmax", False, judge_one_hot, one_hot_acceptance_probs),
        Rule("exact_match", True, "sampled", False, judge_by_exact_match, exact_match_acceptance_probs),
        Rule("block", True, "sampled", True, judge_as_block, block_acceptance_probs),
        Rule("typical", False, "sampled", False, judge_as_typical, typical_acceptance_probs),
    )
}
