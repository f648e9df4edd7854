"""What `bench.plugin` needs from the engines' side: workloads, scoring, and training for the suites about distillation.

The fixtures of a suite (`measure`, `suite_run`, `settings`, ...) are in `bench.plugin`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.certification.cell_scorer import cell_scorer
from backends.models import workloads
from backends.models.cache import cache_folder
from bench.measurement.recording import Workload
from bench.options.pair_defaults import pair_defaults
from bench.options.settings import Settings
from bench.plugin import ENGINES, SESSION, Engines, suite_name
from bench.records.environment import installed_version


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ENGINES] = Engines(workloads.of_settings, _pair_defaults, cell_scorer)
    # Ctrl-C may leave a file open wherever it strikes, which must not end with a traceback.
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnraisableExceptionWarning")
    # That line holds until the session ends; what is found later meets the filters from before it.
    warnings.filterwarnings("ignore", category=pytest.PytestUnraisableExceptionWarning)


def _pair_defaults(settings: Settings) -> dict[str, Any]:
    # The table of this checkout, also in `specheat across`, where the engines are of another revision.
    tables = [Path(__file__).parents[1] / "backends" / "models" / "pairs.toml", settings.pairs_file]
    return pair_defaults(settings, [path for path in tables if path is not None])


@pytest.fixture
def train_and_measure(
    settings: Settings, workload: Workload, request: pytest.FixtureRequest, benchmark: Any
) -> Callable[[Sequence[str]], None]:
    """Trains small drafts by several recipes and records their alpha, as `specheat kd-matrix` does."""
    if missing := [name for name in ("peft", "accelerate") if installed_version(name) is None]:
        pytest.skip(f"training adapters needs {' and '.join(missing)}; pip install -e '.[distill]'")
    from distill.runs import small_matrix

    def train(arms: Sequence[str]) -> None:
        meter = request.config.stash[SESSION].meter
        tables, path = small_matrix.measure(
            suite_name(request.module),
            arms,
            request.module.KD[settings.preset],
            settings=settings,
            workload=workload,
            scratch=cache_folder() / "kd",
            benchmark=benchmark,
            note=meter.note,
        )
        meter.note(f"\n\n{path}\n\n{tables}\n")

    return train
