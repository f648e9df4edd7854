"""What a run would do, before it does it: cells, minutes and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench import environment, metrics, store
from bench.settings import Settings
from bench.suite_run import Workload

ARMS_PER_PAIR = 3.5  # AR, SD, the replay, and bare forwards, in units of one AR generation
ARMS_PER_BASELINE = 3  # AR, AR again, the engine's own
LOAD_S = 10.0  # loading a pair and warming up


def describe(cells: Sequence[str], settings: Settings, workload: Workload) -> str:
    """The cells, one a line, with estimated minutes and memory; where the estimate comes from is said."""
    seconds_per_token, source = _seconds_per_token(settings, workload)
    generation_s = settings.max_new_tokens * seconds_per_token
    num_pairs = len(workload.prompt_ids) * settings.repeats
    cell_s = num_pairs * ARMS_PER_PAIR * generation_s
    suites = {cell.partition("::")[0] for cell in cells}
    baseline_s = (
        len(suites) * len(settings.backends) * (LOAD_S + ARMS_PER_BASELINE * len(workload.prompt_ids) * generation_s)
    )
    minutes = (len(cells) * cell_s + baseline_s) / 60
    return "\n".join(
        (
            *cells,
            f"{len(cells)} cells of {num_pairs} pairs ({len(workload.prompt_ids)} prompts x {settings.repeats})",
            f"at most {minutes:.1f} minutes, if every text reaches {settings.max_new_tokens} tokens ({source})",
            f"about {_memory_bytes(workload) / 2**30:.1f} GiB of memory for weights and working space; "
            f"{environment.available_memory_bytes() / 2**30:.1f} GiB are free",
        )
    )


def _seconds_per_token(settings: Settings, workload: Workload) -> tuple[float, str]:
    """From an earlier record of this pair on this machine, else from streaming the weights once a token."""
    folder = settings.results / environment.machine_slug(environment.capture(settings.device))
    runs = store.load_runs(folder) if folder.is_dir() else ()
    for run in reversed(runs):
        for record in run.cells:
            measured = metrics.seconds_per_token(record, "ar")
            if run.model_hashes == dict(workload.model_hashes) and measured is not None:
                return measured.estimate, f"measured here on {run.created[:10]}"
    return _weight_bytes(workload.model_pair.target) / _copy_bandwidth(), "guessed from the memory bandwidth"


def _weight_bytes(model: str) -> int:
    return sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))


def _memory_bytes(workload: Workload) -> float:
    weights = _weight_bytes(workload.model_pair.target) + _weight_bytes(workload.model_pair.draft)
    return 1.5 * weights + 1.5 * 2**30  # caches and logits; Python with torch and transformers loaded


def _copy_bandwidth() -> float:
    """Bytes a second that one copy of a large array reads."""
    source = np.zeros(2**26, dtype=np.uint8)
    source.copy()
    start = time.perf_counter()
    source.copy()
    return source.nbytes / (time.perf_counter() - start)
