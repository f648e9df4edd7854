"""What theory predicts for gamma and block efficiency, from acceptance and the cost of bare forwards.

Pure formulas, no measurement. A round drafts k tokens and verifies them in one target forward of k + 1 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class SlotTotals:
    """Expected counts of the decoder over one output; add outputs up before taking a ratio."""

    tested: float
    accepted: float
    emitted: int
    rounds: float

    def __add__(self, other: SlotTotals) -> SlotTotals:
        return SlotTotals(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def alpha(self) -> float:
        return self.accepted / self.tested

    @property
    def block_efficiency(self) -> float:
        return self.emitted / self.rounds


def expected_block_efficiency(alpha: float, num_draft_tokens: int) -> float:
    """Return tokens per round if each draft token were accepted independently: (1 - alpha^(k+1)) / (1 - alpha).

    It is summed as 1 + alpha + ... + alpha^k, which is also exact near alpha = 1, where it is k + 1.

    Source:  Leviathan et al. 2023, arXiv 2211.17192, equation 1
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected alpha in 0..1, got {alpha}")
    return sum(alpha**length for length in range(num_draft_tokens + 1))


def predicted_gamma(block_efficiency: float, *, ar_s: float, draft_s: float, verify_s: float, num_draft_tokens: float) -> float:
    """Return gamma of a loop without overhead: block efficiency x AR forward / (k x draft forward + verify forward).

    Args:    seconds of bare forwards: target on 1 token, draft on 1 token, target on k + 1 tokens; num_draft_tokens: of a
             round, on average if it changes
    Source:  Leviathan et al. 2023, arXiv 2211.17192, theorem 3.8, which assumes verify_s = ar_s
    """
    return block_efficiency * ar_s / (num_draft_tokens * draft_s + verify_s)


def propagate_slots(acceptance_T: Sequence[float], num_draft_tokens: int, beta_T: Sequence[float] | None = None) -> SlotTotals:
    """Return the expected counts of a lossless decoder that emits one given output, from the probability of each slot.

    Slots 0..k-1 of a round test a draft token, slot k is the bonus. After an accepted token the next token is in the next
    slot. A recovered or bonus token ends the round, so the next token is in slot 0:

        k = 2:   slot 0 --a--> slot 1 --a--> slot 2 --1--> slot 0,  and slots 0, 1 --(1 - a)--> slot 0

    Args:    acceptance_T: for each token, the probability that in a tested slot it was the accepted draft token rather
             than the recovered one; under the rejection rule min(1, q(x_t) / p(x_t)), x_t sampled from p. The first
             token comes from the prefill, is in no round, and is not included.
             beta_T: for each token, the acceptance probability before it was drawn, sum_v min(p_v, q_v), the mean of
             acceptance_T over x_t. Counts then use it instead, which removes the chance of the single token from them and
             keeps their mean. The slot of the next token still follows the token that was drawn: the next context is the
             one after that token, and accepted tokens lead to other contexts than recovered ones.
    Returns: counts as the decoder makes them; the last round is cut where the output ends
    """
    if num_draft_tokens < 1:
        raise ValueError(f"expected num_draft_tokens >= 1, got {num_draft_tokens}")
    slots = np.zeros(num_draft_tokens + 1)
    slots[0] = 1.0
    tested = accepted = rounds = 0.0
    begins = 1.0  # chance that the token begins a round
    for acceptance, beta in zip(acceptance_T, acceptance_T if beta_T is None else beta_T, strict=True):
        in_test = slots[:-1].sum()
        tested += in_test
        accepted += beta * in_test
        rounds += begins
        begins = 1.0 - beta * in_test
        slots[1:] = acceptance * slots[:-1]
        slots[0] = 1.0 - slots[1:].sum()
    return SlotTotals(float(tested), float(accepted), len(acceptance_T), float(rounds))
