"""Taking turns: processes measure the same rounds one at a time, so that round i of each runs close to round i of the others.

Only one process works at a time, until a timed call or the end of its round. Then it waits, and the coordinator stops it with
all its children, because even an idle engine slows down the working one. The timed calls of one round run in slices: the
processes alternate every few milliseconds, so that a disturbance of the machine affects all of them. After a call each process
receives the intervals in which it was stopped, and subtracts them from its seconds.
"""

from __future__ import annotations

import itertools
import math
import random
import signal
import subprocess
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path

import psutil

from bench.measurement.turns import VARIABLE, Call, Message, Turn

SLICE_S = 0.05  # on two cores a forward of the embedded target takes about 0.03
_POLL_S = 0.2  # how often to check for the end of a process whose workers keep its descriptor open


@dataclass(eq=False)
class Party:
    """One of the processes, as the coordinator sees it. Its first turn starts it."""

    name: str
    command: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    log: Path  # receives its output
    process: psutil.Popen | None = None
    pauses: list[tuple[float, float]] = field(default_factory=list)  # since the last answer
    stopped: list[psutil.Process] = field(default_factory=list)  # by us, the process itself first
    stopped_at: float = 0.0

    @property
    def status(self) -> int | None:
        """Return the exit status; None before the start and until the end."""
        return None if self.process is None else self.process.poll()

    def start(self) -> None:
        """Start the process with one end of a pipe."""
        self._connection, theirs = Pipe()
        with self.log.open("ab") as log, theirs:
            self.process = psutil.Popen(
                self.command,
                cwd=self.cwd,
                env={**self.env, VARIABLE: str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                # A separate group, so that Ctrl-C reaches only the coordinator. The session is the same, so that the
                # kernel ends stopped processes if the coordinator is killed.
                process_group=0,
            )

    def take_turn(self) -> Message | None:
        """Start the process or answer it, and wait for its next message; None: it has ended."""
        if self.process is None:
            self.start()
        else:
            self.answer()
            self.resume()
        return self.wait()

    def answer(self) -> None:
        """Send the pauses. The process waits for this answer before it continues."""
        with suppress(OSError):  # it was killed while it waited
            self._connection.send(tuple(self.pauses))
        self.pauses = []

    def wait(self, at_most_s: float = math.inf) -> Message | None:
        """Wait for the next message, at most so long, else raise TimeoutError; None: the process has ended."""
        assert self.process is not None
        deadline = time.perf_counter() + at_most_s
        while not self._connection.poll(min(_POLL_S, max(0.0, deadline - time.perf_counter()))):
            if self.process.poll() is not None:
                return None
            if time.perf_counter() >= deadline:
                raise TimeoutError
        try:
            return self._connection.recv()
        except (EOFError, OSError):  # the process has closed its end
            self.process.wait()
            return None

    def suspend(self) -> None:
        """Stop the process and all below it, and return when they stand still."""
        if self.stopped or self.process is None or self.status is not None:
            return
        with suppress(psutil.NoSuchProcess):
            self.process.suspend()  # before its children are listed, so that it starts no more of them
            self.stopped = [self.process]
            for child in self.process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if child.status() != psutil.STATUS_STOPPED:  # what the process stopped itself must stay stopped later
                        child.suspend()
                        self.stopped.append(child)
        for process in self.stopped:
            # A signal takes effect a moment later. A slice of another party must not begin before that.
            with suppress(psutil.NoSuchProcess):
                while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    time.sleep(0)
        self.stopped_at = time.perf_counter()

    def resume(self) -> None:
        """Continue what `suspend` stopped, children first, and note the pause."""
        if self.stopped:
            self.pauses.append((self.stopped_at, time.perf_counter()))
        for process in reversed(self.stopped):
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self.stopped = []

    def interrupt(self) -> None:
        """Interrupt the process like Ctrl-C."""
        self._signal_all(signal.SIGCONT)  # a stopped process would not see the interruption
        if self.process is not None:
            with suppress(psutil.NoSuchProcess):
                self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill the process and all below it."""
        self._signal_all(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def _signal_all(self, number: signal.Signals) -> None:
        self.stopped = []
        if self.process is not None:
            with suppress(psutil.NoSuchProcess):
                for process in (self.process, *self.process.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(number)


def order_of_round(index: int, num_parties: int, *, seed: int) -> tuple[int, ...]:
    """Return which party goes first, second, ... in a round.

    Two parties alternate, A B, B A, A B, ..., from a seeded start. With more, each takes each place once in as many rounds as
    there are parties, first with the order rotating forwards and then reversed.
    """
    order = list(range(num_parties))
    random.Random(seed).shuffle(order)
    repeat, shift = divmod(index, num_parties)
    if repeat % 2 and num_parties > 2:
        order.reverse()
    return tuple(order[shift:] + order[:shift])


def take_turns(parties: Sequence[Party], *, seed: int, slice_s: float = SLICE_S) -> Iterator[tuple[Party, Turn | None]]:
    """Give turns until every party has ended. Yield whose turn it was and its report; None: it has ended.

    The party with the fewest measurements goes first, as after an interruption. Parties that are equally far go in the order
    of their round, and make their timed calls together, in slices. Slices of 0 seconds are whole calls.
    """
    places = dict.fromkeys(parties, (-1, -1))  # how far each party has come that has not ended
    round_numbers = itertools.count()
    order: list[Party] = []
    ordered_at: tuple[int, int] | None = None
    at_call: set[Party] = set()  # those that wait to make a timed call
    working: Party | None = None
    first_messages: dict[Party, Message | None] = {}
    if slice_s:  # all parties load at the same time; without slices, each loads in its first turn
        for party in parties:
            party.start()
        for party in parties:
            first_messages[party] = party.wait()
            party.suspend()
    while places:
        least = min(places.values())
        waiting = [party for party, place in places.items() if place == least]
        if len(waiting) == len(places) and least != ordered_at:
            order = [parties[index] for index in order_of_round(next(round_numbers), len(parties), seed=seed)]
            ordered_at = least
        waiting.sort(key=order.index)
        if at_call.issuperset(waiting):
            ended = _make_calls(waiting, slice_s)
            at_call.difference_update(waiting)
            working = None  # all of them stand still
            for party in ended:
                del places[party]
                yield party, None
            continue
        party = next(each for each in waiting if each not in at_call)
        if working is not None and working is not party:
            working.suspend()
        working = party
        message = first_messages.pop(party) if party in first_messages else party.take_turn()
        if message is Call.BEGINS:
            at_call.add(party)
        elif isinstance(message, Turn):
            places[party] = message.place
            yield party, message
        elif message is None:
            del places[party]
            yield party, None


def _make_calls(parties: Sequence[Party], slice_s: float) -> list[Party]:
    """Let all parties make the call that they wait for, in slices. Afterwards they stand still; returns those that ended."""
    for party in parties:
        party.suspend()
        party.answer()  # it stands still, so its call begins in its first slice
    ended = []
    queue = deque(parties)
    while queue:
        party = queue.popleft()
        party.resume()
        try:
            # The last one left has nobody to alternate with.
            if party.wait(slice_s if slice_s and queue else math.inf) is None:
                ended.append(party)
        except TimeoutError:
            queue.append(party)
        party.suspend()
    return ended


@contextmanager
def ended_afterwards(parties: Collection[Party], *, grace_s: float = 60.0) -> Iterator[None]:
    """End all parties at the end of the context: interrupt them, so that they leave their journals, and later kill them.

    Args:    grace_s: time in which all together may close their engines and write their journals
    """
    try:
        yield
    finally:
        try:
            for party in parties:
                party.interrupt()
            psutil.wait_procs([party.process for party in parties if party.process is not None], timeout=grace_s)
        finally:
            for party in parties:
                party.kill()
