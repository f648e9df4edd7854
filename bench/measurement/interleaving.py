"""Generations that advance in turns, so that a disturbance of the machine meets all of them alike.

A turn is as many steps or rounds as take TURN_S. They are on the clock of their own generation only. The generation with the
fewest tokens goes next: all of them end at about the same time, unless an end token comes early.

The first step of a turn finds the caches of the processor cold. Where a step takes 4 ms, turns of a single step made AR 6 %
slower. In turns of 50 ms nothing of that is left (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.measurement.turns import Pauses
from bench.protocols import Backend, Clock, Decoding
from bench.records.decoding import Generation

TURN_S = 0.05


@dataclass(frozen=True, slots=True)
class Advanced:
    """A generation that has ended, and when it was advanced."""

    generation: Generation
    spans: Sequence[tuple[float, float]]  # moments of the clock: from and to

    def seconds(self, pauses: Pauses) -> float:
        """Return how long it was advanced, without the pauses of the whole process."""
        return self._until(math.inf, pauses)

    def first_token_s(self, pauses: Pauses) -> float | None:
        """Return how long it was advanced up to its first token; None if the engine does not report that."""
        since_start = self.generation.first_token_s  # the other generations advanced meanwhile
        return None if since_start is None else self._until(self.spans[0][0] + since_start, pauses)

    def _until(self, moment: float, pauses: Pauses) -> float:
        ends = ((start, min(end, moment)) for start, end in self.spans if start < moment)
        return sum(end - start - pauses.between(start, end) for start, end in ends)


def in_turns(backend: Backend, decodings: Mapping[str, Decoding], clock: Clock) -> dict[str, Advanced]:
    """Advance generations until all have ended. Of several with the fewest tokens, the earliest in the mapping goes next."""
    running = dict(decodings)
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
    try:
        while running:
            name = min(running, key=lambda each: running[each].num_tokens)
            backend.synchronize()  # work queued earlier must not count
            start = end = clock()
            has_ended = False
            while not has_ended and end < start + TURN_S:
                has_ended = running[name].advance()
                backend.synchronize()  # `advance` may return before the device has finished
                end = clock()
            spans[name].append((start, end))
            if has_ended:
                del running[name]
    finally:
        for decoding in running.values():
            decoding.close()
    return {name: Advanced(decoding.generation(), spans[name]) for name, decoding in decodings.items()}
