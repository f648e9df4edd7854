"""TODO: purpose."""

from __future__ import annotations

import enum
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

VARIABLE = "SPECHEAT_TURNS"  # number of the inherited descriptor on which turns are taken


@dataclass(frozen=True, slots=True)
class Round:
    """What a process says behind every round: what it measured, and how far it has come, with what it resumed."""

    label: str
    pairs: int  # of all its cells
    triples: int  # of the record that it writes now
    total: int  # pairs in the end

    @property
    def place(self) -> tuple[int, int]:
        """Equal where two processes have come equally far; ascends with every round."""
        return self.pairs, self.triples


class Call(enum.Enum):
    """What a process says before its first measurement, and around a timed call."""

    LOADED = enum.auto()
    BEGINS = enum.auto()
    ENDED = enum.auto()


Message = Round | Call
Intervals = tuple[tuple[float, float], ...]  # from and to, in seconds of time.perf_counter, which processes share


@dataclass(slots=True)
class Pauses:
    """When this process was stopped in the middle of a call."""

    intervals: Intervals = field(default=())

    def between(self, start: float, end: float) -> float:
        """Seconds of them."""
        return sum(max(0.0, min(last, end) - max(first, start)) for first, last in self.intervals)


@contextmanager
def side_by_side() -> Iterator[Pauses]:
    """Around a timed call, which others that measure the same round make in slices beside it. Filled at the end.

    Raises: KeyboardInterrupt: the coordinator is gone
    """
    pauses = Pauses()
    if not are_taken():
        yield pauses
        return
    _tell(Call.BEGINS)
    try:
        yield pauses
    except Exception:  # of the engine; to Ctrl-C nobody would answer
        _tell(Call.ENDED)
        raise
    pauses.intervals = _tell(Call.ENDED)


@functools.cache
def wait_for_others() -> None:
    """Before the first measurement, once: others may still load, which sides do at the same time.

    Raises: KeyboardInterrupt: the coordinator is gone
    """
    if are_taken():
        _tell(Call.LOADED)


def are_taken() -> bool:
    """Whether other processes measure in turns with this one."""
    return VARIABLE in os.environ


def pass_on(finished: Round) -> None:
    """Let the others measure this round; returns when it is this process's turn again, at once where it is alone.

    Raises: KeyboardInterrupt: the coordinator is gone
    """
    if are_taken():
        _tell(finished)


def _tell(message: Message) -> Intervals:
    """What the coordinator answers, when it is this process's turn again."""
    try:
        _coordinator().send(message)
        pauses: Intervals = _coordinator().recv()
        return pauses
    except (EOFError, OSError):
        raise KeyboardInterrupt from None


@functools.cache
def _coordinator() -> Connection:
    return Connection(int(os.environ[VARIABLE]))
