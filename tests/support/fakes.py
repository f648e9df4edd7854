"""Backends without models, on a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from bench.protocols import Capabilities
from bench.records.decoding import DecodeRequest, Generation, Round, Scalar


class FakeClock:
    """Seconds that pass only when a test lets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class AsynchronousFake:
    """Queues its work and returns at once; the clock moves only in `synchronize`, as on an asynchronous device.

    An AR token takes `ar_s` seconds, a round `round_s` and gives 2 tokens.
    """

    name = "asynchronous fake"
    capabilities = Capabilities(rules=frozenset({"rejection"}))

    def __init__(
        self,
        clock: FakeClock,
        *,
        ar_s: float = 2.0,
        round_s: float = 3.0,
        slowness: Callable[[int], float] = lambda _: 1.0,
    ) -> None:
        self.clock = clock
        self.ar_s = ar_s
        self.round_s = round_s
        self.slowness = slowness
        self.queued_s = 0.0
        self.calls: list[DecodeRequest] = []

    def generate(self, request: DecodeRequest) -> Generation:
        num_tokens = request.max_new_tokens
        speculative = request.num_draft_tokens > 0
        num_rounds = num_tokens // 2
        work_s = num_rounds * self.round_s if speculative else num_tokens * self.ar_s
        self.queued_s += work_s * self.slowness(len(self.calls))
        self.calls.append(request)
        rounds = (Round(drafted=1, accepted=1, emitted=2),) * num_rounds if speculative else ()
        return Generation(tuple(range(num_tokens)), "length", rounds, first_token_s=None)

    def synchronize(self) -> None:
        self.clock.now += self.queued_s
        self.queued_s = 0.0

    def settings(self) -> Mapping[str, Scalar]:
        return {}

    def close(self) -> None:
        pass


class ConcurrentFake(AsynchronousFake):
    """Takes several requests at once and decodes them one after the other; `late_s` is added to the times that it reports."""

    max_concurrency = 8

    def __init__(self, clock: FakeClock, *, late_s: float = 0.0) -> None:
        super().__init__(clock)
        self.late_s = late_s
        self.together: list[tuple[DecodeRequest, ...]] = []

    def generate_together(self, requests: Sequence[DecodeRequest]) -> tuple[Generation, ...]:
        self.together.append(tuple(requests))
        texts = []
        for request in requests:
            text = self.generate(request)
            texts.append(replace(text, last_token_s=self.queued_s + self.late_s))
        return tuple(texts)
