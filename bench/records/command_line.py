"""Command lines as records store them: a list of arguments, which a shell can take again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def own_words() -> tuple[str, ...]:
    """Return the command of this process, absolute paths without their folder."""
    program, *rest = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv)
    if program == "__main__.py":
        return ("python", "-m", Path(sys.argv[0]).parent.name, *rest)
    return (program, *rest)


def stored_words(stored: str | Sequence[str]) -> tuple[str, ...]:
    """Return the arguments of a stored command. Older records hold them as one string."""
    if not isinstance(stored, str):
        return tuple(stored)
    try:
        program, *rest = shlex.split(stored) or [""]
    except ValueError:  # a lone quote, because the arguments were joined without quoting
        program, *rest = stored.split()
    # What a run by `python -m pytest` once called itself.
    return ("python", "-m", "pytest", *rest) if program.endswith("__main__.py") else (program, *rest)


def shell_text(words: Sequence[str]) -> str:
    """Return the command as a shell takes it."""
    return shlex.join(words)
