"""What an engine must offer to be measured, and what it may offer besides.

A backend is one class with six members. Autoregressive and speculative decoding are the same call, so the baseline is
never another code path. Tokenisation is outside: ids in, ids out. Extra abilities are separate protocols, looked for
with isinstance, so a small backend stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bench.records.decoding import DecodeRequest, ForwardSeconds, Generation, ModelPair, Replay, Scalar

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. A gap is declared here, not discovered in a table."""

    rules: frozenset[str]
    families: frozenset[str] = frozenset({"causal"})
    max_temperature: float = float("inf")
    draft_temperature: bool = True  # draft T may differ from decode T
    truncation: bool = True  # top-k and top-p
    schedules: bool = False  # decode T may change within a text
    adaptive_draft_length: bool = False  # k may change from round to round
    seeded: bool = True  # same request, same ids
    reports_rounds: bool = True
    gaps: Mapping[str, str] | None = None  # conformance check -> why this engine cannot pass it


@runtime_checkable
class Backend(Protocol):
    """An engine under measurement, holding one loaded model pair."""

    name: str
    capabilities: Capabilities

    def generate(self, request: DecodeRequest) -> Generation:
        """Decode one request. May return before asynchronous device work ends; `synchronize` waits for it."""
        ...

    def synchronize(self) -> None:
        """Wait until everything asked of the engine has finished."""
        ...

    def settings(self) -> Mapping[str, Scalar]:
        """Versions and options that belong in the record."""
        ...

    def close(self) -> None:
        """Free the models' memory. The backend is not used afterwards."""
        ...


@runtime_checkable
class Replayable(Protocol):
    """Can repeat a request with the instruments on: the same seed must give the same ids."""

    def replay(self, request: DecodeRequest) -> Replay: ...


@runtime_checkable
class ForwardTimed(Protocol):
    """Can time its bare forwards (one model call each, synchronised), for the predicted gamma."""

    def time_forwards(self, request: DecodeRequest, *, context_length: int, samples: int) -> tuple[ForwardSeconds, ...]:
        """`samples` times one forward of each kind, alternating, behind a context of `context_length` tokens."""
        ...


@runtime_checkable
class NativeBaseline(Protocol):
    """Stands on an engine that has a plain decode of its own, against which the AR arm must hold."""

    def generate_natively(self, request: DecodeRequest) -> Generation: ...


@runtime_checkable
class Concurrent(Protocol):
    """Can decode several texts at once, for gamma under load."""

    max_concurrency: int

    def generate_together(self, requests: Sequence[DecodeRequest]) -> tuple[Generation, ...]:
        """Decode the requests, all given at the same moment; each Generation says when its last token came."""
        ...


class BackendFactory(Protocol):
    """What an entry point of the group `specheat.backends` names: loads a pair on a device.

    Raises BackendUnavailable where a package, device or model is missing, ValueError for options it does not know.
    """

    def __call__(self, pair: ModelPair, *, device: str, options: Mapping[str, str]) -> Backend: ...
