"""A run of suites distributed with Ray: shards of cells, each a pytest run in a separate process, merged at the end.

A shard owns its device: one or several GPUs that Ray assigns, or the CPU of a machine. Its files come back as bytes, so that
machines need the same installation but no common disk. The merged records are those that one pytest run would have written,
with the baseline of the first shard. Where shards shared a machine's CPU, the records note it, and their times do not count.
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
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import msgspec

from bench.errors import BackendUnavailable, IncomparableResults, first_line, last_line
from bench.records import checkout, environment, machine_lock
from bench.records.files import load_run, write_run
from bench.records.runs import SHARED_BY, RunRecord
from bench.records.storage import write_atomically

FOLDER = ".sweep"
THREADS = "OMP_NUM_THREADS"
PYTEST = ("-m", "pytest", "--benchmark-only", "--no-page", "-p", "no:cacheprovider")
NO_TESTS = 5  # pytest's exit status, as where an engine is missing
MEASURED = (0, 1, NO_TESTS)  # 1: a test failed, and its record holds the error


@dataclass(frozen=True, slots=True)
class Plan:
    """What is distributed."""

    suites: tuple[str, ...]
    options: tuple[str, ...]  # of the suites
    shards: tuple[tuple[str, ...], ...]  # test ids
    results: Path
    code: str  # that measures: its commit, and a hash of what differs from it

    @property
    def folder(self) -> Path:
        """Return the folder that keeps shards until all are finished; the same command finds it again."""
        identity = json.dumps([self.suites, self.options, self.shards, self.code])
        return self.results / FOLDER / hashlib.sha256(identity.encode()).hexdigest()[:16]

    def shard(self, index: int) -> Path:
        return self.folder / f"shard-{index}"  # a folder with its files

    def marker(self, index: int) -> Path:
        return self.folder / f"shard-{index}.done"  # a file that exists when the shard is finished; it holds its Done


@dataclass(frozen=True, slots=True)
class Done:
    """How a shard ended."""

    status: int  # of pytest
    machine: str
    devices: str  # numbers of its GPUs; empty: the CPU
    started: float  # seconds since the epoch, by the clock of that machine
    ended: float
    files: tuple[str, ...] = ()


def plan(suites: Sequence[str], options: Sequence[str], *, workers: int, results: Path) -> Plan:
    """Split every suite's cells into as many contiguous shards as there are workers."""
    command = [sys.executable, *PYTEST, "--collect-only", "-q", *suites, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode or not ids:
        raise ValueError(f"expected cells to measure, got none: {last_line(done.stdout + done.stderr)}")
    by_suite = groupby(ids, key=lambda name: name.partition("::")[0])  # pytest lists the cells of a file together
    shards = tuple(shard for _, cells in by_suite for shard in split([*cells], workers))
    code = json.dumps(checkout.commit())
    return Plan(tuple(suites), tuple(options), shards, results, code)


def split(cells: Sequence[str], parts: int) -> Iterator[tuple[str, ...]]:
    """Yield contiguous parts whose sizes differ by at most one, such as 2, 2, 3. None is empty."""
    parts = min(parts, len(cells))
    for start, end in pairwise(len(cells) * part // parts for part in range(parts + 1)):
        yield tuple(cells[start:end])


def run_shard(cells: Sequence[str], options: Sequence[str], name: str, threads: str | None) -> tuple[Done, dict[str, bytes]]:
    """Measure these cells on a worker, and return the files that were written. Continue a shard that was stopped here.

    Args:    threads: OMP_NUM_THREADS of the machine that started the sweep; Ray sets it to the CPUs of a task
    """
    scratch = Path(tempfile.gettempdir()) / f"specheat-{name}"
    scratch.mkdir(exist_ok=True)
    variables = {key: value for key, value in os.environ.items() if key != THREADS}
    variables[machine_lock.HOLDER] = str(machine_lock.lock_file())  # the sweep holds the lock; shards share the machine by plan
    if threads is not None:
        variables[THREADS] = threads
    command = [sys.executable, *PYTEST, *cells, *options, "--results", str(scratch), "--resume"]
    started = time.time()
    with (scratch / "log.txt").open("wb") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, env=variables).returncode
    files = {
        str(path.relative_to(scratch)): path.read_bytes()
        for path in sorted(scratch.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if status in MEASURED:
        shutil.rmtree(scratch)
    return Done(status, os.uname().nodename, devices, started, time.time(), tuple(files)), files


def measure(plan: Plan, address: str, *, workers: int, gpus: int, on_shard: Callable[[int], None]) -> list[Done]:
    """Run the shards that are not finished.

    Args:    address: of a Ray cluster, or "local"; gpus: per shard, 0: it owns CPUs
             on_shard: receives how many more are finished
    """
    left = [index for index in range(len(plan.shards)) if not plan.marker(index).is_file()]
    threads = os.environ.get(THREADS)  # before Ray sets it
    on_shard(len(plan.shards) - len(left))
    if left:
        ray = _connected(address, workers)
        try:
            found = int(ray.cluster_resources().get("GPU", 0))
            if address == "local" and gpus > found:  # a cluster may get more GPUs later
                raise ValueError(f"expected --gpus of at most {found}, which Ray finds on this machine, got {gpus}")
            # In a cluster a shard takes more than half of a machine's CPUs, so that no two share a machine.
            smallest = min(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
            cpus = max(1, smallest // workers) if address == "local" else smallest // 2 + 1
            start = ray.remote(run_shard).options(num_cpus=1 if gpus else cpus, num_gpus=gpus, max_retries=0).remote
            name = plan.folder.name
            waiting = {start(plan.shards[index], plan.options, f"{name}-{index}", threads): index for index in left}
            while waiting:
                (ready, *_), _ = ray.wait([*waiting], num_returns=1)
                keep(plan, waiting.pop(ready), *ray.get(ready))
                on_shard(1)
        finally:
            ray.shutdown()
    return [msgspec.json.decode(plan.marker(index).read_bytes(), type=Done) for index in range(len(plan.shards))]


def _connected(address: str, workers: int) -> Any:
    """Return the module `ray`, connected to a cluster or to one that is started here."""
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailable("sweeps need Ray; pip install -e '.[ray]'") from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
    if address == "local":
        options |= {"num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendUnavailable(f"no Ray cluster at {address}: {first_line(error)}") from error
    return ray


def keep(plan: Plan, index: int, done: Done, files: dict[str, bytes]) -> None:
    """Store the files of a shard, also of a failed one: the same command runs it again."""
    folder = plan.shard(index)
    for name, content in files.items():
        write_atomically(folder / name, content)
    if done.status not in MEASURED:
        log = folder / "log.txt"
        reason = last_line(log.read_text(errors="replace"))
        raise ValueError(f"shard {index} ended with status {done.status}: {reason}; all of it: {log}")
    write_atomically(plan.marker(index), msgspec.json.encode(done))


def put_together(plan: Plan, dones: Sequence[Done]) -> list[Path]:
    """Write the records of all shards as those of one run, and remove the shards, unless `merged` refuses them."""
    by_run: dict[tuple[str, str, str], list[RunRecord]] = {}
    whole: dict[Path, bytes] = {}  # records of suites that write them in one test
    for index, done in enumerate(dones):
        for name in done.files:
            source = plan.shard(index) / name
            if name.endswith(".json"):
                run = load_run(source)
                key = (run.suite, str(run.backend_settings["backend"]), run.model_pair.name)
                by_run.setdefault(key, []).append(run)
            elif name.endswith(".jsonl"):
                whole[plan.results / name] = source.read_bytes()
    command = ("pytest", "--benchmark-only", *plan.suites, *plan.options)
    sharing = shared_by(dones)
    paths = [
        write_run(plan.results, merged(runs, command=command, shared_by=sharing), backend=backend)
        for (_, backend, _), runs in by_run.items()
    ]
    for place, content in whole.items():
        write_atomically(place, content)
    shutil.rmtree(plan.folder)
    with suppress(OSError):  # another sweep still has its shards there
        plan.folder.parent.rmdir()
    return [*paths, *whole]


def shared_by(dones: Sequence[Done]) -> int:
    """Return the largest number of shards that ran on the CPU of one machine at the same time; 1: none shared."""
    on_cpu = [done for done in dones if not done.devices]
    counts = (
        sum(other.machine == one.machine and other.started <= one.started < other.ended for other in on_cpu) for one in on_cpu
    )
    return max(counts, default=1)


def merged(runs: Sequence[RunRecord], *, command: tuple[str, ...], shared_by: int) -> RunRecord:
    """Return one record with all cells in the order of the runs, and the baseline of the first run that has one."""
    first, *others = runs
    for other in others:
        environment.check_comparable(
            first.environment, other.environment, keys=(*environment.COMPARABLE_KEYS, *environment.CODE_KEYS)
        )
        names = ("suite", "preset", "model_pair", "model_hashes", "prompt_format")
        differing = [name for name in names if getattr(first, name) != getattr(other, name)]
        if differing:
            raise IncomparableResults(f"shards of different experiments, with another {', '.join(differing)}")
    return replace(
        first,
        command=command,
        environment={**first.environment, **({SHARED_BY: shared_by} if shared_by > 1 else {})},
        baseline=next((run.baseline for run in runs if run.baseline), ()),
        cells=tuple(cell for run in runs for cell in run.cells),
        drafts={name: card for run in runs for name, card in run.drafts.items()},
    )
