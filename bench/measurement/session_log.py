"""Which tests of an interrupted pytest run were finished, so that the same command with --resume continues after them.

There is one file per command. It lies beside the records during a run and is removed at its end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.records.storage import write_atomically

FILE = ".unfinished"


class SessionLog:
    """The finished tests of one command; `finished` holds their node ids."""

    def __init__(self, folder: Path, command: Sequence[str], *, resume: bool = False) -> None:
        self.command = [word for word in command if word != "--resume"]
        digest = hashlib.sha256(json.dumps(self.command).encode()).hexdigest()[:8]
        self.path = folder / f"{FILE}-{digest}"
        self.finished: set[str] = set(self._stored()) if resume else set()

    def _stored(self) -> list[str]:
        """Return what an interrupted run of the same command had finished."""
        try:
            found = json.loads(self.path.read_text())
            return list(found["finished"]) if found["command"] == self.command else []
        except (OSError, ValueError, KeyError, TypeError):
            return []  # no interrupted run, or a damaged log

    def add(self, tests: Iterable[str]) -> None:
        """Note that these tests need not run again."""
        self.finished.update(tests)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps({"command": self.command, "finished": sorted(self.finished)}, indent=1))

    def end(self) -> None:
        """Remove the log: the run ended, and not by an interruption."""
        self.path.unlink(missing_ok=True)
