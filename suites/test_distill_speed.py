"""KD throughput against TRL's GKDTrainer: the same steps, with the target run in each of them, or on its stored hidden states.

It runs only where it is named, `pytest --benchmark-only suites/test_distill_speed.py`: it needs TRL, 8 GB of memory and up to
8 minutes. It uses `--preset`, `--pair`, `--prompts`, `--seed` and `--results`; the other options are about decoding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.measurement.recording import Workload, shared_header
from bench.options.settings import Settings
from bench.records.environment import installed_version
from bench.reporting.formats import terminal
from bench.reporting.suites import distill_speed
from distill.runs import trl_comparison
from distill.runs.trl_arms import LOSS, STATUS, Training
from distill.text.table import TextPlan, prompts_hash

DEFAULTS = {"smoke": {"num_prompts": 6}}  # with fewer, not all arms take the same steps


def test_distill_speed(
    benchmark: Any,
    settings: Settings,
    workload: Workload,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    if not any(Path(__file__).name in argument for argument in request.config.args):
        pytest.skip(f"compares training, not decoding: name suites/{Path(__file__).name} to run it")
    if installed_version("trl") is None:
        pytest.skip("TRL is missing; `pip install trl`")
    if settings.device != "cpu" or not STATUS.exists():
        pytest.skip("measures peak memory as Linux accounts for processes, so on a CPU only")

    size, pair, folder = trl_comparison.SIZES[settings.preset], workload.model_pair, tmp_path / "text"
    plan = TextPlan(
        model=workload.model_hashes["target"],
        prompts=prompts_hash(workload.prompt_ids),
        temperatures=((1.0, 1.0),),
        max_new_tokens=size.max_new_tokens,
        end_token_ids=workload.end_token_ids,
        batch_rows=size.rows,
        seed=settings.seed,
    )
    trl_comparison.text(folder, plan, workload.prompt_ids, target=pair.target)  # untimed: all arms train on the same text
    training = Training(
        target=pair.target,
        draft=pair.draft,
        text=str(folder),
        batch_rows=size.batch_rows,
        epochs=size.epochs,
        learning_rate=1e-4,
        seed=settings.seed,
    )
    rounds = trl_comparison.Rounds(training, trl_comparison.orders(size.rounds))
    benchmark.group = f"distill_speed {pair.name}"
    benchmark.pedantic(rounds.timed, setup=rounds.setup, teardown=rounds.teardown, rounds=len(rounds.orders), iterations=1)
    for name in rounds.runs:
        runs = [each.runs[name] for each in rounds.done]
        benchmark.extra_info[f"{name}_seconds"] = sum(run.seconds for run in runs)
        benchmark.extra_info[f"{name}_tokens"] = sum(run.num_tokens for run in runs)
        benchmark.extra_info[f"{name}_peak_bytes"] = max(run.peak_bytes for run in runs)

    versions = {name: installed_version(name) for name in ("trl", "accelerate", "datasets")}
    shared, recorded = shared_header("distill_speed", settings, workload), workload.recorded_pair
    header = {
        "schema": trl_comparison.SCHEMA,
        **shared,
        "environment": {**shared["environment"], **versions},
        "prompt_set": workload.prompt_set,
        "prompts_hash": workload.prompts_hash,
        "loss": str(LOSS),
        "text": plan,
        "training": replace(training, target=recorded.target, draft=recorded.draft, text=""),
    }
    path = trl_comparison.store(settings.results, header, rounds.done)
    with capsys.disabled():
        print(f"\n\n{path}\n\n{terminal(distill_speed.table(rounds.done))}\n")
