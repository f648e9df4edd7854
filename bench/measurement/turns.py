"""Taking turns with other processes that measure the same rounds, for `specheat across`.

Without a coordinator (`bench.orchestration.parties`), these functions do nothing. With one, every call sends it a message and
waits for its answer, which comes when it is this process's turn again.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
VARIABLE = "SPECHEAT_TURNS"  # in the environment: number of the inherited descriptor that leads to the coordinator


@dataclass(frozen=True, slots=True)
class Turn:
    """What a process reports after every round: what it measured and how far it has come, resumed pairs included."""

    label: str
    pairs: int  # of all its cells
    triples: int  # of the record that it is writing
    total: int  # pairs at the end

    @property
    def place(self) -> tuple[int, int]:
        """Return a pair that is equal where two processes have come equally far, and grows with every round."""
        return self.pairs, self.triples


class Call(enum.Enum):
    """What a process reports before its first measurement, and around a timed call."""

    LOADED = enum.auto()
    BEGINS = enum.auto()
    ENDED = enum.auto()


Message = Turn | Call
Intervals = tuple[tuple[float, float], ...]  # from and to, in seconds of time.perf_counter, which all processes share


@dataclass(slots=True)
class Pauses:
    """When this process was stopped in the middle of a call."""

    intervals: Intervals = ()

    def between(self, start: float, end: float) -> float:
        """Return the seconds of them that lie between two moments."""
        return sum(max(0.0, min(last, end) - max(first, start)) for first, last in self.intervals)


@contextmanager
def side_by_side() -> Iterator[Pauses]:
    """Surround a timed call, which the other processes make in alternating slices.

    Yields: the pauses of this process, filled in when the call has ended
    Raises: KeyboardInterrupt: the coordinator is gone
    """
    pauses = Pauses()
    if not are_taken():
        yield pauses
        return
    _tell(Call.BEGINS)
    try:
        yield pauses
    except Exception:  # of the engine; after Ctrl-C the coordinator would not answer
        _tell(Call.ENDED)
        raise
    pauses.intervals = _tell(Call.ENDED)


@functools.cache
def wait_for_others() -> None:
    """Wait once, before the first measurement, until all processes have loaded their models."""
    if are_taken():
        _tell(Call.LOADED)


def are_taken() -> bool:
    """Return whether other processes take turns with this one."""
    return VARIABLE in os.environ


def pass_on(finished: Turn) -> None:
    """Let the others measure this round. Return when it is this process's turn again, immediately without others."""
    if are_taken():
        _tell(finished)


def _tell(message: Message) -> Intervals:
    """Send a message and return the answer, once it is this process's turn again. Without an answer, end as after Ctrl-C."""
    try:
        _coordinator().send(message)
        return _coordinator().recv()
    except (EOFError, OSError):
        raise KeyboardInterrupt from None


@functools.cache
def _coordinator() -> Connection:
    """Return the connection, and let the kernel kill this process with the coordinator.

    A stopped process does not see that its connection is closed. The hang-up that the kernel sends to stopped orphans misses a
    process that was told to stop but had not yet stopped when the coordinator was killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return Connection(int(os.environ[VARIABLE]))
