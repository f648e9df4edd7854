"""A run of suites shared out with Ray: shards of cells, each a pytest run in a process of its own, put together at the end.

A shard owns its device: one GPU or several that Ray hands it, or a machine's CPU. What a shard wrote comes back as bytes, so
machines need a common installation and no common disk. The records are those that one pytest run would have written, with
the baseline of the first shard; where workers had to share a machine's CPU they say so, and no time in them counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.errors import BackendUnavailable, IncomparableResults
from bench.records import environment
from bench.records.files import load_run, write_atomically, write_run
from bench.records.runs import SHARED_BY, RunRecord

FOLDER = ".sweep"
THREADS = "OMP_NUM_THREADS"
PYTEST = ("-m", "pytest", "--benchmark-only", "-p", "no:cacheprovider")
NO_TESTS = 5  # of pytest, as where an engine is missing
MEASURED = (0, 1, NO_TESTS)  # 1: of a test that failed there is a record that says so


@dataclass(frozen=True, slots=True)
class Plan:
    """What is shared out."""

    suites: tuple[str, ...]
    options: tuple[str, ...]  # of the suites
    shards: tuple[tuple[str, ...], ...]  # test ids
    results: Path
    commit: str

    @property
    def folder(self) -> Path:
        """Where shards are kept until all are there; the same command finds them again."""
        identity = json.dumps([self.suites, self.options, self.shards, self.commit])
        return self.results / FOLDER / hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Done:
    """How a shard went."""

    status: int  # of pytest
    machine: str
    devices: str  # GPUs by their numbers; empty: the CPU
    started: float  # seconds since the epoch, on that machine
    ended: float
    files: tuple[str, ...] = ()


def plan(suites: Sequence[str], options: Sequence[str], *, workers: int, results: Path) -> Plan:
    """Every suite's cells in as many runs of neighbours as there are workers.

    Raises:  ValueError: pytest cannot collect them; its last line says why
    """
    command = [sys.executable, *PYTEST, "--collect-only", "-q", *suites, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode or not ids:
        said = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        raise ValueError(f"expected cells to measure, got none: {said[-1] if said else 'pytest said nothing'}")
    by_suite: dict[str, list[str]] = {}
    for name in ids:
        by_suite.setdefault(name.partition("::")[0], []).append(name)
    shards = [shard for cells in by_suite.values() for shard in _split(cells, workers)]
    commit = str(environment.capture("cpu").get("harness_commit", "unknown"))
    return Plan(tuple(suites), tuple(options), tuple(shards), results, commit)


def _split(cells: Sequence[str], parts: int) -> Iterator[tuple[str, ...]]:
    """Contiguous parts whose sizes differ by one at most; none empty."""
    parts = min(parts, len(cells))
    ends = [len(cells) * part // parts for part in range(parts + 1)]
    for start, end in pairwise(ends):
        yield tuple(cells[start:end])


def run_shard(
    cells: Sequence[str], options: Sequence[str], name: str, threads: str | None
) -> tuple[Done, dict[str, bytes]]:
    """Run by a worker: measure these cells, and give back what was written. A shard that was stopped here goes on.

    Args:    threads: OMP_NUM_THREADS where the sweep was asked for. Ray sets another, the CPUs of a task
    """
    scratch = Path(tempfile.gettempdir()) / f"specheat-{name}"
    scratch.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with (scratch / "log.txt").open("wb") as log:
        command = [sys.executable, *PYTEST, *cells, *options, "--results", str(scratch), "--resume"]
        environment = {key: value for key, value in os.environ.items() if key != THREADS}
        if threads is not None:
            environment[THREADS] = threads
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, env=environment)
    files = {
        str(path.relative_to(scratch)): path.read_bytes()
        for path in sorted(scratch.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    done = Done(status.returncode, os.uname().nodename, devices, started, time.time(), tuple(files))
    if done.status in MEASURED:
        shutil.rmtree(scratch)
    return done, files


def measure(plan: Plan, address: str, *, workers: int, gpus: int, on_shard: Callable[[int], None]) -> list[Done]:
    """Run what is left of the plan; finished shards are in its folder.

    Args:    address: of a Ray cluster, or "local"; gpus: a shard owns, 0: it owns CPUs
             on_shard: told how many more are done
    Raises:  BackendUnavailable: Ray is missing, or no cluster answers; ValueError: this machine has fewer GPUs
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    left = [index for index in range(len(plan.shards)) if not _marker(plan, index).is_file()]
    threads = os.environ.get(THREADS)  # before Ray sees it
    on_shard(len(plan.shards) - len(left))
    if left:
        ray = _started(address, workers=workers)
        try:
            _check_gpus(ray, address, gpus)
            _run_all(ray, plan, left, address, threads, workers=workers, gpus=gpus, on_shard=on_shard)
        finally:
            ray.shutdown()
    return [Done(**json.loads(_marker(plan, index).read_text())) for index in range(len(plan.shards))]


