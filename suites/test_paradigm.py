"""Offline against online distillation at equal target tokens, one step at a time, so that their differences can be told apart.

`offline` to `soft` changes the labels (tokens to distributions), `soft` to `online` with lambda 0 the text (fixed to fresh),
lambda 0 to 1 the writer (target to draft). The tables give the change of alpha against the start; seconds are in the record.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from distill.small_matrix import SIZES

ARMS = ("offline", "soft", "online@0", "online")
KD = {**SIZES, "quick": replace(SIZES["quick"], kd_temperatures=(0.0, 1.0))}


def test_paradigm(train_and_measure: Callable[[Sequence[str]], None]) -> None:
    train_and_measure(ARMS)
