"""Offline against online distillation at equal target tokens, one step at a time, so that their differences can be told apart.

`offline` to `soft` changes the labels (tokens to distributions), `soft` to `online` with lambda 0 the text (fixed to fresh),
lambda 0 to 1 the writer (target to draft). The tables give the change of alpha against the start, and what each kind took.
"""

from collections.abc import Callable, Sequence

from distill.small_matrix import Size

ARMS = ("offline", "soft", "online@0", "online")
KD = {
    "smoke": Size((1.0,), (1.0,), (0,), num_tokens=400, batch_tokens=256, batch_rows=8, max_new_tokens=48),
    "quick": Size(
        (0.0, 1.0), (0.0, 0.5, 1.0), (0,), num_tokens=6_000, batch_tokens=512, batch_rows=64, max_new_tokens=96
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


def test_paradigm(train_and_measure: Callable[[Sequence[str]], None]) -> None:
    train_and_measure(ARMS)
