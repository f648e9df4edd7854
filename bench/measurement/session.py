"""What the suites of one command share: workloads, progress, the loaded engine, baselines, and which tests are finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.measurement.baseline import Baselines
from bench.measurement.recording import Workload
from bench.measurement.session_log import SessionLog
from bench.options.settings import Settings
from bench.progress import Meter
from bench.protocols import Backend


class Variant(NamedTuple):
    """Which models and prompts a test measures; each combination is one workload."""

    inflation: str | None  # of the target
    draft: str | None
    prompts: str


@dataclass(slots=True)
class LoadedEngine:
    """The engine that was loaded last: a suite that follows on the same pair need not load it again."""

    key: tuple[object, ...] = ()
    engine: Backend | None = None

    def get(self, key: tuple[object, ...], load: Callable[[], Backend]) -> Backend:
        """Return the engine of this key. The one before is closed first, so that two are never in memory."""
        if self.engine is None or key != self.key:
            self.close()
            self.engine, self.key = load(), key
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None


@dataclass(frozen=True, slots=True)
class Session:
    """What one command measures, checked, and what its suites pass on to each other."""

    workloads: Mapping[Settings, Mapping[Variant, Workload]]  # suites with the same settings share them
    meter: Meter
    log: SessionLog
    loaded: LoadedEngine = field(default_factory=LoadedEngine)
    baselines: Baselines = field(default_factory=dict)
