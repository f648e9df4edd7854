"""Progress of sampling and training on the terminal: what is done, tokens/s, time left, loss and acceptance so far.

A bar where standard error is a terminal; otherwise a line every 20 seconds.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 20.0


class Meter:
    """Shows one phase of a run. `total` counts answer tokens, of which `done` were there before."""

    def __init__(self, phase: str, total: int, *, done: int = 0, console: Console | None = None) -> None:
        self.phase, self.total = phase, total
        self.console = console or Console(stderr=True)
        self.first = done
        self.started = self.last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(phase, total=total, completed=done, said="")
        self.bar.start()

    def show(self, done: int, said: str = "") -> None:
        """`done` tokens so far; `said` is what else there is to know."""
        rate = (done - self.first) / max(time.monotonic() - self.started, 1e-9)
        said = f"{done:,}/{self.total:,} tokens  {rate:,.0f} tokens/s  {said}"
        self.bar.update(self.task, completed=done, said=said)
        if not self.console.is_terminal and (time.monotonic() - self.last_line > LINE_EVERY_S or done >= self.total):
            self.last_line = time.monotonic()
            left = f"{max(self.total - done, 0) / rate / 60:.0f} min left" if rate else ""
            self.note(f"{self.phase}  {said}  {left}")

    def note(self, text: str) -> None:
        """One line for the reader, above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.bar.stop()
