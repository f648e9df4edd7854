"""Offline against online distillation, one step at a time, so that each difference is visible alone.

At equal tokens, `offline` to `soft` changes the labels (tokens to distributions), `soft` to `online` with lambda 0 the text
(fixed to fresh), and lambda 0 to 1 the writer (target to draft). At equal seconds, `offline` and `soft` get as many tokens as
`online` (lambda 1) would take the time for. The tables show the change of alpha against the start, tokens and seconds.
"""

from dataclasses import replace

from distill.runs.small_matrix import SIZES

ARMS = ("offline", "soft", "online@0", "online", "offline=online", "soft=online")
KD = {**SIZES, "quick": replace(SIZES["quick"], kd_temperatures=(0.0, 1.0))}


def test_paradigm(train_and_measure) -> None:
    train_and_measure(ARMS)
