"""A KD matrix as a suite: drafts trained for minutes, not hours, on the pair and prompts of a pytest run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measurement.recording import Workload
from bench.options.settings import Settings
from bench.records import kd_matrix
from bench.records.kd_matrix import RECORD
from bench.reporting.formats import terminal_page
from bench.reporting.suites.kd_matrix import tables
from distill.runs import matrix
from distill.runs.job import Job
from distill.runs.matrix import MatrixPlan
from distill.training import recipes
from distill.training.loop import TrainPlan


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained and measured."""

    kd_temperatures: tuple[float, ...]
    decode_temperatures: tuple[float, ...]
    seeds: tuple[int, ...]
    num_tokens: int  # that a draft is trained on
    batch_tokens: int
    batch_rows: int  # answers sampled at once
    max_new_tokens: int


TENTHS = tuple(step / 10 for step in range(11))  # 0, 0.1 .. 1
SIZES = {
    # KD T 0.2, because mixtures up to it sample at few temperatures.
    "smoke": Size((0.2,), (1.0,), (0,), num_tokens=128, batch_tokens=128, batch_rows=8, max_new_tokens=16),
    "quick": Size((0.0, 1.0), (0.0, 0.5, 1.0), (0,), num_tokens=2_000, batch_tokens=512, batch_rows=64, max_new_tokens=48),
    "paper": Size(TENTHS[::2], TENTHS, (0, 1, 2), num_tokens=52_000, batch_tokens=1024, batch_rows=256, max_new_tokens=128),
}


def measure(
    suite: str,
    arms: Sequence[str],
    size: Size,
    *,
    settings: Settings,
    workload: Workload,
    scratch: Path,
    benchmark: Any,
    note: Callable[[str], None],
) -> tuple[str, Path]:
    """Train and measure through `benchmark.pedantic`; --resume continues an interrupted run.

    Args:    scratch: for drafts, which are removed after the run, and for text, which later runs use again
    Returns: the tables and the path of the record
    """
    plan = _plan(arms, size, settings, workload)
    out = scratch / suite
    header = matrix.record_header(
        device=settings.device,
        pair=workload.recorded_pair.name,
        model_hashes=workload.model_hashes,
        start_card=workload.draft_card,
    )
    header["preset"] = settings.preset
    resumable = settings.resume
    if resumable and (out / RECORD).exists() and (reason := matrix.not_continued(out / RECORD, header)):
        note(f"{suite} is not resumable: {reason}")
        resumable = False
    if not resumable:
        shutil.rmtree(out, ignore_errors=True)
    options = {"device": settings.device, "header": header, "note": lambda line: note(f"{suite}: {line}")}
    found = benchmark.pedantic(matrix.run, (plan, out, scratch / "texts"), options, rounds=1, iterations=1)
    path = kd_matrix.store(out, settings.results, suite=suite)
    shutil.rmtree(out)
    return terminal_page(tables(found)), path


def _plan(arms: Sequence[str], size: Size, settings: Settings, workload: Workload) -> MatrixPlan:
    domain = settings.prompts[0]
    job = Job(
        target=workload.model_pair.target,
        start=workload.model_pair.draft,
        trained="adapters",
        recipe=recipes.recipe("offline", 0.0),
        plan=TrainPlan(num_tokens=size.num_tokens, batch_tokens=size.batch_tokens, learning_rate=1e-3),
        text_tokens=size.num_tokens,
        prompts=("instructions:train",),
        held_out=(domain,),
        max_new_tokens=size.max_new_tokens,
        batch_rows=size.batch_rows,
        seed=settings.seed,
    )
    return MatrixPlan(tuple(arms), size.kd_temperatures, size.decode_temperatures, size.seeds, (domain,), job)
