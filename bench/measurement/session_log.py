"""Which tests of an interrupted pytest run were finished, so that the same command with --resume continues after them.

There is one file per command. It lies beside the records during a run and is removed at its end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from bench.records.storage import write_atomically

FILE = ".unfinished"


class SessionLog:
    """The finished tests of one command; `finished` holds their node ids."""

    def __init__(self, folder: Path, command: Sequence[str], finished: Collection[str]) -> None:
        self.command = [word for word in command if word != "--resume"]
        digest = hashlib.sha256(json.dumps(self.command).encode()).hexdigest()[:8]
        self.path = folder / f"{FILE}-{digest}"
        self.finished = set(finished)

    @classmethod
    def resume(cls, folder: Path, command: Sequence[str]) -> SessionLog:
        """Return the log of the interrupted run of the same command, or an empty log."""
        log = cls(folder, command, ())
        try:
            found = json.loads(log.path.read_text())
            if found["command"] == log.command:
                log.finished = set(found["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no interrupted run, or a damaged log
        return log

    def add(self, tests: Collection[str]) -> None:
        """Note that these tests need not run again."""
        self.finished.update(tests)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps({"command": self.command, "finished": sorted(self.finished)}, indent=1))

    def end(self) -> None:
        """Remove the log: the run ended, and not by an interruption."""
        self.path.unlink(missing_ok=True)
