"""One draft for all temperatures: the composed recipe against single temperatures, matched ones and mixtures.

All recipes have the same budget. The tables show alpha, its change against the start, and the regret over all decode T.
"""

from distill.runs.small_matrix import SIZES

ARMS = ("offline", "mixture", "weighted", "composed")
KD = SIZES


def test_composed(train_and_measure) -> None:
    train_and_measure(ARMS)
