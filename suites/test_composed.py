"""One draft for all temperatures: the composed recipe against single temperatures, matched ones and mixtures.

All at the same budget. The tables give alpha, its change against the start, and the regret over the whole range of decode T.
"""

from collections.abc import Callable, Sequence

from distill.small_matrix import Size

ARMS = ("offline", "mixture", "weighted", "composed")
KD = {
    "smoke": Size((1.0,), (1.0,), (0,), num_tokens=400, batch_tokens=256, batch_rows=8, max_new_tokens=48),
    "quick": Size(
        (0.0, 0.5, 1.0), (0.0, 0.5, 1.0), (0,), num_tokens=6_000, batch_tokens=512, batch_rows=64, max_new_tokens=96
    ),
    "paper": Size(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        tuple(step / 10 for step in range(11)),
        (0, 1, 2),
        num_tokens=52_000,
        batch_tokens=1024,
        batch_rows=256,
        max_new_tokens=128,
    ),
}


def test_composed(train_and_measure: Callable[[Sequence[str]], None]) -> None:
    train_and_measure(ARMS)
