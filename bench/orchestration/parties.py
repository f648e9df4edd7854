"""Taking turns: processes that measure the same rounds one at a time, so that round i of each is next to round i of the others.

Processes load at the same time. Then one works at a time, until a timed call or the end of its round. In between it waits, and
the coordinator stops it with all its children, because even an idle engine slows the working one. Timed calls of the same
round are made in slices: the sides work by turns of some milliseconds, so that what the machine does within a second
strikes all of them. When a process stood still is told to it behind the call, and is no part of its seconds.
A process that no coordinator started measures on: to pass the turn on costs it the look at one environment variable.
"""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path

import psutil

from bench.measurement.turns import VARIABLE, Call, Message, Round

SLICE_S = 0.05  # on two cores a forward of the embedded target takes about 0.03
END_GRACE_S = 60.0  # to close an engine and leave a journal
_POLL_S = 0.2  # how soon the end of a process is seen whose workers hold its descriptor


class Party:
    """One of the processes, as the coordinator sees it. It is started by its first turn."""

    def __init__(self, name: str, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.command = command
        self.cwd = cwd
        self.env = env
        self.log = log  # what it writes
        self.pauses: list[tuple[float, float]] = []  # that it has not been told
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped: list[psutil.Process] = []  # by us, the process first
        self._stopped_at = 0.0

    @property
    def status(self) -> int | None:
        """Exit status; None before its end."""
        return None if self._process is None else self._process.poll()

    @property
    def is_running(self) -> bool:
        """Started and not ended, whether it waits or works."""
        return self._process is not None and self._process.poll() is None

    def take_turn(self) -> Message | None:
        """Start it or answer it, and wait for what it says next; None: it has ended."""
        if self._process is None:
            self.start()
        else:
            self.answer()
            self.resume()
        return self.wait()

    def answer(self) -> None:
        """Tell it when it was stopped, which is what it waits for."""
        with suppress(OSError):  # it was killed while it waited
            self._connection.send(tuple(self.pauses))
        self.pauses = []

    def suspend(self) -> None:
        """Stop it and all below it, but for what it has stopped itself; returns when they stand still."""
        if self._stopped or not self.is_running:
            return
        with suppress(psutil.NoSuchProcess):
            this = psutil.Process(self._process.pid if self._process else None)
            this.suspend()  # first, so that it starts no more of them
            self._stopped = [this]
            for child in this.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if child.status() != psutil.STATUS_STOPPED:
                        child.suspend()
                        self._stopped.append(child)
        for process in self._stopped:
            _wait_until_still(process)
        self._stopped_at = time.perf_counter()

    def resume(self) -> None:
        if not self._stopped:
            return
        self.pauses.append((self._stopped_at, time.perf_counter()))
        stopped, self._stopped = self._stopped, []
        for process in reversed(stopped):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._signal_all(signal.SIGCONT)
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._signal_all(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _signal_all(self, number: signal.Signals) -> None:
        """To the process and all below it, whoever stopped them."""
        if not self.is_running:
            return
        self._stopped = []
        with suppress(psutil.NoSuchProcess):
            this = psutil.Process(self._process.pid if self._process else None)
            for process in (this, *this.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def wait(self, at_most_s: float | None = None) -> Message | None:
        """What it says next; None: it has ended. Raises TimeoutError where a time is given and it said nothing by then."""
        assert self._process is not None
        deadline = None if at_most_s is None else time.perf_counter() + at_most_s
        while True:
            left = _POLL_S if deadline is None else min(_POLL_S, max(0.0, deadline - time.perf_counter()))
            if self._connection.poll(left):
                try:
                    said: Message = self._connection.recv()
                    return said
                except (EOFError, OSError):
                    self._process.wait()
                    return None
            if self._process.poll() is not None:
                return None
            if deadline is not None and time.perf_counter() >= deadline:
                raise TimeoutError

    def start(self) -> None:
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


def _wait_until_still(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0)


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


def take_turns(
    parties: Sequence[Party], *, seed: int, slice_s: float = SLICE_S
) -> Iterator[tuple[Party, Round | None]]:
    """Give turns until every party has ended. Yields whose turn it was, and the round it finished; None: it has ended.

    Whoever is behind goes first, as after an interruption; those who are equally far go in the order of their round, and
    make their timed calls in slices beside each other. Slices of 0 seconds are whole calls.
    Where calls are in slices all start and load at once.
    """
    places = dict.fromkeys(range(len(parties)), (-1, -1))  # of those that have not ended
    rounds = itertools.count()
    order: tuple[int, ...] = ()
    ordered_at: tuple[int, int] | None = None
    begun: set[int] = set()  # who waits to make a call
    holder: Party | None = None
    first_words = _started(parties) if slice_s else {}
    while places:
        behind = min(places.values())
        waiting = [index for index, place in places.items() if place == behind]
        if len(waiting) == len(places) and behind != ordered_at:
            order, ordered_at = order_of_round(next(rounds), len(parties), seed=seed), behind
        waiting.sort(key=order.index)
        if begun.issuperset(waiting):
            gone = _make_calls([parties[index] for index in waiting], slice_s)
            begun.difference_update(waiting)
            holder = None
            for index in waiting:
                if parties[index] in gone:
                    del places[index]
                    yield parties[index], None
            continue
        turn = next(index for index in waiting if index not in begun)
        party = parties[turn]
        if holder is not None and holder is not party:
            holder.suspend()
        holder = party
        said = first_words.pop(turn) if turn in first_words else party.take_turn()
        if said is Call.LOADED:
            continue
        if said is Call.BEGINS:
            begun.add(turn)
        elif isinstance(said, Round):
            places[turn] = said.place
            yield party, said
        else:
            del places[turn]
            yield party, None


def _started(parties: Sequence[Party]) -> dict[int, Message | None]:
    """What each says first, behind which it stands still."""
    for party in parties:
        party.start()
    said = {}
    for index, party in enumerate(parties):
        said[index] = party.wait()
        party.suspend()
    return said


def _make_calls(parties: Sequence[Party], slice_s: float) -> list[Party]:
    """Let all of these make the call that they wait for, in slices. Afterwards they stand still; returns who has ended."""
    working = list(parties)
    gone: list[Party] = []
    for party in parties:
        party.suspend()
        party.answer()
    for party in itertools.cycle(parties):
        if not working:
            return gone
        if party not in working:
            continue
        party.resume()
        with suppress(TimeoutError):
            said = party.wait(slice_s if slice_s and len(working) > 1 else None)
            working.remove(party)
            if said is None:
                gone.append(party)
        party.suspend()
    return gone


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
