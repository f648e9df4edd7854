"""What the suites of one command share: workloads, progress, the loaded engine, baselines, and which tests are finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.measurement.baseline import Baselines
from bench.measurement.recording import Workload
from bench.options.settings import Settings
from bench.progress import Meter
from bench.protocols import Backend
from bench.records.storage import write_atomically

LOG_FILE = ".unfinished"  # beside the records, one for each command, removed when it ends


class Variant(NamedTuple):
    """Which models and prompts a test measures; each combination is one workload."""

    inflation: str | None  # of the target
    draft: str | None
    prompts: str


class SessionLog:
    """The finished tests of one command (`finished`: their node ids), after which the same command with --resume continues."""

    def __init__(self, folder: Path, command: Sequence[str], *, resume: bool = False) -> None:
        self.command = [word for word in command if word != "--resume"]
        digest = hashlib.sha256(json.dumps(self.command).encode()).hexdigest()[:8]
        self.path = folder / f"{LOG_FILE}-{digest}"
        self.finished: set[str] = set()
        if resume:
            with suppress(OSError, ValueError, KeyError, TypeError):  # no interrupted run, or a damaged log
                found = json.loads(self.path.read_text())
                self.finished = set(found["finished"] if found["command"] == self.command else ())

    def add(self, tests: Iterable[str]) -> None:
        """Note that these tests need not run again."""
        self.finished.update(tests)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps({"command": self.command, "finished": sorted(self.finished)}, indent=1))

    def end(self) -> None:
        """Remove the log: the run ended, and not by an interruption."""
        self.path.unlink(missing_ok=True)


@dataclass(slots=True)
class Session:
    """What one command measures, checked, and what its suites pass on to each other."""

    workloads: Mapping[Settings, Mapping[Variant, Workload]]  # suites with the same settings share them
    meter: Meter
    log: SessionLog
    baselines: Baselines = field(default_factory=dict)
    _engine: tuple[tuple[object, ...], Backend] | None = None

    def engine(self, key: tuple[object, ...], load: Callable[[], Backend]) -> Backend:
        """Return the engine of this key. Close another one first, so that two are never in memory."""
        if self._engine is None or key != self._engine[0]:
            self.close()
            self._engine = key, load()
        return self._engine[1]

    def close(self) -> None:
        if self._engine is not None:
            self._engine[1].close()
        self._engine = None
