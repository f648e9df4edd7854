"""Progress of a suite on the terminal: the current cell, gamma so far, pairs done, time left.

A bar where standard error is a terminal; otherwise a line whenever a cell ends and at most every 20 seconds in between.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
