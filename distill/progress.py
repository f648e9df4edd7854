"""Progress of sampling and training on the terminal: what is done, the rate, time left, loss and acceptance so far.

A bar where standard error is a terminal; otherwise a line every 20 seconds and one at the end.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
