"""Which tests of an interrupted pytest run were finished, so that the same command with --resume goes on behind them.

The file, one a command, lies beside the records while a run is under way and is removed when it has ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from bench.records.files import write_atomically

FILE = ".unfinished"


class SessionLog:
    """Finished tests of one command; `finished` holds their node ids."""

    def __init__(self, folder: Path, command: Sequence[str], finished: Collection[str]) -> None:
        self.command = [word for word in command if word != "--resume"]
        digest = hashlib.sha256(json.dumps(self.command).encode()).hexdigest()[:8]
        self.path = folder / f"{FILE}-{digest}"
        self.finished = set(finished)

    @classmethod
    def resume(cls, folder: Path, command: Sequence[str]) -> SessionLog:
        """That of the interrupted run of the same command; an empty one where there is none."""
        log = cls(folder, command, ())
        try:
            found = json.loads(log.path.read_text())
            if found["command"] == log.command:
                log.finished = set(found["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing to go on from
        return log

    def add(self, tests: Collection[str]) -> None:
        """These tests need not run again."""
        self.finished.update(tests)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps({"command": self.command, "finished": sorted(self.finished)}, indent=1))

    def end(self) -> None:
        """The run ended, in whatever way but an interruption."""
        self.path.unlink(missing_ok=True)
