"""Generations that advance in turns, a round at a time, so that a disturbance of the machine meets all of them alike.

Only the step of the moment is on the clock, of its own generation. The generation with the fewest tokens goes next: all of them
end at about the same time, unless an end token comes early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.measurement.turns import Pauses
from bench.protocols import Backend, Clock, Decoding
from bench.records.decoding import Generation


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
            start = clock()
            has_ended = running[name].advance()
            backend.synchronize()  # `advance` may return before the device has finished
            spans[name].append((start, clock()))
            if has_ended:
                del running[name]
    finally:
        for decoding in running.values():
            decoding.close()
    return {name: Advanced(decoding.generation(), spans[name]) for name, decoding in decodings.items()}
