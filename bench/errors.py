"""Exit codes, and the errors that a command reports in one line."""

from __future__ import annotations

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class BackendUnavailable(Exception):
    """The package, the device or the model a backend needs is missing. The message says what to do; suites skip with it."""


class IncomparableResults(Exception):
    """Two results were measured under different conditions; the message lists the keys that differ."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its type if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(output: str) -> str:
    """Return the last line of what a program wrote, where programs report why they failed."""
    return (output.strip().splitlines() or ["it wrote nothing"])[-1].strip()