def _check_gpus(ray: Any, address: str, gpus: int) -> None:
    """On this machine: a cluster may get more by and by."""
    found = int(ray.cluster_resources().get("GPU", 0))
    if address == "local" and gpus > found:
        raise ValueError(f"expected --gpus of at most {found}, which Ray finds on this machine, got {gpus}")


def _run_all(
    ray: Any,
    plan: Plan,
    left: Sequence[int],
    address: str,
    threads: str | None,
    *,
    workers: int,
    gpus: int,
    on_shard: Callable[[int], None],
) -> None:
    cpus = 1 if gpus else _cpus_of_a_worker(ray, address, workers)
    remote = ray.remote(run_shard).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    waiting = {
        remote.remote(plan.shards[index], plan.options, f"{plan.folder.name}-{index}", threads): index for index in left
    }
    while waiting:
        (ready, *_), _ = ray.wait([*waiting], num_returns=1)
        index = waiting.pop(ready)
        _keep(plan, index, *ray.get(ready))
        on_shard(1)


def _started(address: str, *, workers: int) -> Any:
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailable("sweeps need Ray; pip install -e '.[ray]'") from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
    try:
        if address == "local":
            ray.init(num_cpus=max(workers, os.cpu_count() or 1), include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendUnavailable(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    return ray


def _cpus_of_a_worker(ray: Any, address: str, workers: int) -> int:
    """So many that a machine takes one shard at a time; on this machine alone, as many as its workers share."""
    smallest = min(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
    return max(1, smallest // workers) if address == "local" else max(1, smallest // 2 + 1)


def _marker(plan: Plan, index: int) -> Path:
    return plan.folder / f"shard-{index}.done"


def _keep(plan: Plan, index: int, done: Done, files: dict[str, bytes]) -> None:
    """Store what a shard wrote; a shard that failed is kept to be looked at, and run again by the same command."""
    folder = plan.folder / f"shard-{index}"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if done.status not in MEASURED:
        said = (folder / "log.txt").read_text(errors="replace").rstrip().splitlines()
        raise ValueError(f"shard {index} ended with status {done.status}: {said[-1]}; all of it: {folder / 'log.txt'}")
    write_atomically(_marker(plan, index), json.dumps(asdict(done)))


def put_together(plan: Plan, dones: Sequence[Done]) -> list[Path]:
    """Write the records of all shards as those of one run, and forget the shards.

    Raises:  IncomparableResults: the machines of the shards differ; then each shard's records stay in its folder
    """
    by_run: dict[tuple[str, str, str], list[RunRecord]] = {}
    others: list[tuple[Path, Path]] = []
    for index, done in enumerate(dones):
        folder = plan.folder / f"shard-{index}"
        for name in done.files:
            if name.endswith(".json"):
                run = load_run(folder / name)
                key = (run.suite, str(run.backend_settings["backend"]), run.model_pair.name)
                by_run.setdefault(key, []).append(run)
            elif name.endswith(".jsonl"):  # records of another form, each of one test
                others.append((folder / name, plan.results / name))
    command = ("pytest", "--benchmark-only", *plan.suites, *plan.options)
    shared = shared_by(dones)
    paths = [
        write_run(plan.results, merged(runs, command=command, shared_by=shared), backend=backend)
        for (_, backend, _), runs in by_run.items()
    ]
    for source, place in others:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    shutil.rmtree(plan.folder)
    if not any(plan.folder.parent.iterdir()):
        plan.folder.parent.rmdir()
    return [*paths, *(place for _, place in others)]


def shared_by(dones: Sequence[Done]) -> int:
    """How many shards at most ran on the CPU of one machine at the same time; 1: each had its own device."""
    on_cpu = [done for done in dones if not done.devices]
    return max(
        (
            sum(other.machine == one.machine and other.started <= one.started < other.ended for other in on_cpu)
            for one in on_cpu
        ),
        default=1,
    )


def merged(runs: Sequence[RunRecord], *, command: tuple[str, ...], shared_by: int) -> RunRecord:
    """One record of all cells, in the order of the runs, with the baseline of the first.

    Raises:  IncomparableResults: they were measured under different conditions
    """
    first, *others = runs
    for other in others:
        environment.check_comparable(first.environment, other.environment)
        names = ("suite", "preset", "model_pair", "model_hashes", "prompt_format")
        differing = [name for name in names if getattr(first, name) != getattr(other, name)]
        if differing:
            raise IncomparableResults(f"shards of different experiments, with another {', '.join(differing)}")
    sharing = {SHARED_BY: shared_by} if shared_by > 1 else {}
    return replace(
        first,
        command=command,
        environment={**first.environment, **sharing},
        baseline=next((run.baseline for run in runs if run.baseline), ()),
        cells=tuple(cell for run in runs for cell in run.cells),
        drafts={name: card for run in runs for name, card in run.drafts.items()},
    )
