"""Progress on standard error: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track

T = TypeVar("T")
LINE_EVERY_S = 20.0
DRAW_EVERY_S = 0.1


def with_bar(items: Iterable[T], what: str) -> Iterator[T]:
    """Yield the items, and show a bar while they are consumed, if standard error is a terminal."""
    console = Console(stderr=True)
    items = list(items)
    yield from track(items, what, console=console, transient=True, disable=not console.is_terminal)


@dataclass(eq=False)
class Meter(AbstractContextManager["Meter"]):
    """Shows how far a run or one phase of it has come; `total` counts `unit`.

    It draws only when it is called: a thread that refreshed the bar would disturb timed calls.
    What the first call reports was done before, and does not count toward the rate. Work that is no part of `total` has an
    expected size too, in the same unit: `other` in all, of which `also` reports what is done.
    """

    label: str = ""
    total: int = 0
    _: KW_ONLY
    unit: str = "tokens"
    other: float = 0.0
    uncaptured: Callable[[], AbstractContextManager[object]] = nullcontext  # in it, writing reaches the terminal despite pytest
    console: Console = field(default_factory=lambda: Console(stderr=True))
    done: int = field(default=0, init=False)
    details: str = field(default="", init=False)
    first: int | None = field(default=None, init=False)  # what the first call reported
    other_done: float = field(default=0.0, init=False)
    bar: Progress | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.started = self.shown_at = time.monotonic()

    def step(self, more: int = 1, details: str = "", *, label: str | None = None) -> None:
        """Show that `more` are done than before."""
        self.show(self.done + more, details, label=label)

    def also(self, work: float, details: str = "", *, label: str | None = None) -> None:
        """Show that some of the other work is done."""
        self.other_done += work
        self.show(self.done, details, label=label)

    def skip(self, work: float) -> None:
        """Take back some of the other work: it is not needed."""
        self.other = max(self.other_done, self.other - work)

    def show(self, done: int, details: str = "", *, label: str | None = None) -> None:
        """Show that `done` are done in all, with their rate; `details` follow the counts, and stay until the label changes."""
        now = time.monotonic()
        if details or label not in (None, self.label):
            self.details = details
        self.done, self.label = done, self.label if label is None else label
        if self.first is None:
            self.first, self.started = done, now
        new, elapsed_s = done - self.first, max(now - self.started, 1e-9)  # two calls may come within one tick of the clock
        worked, left = new + self.other_done, self.total - done + max(0.0, self.other - self.other_done)
        rate = new / elapsed_s
        digits = 2 if rate < 1 else int(rate < 10)
        speed = f"{rate:,.{digits}f} {self.unit}/s" if new and self.unit not in ("s", "pairs") else ""
        text = "  ".join(filter(None, (f"{done:,}/{self.total:,} {self.unit}", speed, self.details)))
        finished = done >= self.total and new > 0
        if self.console.is_terminal:
            if self.bar is None or finished or now - self.shown_at > DRAW_EVERY_S:
                self.shown_at = now
                self._draw(text)
        elif finished or now - self.shown_at > LINE_EVERY_S:
            self.shown_at = now
            times = f"{_minutes(elapsed_s)} elapsed, {_minutes(left * elapsed_s / worked)} left" if worked and left else ""
            self.note("  ".join(filter(None, (self.label, text, times))))

    def note(self, text: str) -> None:
        """Print one line, above the bar."""
        with self.uncaptured():
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is; a later call of `show` starts another one."""
        if self.bar is not None:
            with self.uncaptured():
                self.bar.stop()
            self.bar = None

    def _draw(self, text: str) -> None:
        with self.uncaptured():
            if self.bar is None:
                columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
                times = (TimeElapsedColumn(), TimeRemainingColumn())
                self.bar = Progress(*columns, *times, console=self.console, auto_refresh=False)
                self.task = self.bar.add_task(self.label, total=self.total, text=text)
                self.bar.start()
            # The total may have changed: a coordinator learns it from its first process.
            done, total = self.done + self.other_done, self.total + self.other
            self.bar.update(self.task, completed=done, total=total, description=self.label, text=text, refresh=True)

    def __exit__(self, *exception: object) -> None:
        self.close()


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.{minutes < 10:d}f} min"
