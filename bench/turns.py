"""Taking turns: processes that measure the same rounds one at a time, so that round i of each is next to round i of the others.

A process holds the turn from its start (loading, warm-up) to the end of its first round, then for a round each time. In
between it waits, and the coordinator stops it with all its children, because even an idle engine slows the working one.
A process that no coordinator started measures on: to pass the turn on costs it the look at one environment variable.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

VARIABLE = "SPECHEAT_TURNS"  # number of the inherited descriptor on which turns are taken
END_GRACE_S = 60.0  # to close an engine and leave a journal
_POLL_S = 0.2  # how soon the end of a process is seen whose workers hold its descriptor


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


def pass_on(finished: Round) -> None:
    """Let the others measure this round; returns when it is this process's turn again, at once where it is alone.

    Raises: KeyboardInterrupt: the coordinator is gone
    """
    if VARIABLE not in os.environ:
        return
    try:
        _coordinator().send(finished)
        _coordinator().recv()
    except (EOFError, OSError):
        raise KeyboardInterrupt from None


@functools.cache
def _coordinator() -> Connection:
    return Connection(int(os.environ[VARIABLE]))


class Party:
    """One of the processes, as the coordinator sees it. It is started by its first turn."""

    def __init__(self, name: str, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.command = command
        self.cwd = cwd
        self.env = env
        self.log = log  # what it writes
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def status(self) -> int | None:
        """Exit status; None before its end."""
        return None if self._process is None else self._process.poll()

    @property
    def is_running(self) -> bool:
        """Started and not ended, whether it waits or works."""
        return self._process is not None and self._process.poll() is None

    def take_turn(self) -> Round | None:
        """Start or continue it, and wait for the end of its round; None: it has ended."""
        if self._process is None:
            self._start()
        else:
            self._signal(signal.SIGCONT)
            with suppress(OSError):  # it was killed while it waited
                self._connection.send(None)
        return self._wait()

    def suspend(self) -> None:
        self._signal(signal.SIGSTOP)

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._signal(signal.SIGCONT)
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with self.log.open("ab") as log, theirs:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env={**self.env, VARIABLE: str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                # A group of its own, so that Ctrl-C reaches the coordinator alone. In the same session: should the
                # coordinator be killed, the kernel ends what was stopped.
                process_group=0,
            )

    def _wait(self) -> Round | None:
        assert self._process is not None
        while True:
            if self._connection.poll(_POLL_S):
                try:
                    finished: Round = self._connection.recv()
                    return finished
                except (EOFError, OSError):
                    self._process.wait()
                    return None
            if self._process.poll() is not None:
                return None

    def _signal(self, number: signal.Signals) -> None:
        """To the process and all below it."""
        if not self.is_running:
            return
        with suppress(psutil.NoSuchProcess):
            this = psutil.Process(self._process.pid if self._process else None)
            if number == signal.SIGSTOP:
                this.send_signal(number)  # first, so that it starts no more of them
            for process in (this, *this.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)


def order_of_round(index: int, num_parties: int, *, seed: int) -> tuple[int, ...]:
    """Who goes first, second, ... in a round: of two A B, B A, A B, ... from a seeded start.

    Of more, each takes each place once in as many rounds as there are parties, forwards and then backwards.
    """
    order = list(range(num_parties))
    random.Random(seed).shuffle(order)
    repeat, shift = divmod(index, num_parties)
    if repeat % 2 and num_parties > 2:
        order.reverse()
    return tuple(order[shift:] + order[:shift])


def take_turns(parties: Sequence[Party], *, seed: int) -> Iterator[tuple[Party, Round | None]]:
    """Give turns until every party has ended. Yields whose turn it was, and the round it finished; None: it has ended.

    Whoever is behind goes first, as after an interruption; those who are equally far go in the order of their round.
    """
    places = dict.fromkeys(range(len(parties)), (-1, -1))  # of those that have not ended
    rounds = itertools.count()
    order: tuple[int, ...] = ()
    holder: Party | None = None
    while places:
        behind = min(places.values())
        waiting = [index for index, place in places.items() if place == behind]
        if len(waiting) == len(places):
            order = order_of_round(next(rounds), len(parties), seed=seed)
        turn = next(index for index in order if index in waiting)
        party = parties[turn]
        if holder is not None and holder is not party:
            holder.suspend()
        holder = party
        finished = party.take_turn()
        if finished is None:
            del places[turn]
        else:
            places[turn] = finished.place
        yield party, finished


@contextmanager
def ended_afterwards(parties: Collection[Party], *, grace_s: float = END_GRACE_S) -> Iterator[None]:
    """Nobody outlives this: who has not ended by then is interrupted, which leaves journals, and after a while killed."""
    try:
        yield
    finally:
        try:
            for party in parties:
                party.interrupt()
            deadline = time.monotonic() + grace_s
            while any(party.is_running for party in parties) and time.monotonic() < deadline:
                time.sleep(_POLL_S / 4)
        finally:
            for party in parties:
                party.kill()
