"""What a run would do (`--plan`): its cells, minutes, memory, and what it can decide."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.analysis import metrics
from bench.measurement import power
from bench.measurement.recording import Workload
from bench.measurement.work import SCORING_PER_PAIR, arms_per_pair, baseline_work
from bench.options.settings import Settings
from bench.records import environment, files, machine
from bench.records.decoding import ModelPair
from bench.records.runs import RunRecord

LOAD_S = 10.0  # loading a pair and warming up


def describe(suites: Sequence[tuple[Sequence[str], Settings, Workload]]) -> str:
    """Describe suites (names of cells, their settings and workload): the cells, and estimates of minutes and memory."""
    _, settings, workload = suites[0]
    runs = _runs_here(settings)
    seconds_per_token, source = _seconds_per_token(runs, workload)
    names = [name for cells, _, _ in suites for name in cells]
    minutes = sum(_seconds(*suite, seconds_per_token) for suite in suites) / 60
    shapes = dict.fromkeys(
        f"{len(workload.prompt_ids) * settings.repeats} pairs ({len(workload.prompt_ids)} prompts x {settings.repeats}) "
        f"of {settings.max_new_tokens} tokens"
        for _, settings, workload in suites
    )
    return "\n".join(
        (
            *names,
            f"{len(names)} cells of {' or '.join(shapes)}",
            f"at most {minutes:.1f} minutes, if every generation reaches its token limit ({source}), without what suites train",
            f"about {memory_bytes(workload.model_pair) / 2**30:.1f} GiB of memory for weights and working space; "
            f"{machine.available_memory_bytes() / 2**30:.1f} GiB are free",
            power.describe(runs, workload, settings.temperatures),
        )
    )


def _seconds(cells: Sequence[str], settings: Settings, workload: Workload, seconds_per_token: float) -> float:
    generation_s, num_prompts = settings.max_new_tokens * seconds_per_token, len(workload.prompt_ids)
    num_baselines = len({cell.partition("::")[0] for cell in cells}) * len(settings.backends)
    pairs_s = arms_per_pair(settings) * generation_s * (1 + (0.0 if settings.pairs_only else SCORING_PER_PAIR))
    cells_s = len(cells) * num_prompts * settings.repeats * pairs_s
    return cells_s + num_baselines * (LOAD_S + baseline_work(settings, num_prompts) * arms_per_pair(settings) * generation_s)


def _runs_here(settings: Settings) -> Sequence[RunRecord]:
    """Return the user's own records of this machine, the oldest first."""
    folder = settings.results / environment.machine_slug(environment.capture(settings.device))
    try:
        return files.load_runs(folder) if folder.is_dir() else ()
    except ValueError:  # a broken record must not stop another run
        return ()


def _seconds_per_token(runs: Sequence[RunRecord], workload: Workload) -> tuple[float, str]:
    """Return an estimate and its source: an earlier record of this pair here, else reading all weights once per token."""
    for run in reversed(runs):
        for record in run.cells:
            measured = metrics.seconds_per_token(record, "ar")
            if run.model_hashes == dict(workload.model_hashes) and measured is not None:
                return measured.estimate, f"measured here on {run.created[:10]}"
    return _weight_bytes(workload.model_pair.target) / _copy_bandwidth(), "estimated from the memory bandwidth"


def _weight_bytes(model: str) -> int:
    return sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))


def memory_bytes(pair: ModelPair) -> float:
    """Return what a resolved pair needs: weights, caches and logits, and Python with torch and transformers loaded."""
    return 1.5 * sum(map(_weight_bytes, {pair.target, pair.draft})) + 1.5 * 2**30


def _copy_bandwidth() -> float:
    """Return the bytes per second that copying a large array reads."""
    source = np.zeros(2**26, dtype=np.uint8)
    source.copy()
    start = time.perf_counter()
    source.copy()
    return source.nbytes / (time.perf_counter() - start)
