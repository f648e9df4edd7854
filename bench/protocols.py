"""What an engine must offer to be measured, and what it may offer besides.

A backend is one class with six members. Autoregressive and speculative decoding are the same call, so the baseline is
never another code path. Tokenisation is outside: ids in, ids out. Extra abilities are separate protocols, found with
isinstance, so a small backend stays small.
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
    schedules: bool = False  # decode T may change within a generation
    adaptive_draft_length: bool = False  # k may change from round to round
    seeded: bool = True  # same request, same ids
    reports_rounds: bool = True
    num_resident: int | None = None  # pairs of rule and draft length that stay loaded at the same time; None: all
    gaps: Mapping[str, str] | None = None  # conformance check -> why this engine cannot pass it


@runtime_checkable
class Backend(Protocol):
    """An engine under measurement, holding one loaded model pair."""

    name: str
    capabilities: Capabilities

    def generate(self, request: DecodeRequest) -> Generation:
        """Decode one request. It may return before asynchronous device work ends; `synchronize` waits for that."""

    def synchronize(self) -> None:
        """Wait until all requested work has finished."""

    def settings(self) -> Mapping[str, Scalar]:
        """Return versions and options, for the record."""

    def close(self) -> None:
        """Free the models' memory. The backend is not used afterwards."""


@runtime_checkable
class Replayable(Protocol):
    """Can repeat a request with instruments: the same seed must give the same ids."""

    def replay(self, request: DecodeRequest) -> Replay: ...


@runtime_checkable
class ForwardTimed(Protocol):
    """Can time its bare forwards (one model call each, synchronised), for the predicted gamma."""

    def time_forwards(self, request: DecodeRequest, *, context_length: int, samples: int) -> tuple[ForwardSeconds, ...]:
        """Time `samples` forwards of each kind, alternating, after a context of `context_length` tokens."""


@runtime_checkable
class NativeBaseline(Protocol):
    """Uses an engine that also has a plain decode, with which the AR arm is compared."""

    def generate_natively(self, request: DecodeRequest) -> Generation: ...


class Decoding(Protocol):
    """One generation in progress. Others of the same engine may be in progress too, and none sees the others."""

    @property
    def num_tokens(self) -> int:
        """The new tokens so far."""
        ...

    def advance(self) -> bool:
        """Prefill on the first call, then do one step or one round per call. Return whether it has ended."""
        ...

    def generation(self) -> Generation:
        """Return what was generated, once it has ended. Its `first_token_s` counts from the first `advance`."""
        ...

    def close(self) -> None:
        """Give up a generation that has not ended. Does nothing to one that has."""
        ...


@runtime_checkable
class Steppable(Protocol):
    """Can hold several generations in progress and advance each on demand, so that arms share the noise of the machine."""

    def start(self, request: DecodeRequest) -> Decoding:
        """Begin a generation without computing anything; it gives what `generate` gives for the same request."""
        ...


@runtime_checkable
class SteppableBaseline(Protocol):
    """Can also advance the engine's own plain decode on demand."""

    def start_natively(self, request: DecodeRequest) -> Decoding:
        """Begin a generation; it gives what `generate_natively` gives for the same request."""
        ...


@runtime_checkable
class Concurrent(Protocol):
    """Can decode several requests at once, for gamma under load."""

    max_concurrency: int

    def generate_together(self, requests: Sequence[DecodeRequest]) -> tuple[Generation, ...]:
        """Decode the requests, all submitted at the same moment; each Generation has the time of its last token."""


class BackendFactory(Protocol):
    """What an entry point of the group `specheat.backends` names: it loads a pair on a device.

    Raises: BackendUnavailable: a package, device or model is missing
            ValueError: an unknown option, or a wrong value
    """

    def __call__(self, pair: ModelPair, *, device: str, options: Mapping[str, str]) -> Backend: ...
