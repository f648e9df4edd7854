"""Progress of a suite on the terminal: the current cell, gamma so far, pairs done, time left.

A bar where standard error is a terminal; otherwise a line whenever a cell ends and at most every 20 seconds in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_T = TypeVar("_T")


def with_bar(items: Iterable[_T], what: str) -> Iterator[_T]:
    """The items, with a bar on standard error while they are gone through, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    items = list(items)
    yield from track(items, what, console=console, transient=True, disable=not console.is_terminal)


LINE_EVERY_S = 20.0


class Uncaptured(Protocol):
    """Gives a context in which writing reaches the terminal (pytest captures it otherwise)."""

    def __call__(self) -> AbstractContextManager[object]: ...


class Reporter:
    """Shows how far a run has come. `total` counts pairs over all cells of the run, or another unit."""

    def __init__(
        self,
        total: int,
        *,
        unit: str = "pairs",
        uncaptured: Uncaptured = nullcontext,
        console: Console | None = None,
    ) -> None:
        self.unit = unit
        self.uncaptured = uncaptured
        self.console = console or Console(stderr=True)
        self.done = 0
        self.total = total
        self.started = time.monotonic()
        self.last_line = self.started
        self.bar: Progress | None = None

    def step(self, label: str, gamma: float | None, *, pairs: int = 1) -> None:
        """`pairs` more are measured; `gamma` is the current cell's ratio of totals so far."""
        self.done += pairs
        so_far = "" if gamma is None else f"gamma {gamma:.2f}"
        with self.uncaptured():
            if self.console.is_terminal:
                self._draw(label, so_far)
            elif time.monotonic() - self.last_line > LINE_EVERY_S or self.done == self.total:
                self.last_line = time.monotonic()
                self.note(f"{self.done}/{self.total} {self.unit}  {label}  {so_far}  {self._left()}")

    def note(self, text: str) -> None:
        """One line for the reader, above the bar."""
        with self.uncaptured():
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        if not self.done:
            return ""
        seconds = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        return f"{seconds / 60:.1f} min left"

    def _draw(self, label: str, so_far: str) -> None:
        if self.bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[gamma]}"),
            )
            self.bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, auto_refresh=False
            )
            self.task = self.bar.add_task("", total=self.total, gamma="")
            self.bar.start()
        self.bar.update(self.task, completed=self.done, description=label, gamma=so_far, refresh=True)

    def close(self) -> None:
        if self.bar is not None:
            with self.uncaptured():
                self.bar.stop()
            self.bar = None  # a stopped one shows nothing more


LINE_EVERY_S = 20.0


class Meter:
    """Shows one phase of a run; `total` counts `unit`. What the first call says was there before, and gives no rate."""

    def __init__(self, phase: str, total: int, *, unit: str = "tokens", console: Console | None = None) -> None:
        self.phase, self.total, self.unit = phase, total, unit
        self.console = console or Console(stderr=True)
        self.first: int | None = None
        self.started = self.last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(phase, total=total, said="")

    def show(self, done: int, said: str = "") -> None:
        """`done` so far; `said` is what else there is to know."""
        if self.first is None:
            self.first, self.started = done, time.monotonic()
        new = done - self.first
        rate = new / max(time.monotonic() - self.started, 1e-9)
        parts = [f"{done:,}/{self.total:,} {self.unit}", f"{rate:,.{rate < 10:d}f} {self.unit}/s" if new else "", said]
        shown = "  ".join(part for part in parts if part)
        self.bar.update(self.task, completed=done, said=shown)
        finished = done >= self.total and new > 0
        if not self.console.is_terminal and (finished or time.monotonic() - self.last_line > LINE_EVERY_S):
            self.last_line = time.monotonic()
            left = f"  {(self.total - done) / rate / 60:.0f} min left" if new and not finished else ""
            self.note(f"{self.phase}  {shown}{left}")

    def note(self, text: str) -> None:
        """One line for the reader, above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Meter:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
