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
class Session:
    """What one command measures, checked, and what its suites pass on to each other."""

    workloads: Mapping[Settings, Mapping[Variant, Workload]]  # suites with the same settings share them
    meter: Meter
    log: SessionLog
    baselines: Baselines = field(default_factory=dict)
    _engine: tuple[tuple[object, ...], Backend] | None = None

    def engine(self, key: tuple[object, ...], load: Callable[[], Backend]) -> Backend:
        """Return the engine of this key: the one loaded last, or else a new one.

        The one before is closed first, so that two are never in memory.
        """
        if self._engine is None or key != self._engine[0]:
            self.close()
            self._engine = key, load()
        return self._engine[1]

    def close(self) -> None:
        """Close the engine that is loaded, if any."""
        if self._engine is not None:
            self._engine[1].close()
        self._engine = None
