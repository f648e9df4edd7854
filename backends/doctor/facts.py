"""`specheat doctor`: what this machine can measure, how small a difference it can see, and what to fix.

Gathers the facts that `backends.doctor.checks` judges. No model is loaded but for the A/A run, and nothing is fetched or installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tomllib
import typing
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BackendUnavailable
from bench.measurement import session_log
from bench.protocols import Capabilities
from bench.records.decoding import ModelPair

if TYPE_CHECKING:
    from backends.doctor.checks import Activity, BackendFacts, Finding, Gpu, Journal, PairFacts, ResultsFacts

OBSERVED_S = 1.0
NAMED_CORES = 0.1  # programs that take less are not named
# What a package, a device or a model that is broken or missing raises
FAILURES = (ValueError, BackendUnavailable, ImportError, OSError, RuntimeError)
_OPENMP_VARIABLE = re.compile(r"(OMP|KMP|GOMP|MKL)_\w+|VLLM_CPU_OMP_THREADS_BIND")
_CPUFREQ_BOOST = Path("/sys/devices/system/cpu/cpufreq/boost")
_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def findings(args: Namespace, asked: ModelPair) -> Iterator[Finding]:
    """Everything but the A/A run."""
    from rich.console import Console

    from backends.doctor import checks
    from bench.records import environment
    from bench.records.environment import installed_version

    with Console(stderr=True).status("watching what else runs") as status:
        activity = _activity()
        status.update("importing torch")
        found = _gpu(args.device)
        env = environment.capture(args.device if found.asked else "cuda")
        status.update("looking at packages, backends and pairs")
        engines = tuple(_backends())
    yield from checks.machine(env, activity)
    yield checks.memory(_free_memory(found), _needed_bytes(asked), asked.name)
    yield checks.precision(dtype=asked.dtype, device=args.device, has_bfloat16=_has_bfloat16())
    yield from checks.clocks(env, boost=_boost(), on_battery=_on_battery())
    yield from checks.gpu(env, found)
    yield from checks.threads(env, _openmp_variables(), absent_preloads=_absent_preloads())
    versions = {name: installed_version(name) for name in checks.ALL_PACKAGES}
    yield from checks.packages(versions, has_gpu=found.present or found.usable)
    yield _entry_points()
    yield from checks.backends(engines)
    yield from checks.pairs(tuple(_pairs(args, asked)))
    yield from checks.results(_results(args.results))
    yield checks.commit(env)


def _activity() -> Activity:
    """Of a second in which we do nothing."""
    import psutil

    from backends.doctor.checks import Activity

    others = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    for process in others:
        with contextlib.suppress(psutil.Error):
            process.cpu_percent()  # from here on
    everywhere = psutil.cpu_times_percent(interval=OBSERVED_S, percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(everywhere))
    ours = [times for core, times in enumerate(everywhere) if core in usable] or everywhere
    stolen = sum(getattr(times, "steal", 0.0) for times in ours) / 100
    waiting = sum(times.idle + getattr(times, "iowait", 0.0) for times in ours) / 100
    busiest: list[tuple[str, float]] = []
    for process in others:
        with contextlib.suppress(psutil.Error):
            busiest.append((process.name(), process.cpu_percent() / 100))
    busiest = [each for each in busiest if each[1] >= NAMED_CORES]
    return Activity(
        busy_cores=max(0.0, len(ours) - waiting - stolen),
        stolen_share=stolen / len(ours),
        busiest=tuple(sorted(busiest, key=lambda each: -each[1])[:3]),
    )


def _gpu(device: str) -> Gpu:
    """As torch sees it, which is imported here."""
    from backends.doctor.checks import Gpu
    from bench.records import environment

    asked = device.startswith("cuda")
    present = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    try:
        import torch
    except (ImportError, OSError):  # OSError: a shared library that cannot be opened
        return Gpu(present=present, usable=False, asked=asked)
    wrong = f"expected a device such as cpu, cuda or cuda:1, got {device!r}"
    try:
        torch.device(device)
    except RuntimeError:
        raise ValueError(wrong) from None
    if not torch.cuda.is_available():
        return Gpu(present=present, usable=False, asked=asked)
    name = device if asked else "cuda"
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(name)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{wrong}: {error}") from error
    return Gpu(
        present=True,
        usable=True,
        asked=asked,
        name=torch.cuda.get_device_name(name),
        free_bytes=free_bytes,
        total_bytes=total_bytes,
        throttle=environment.throttle_reasons(name),
    )


def _has_bfloat16() -> bool:
    try:
        import torch

        from backends.forwards.products import can_pack
    except (ImportError, OSError):
        return True  # the topic of packages says what is missing
    return can_pack(torch.empty(0, dtype=torch.bfloat16))


def _free_memory(gpu: Gpu) -> int:
    from bench.records import environment

    return gpu.free_bytes if gpu.asked and gpu.usable else environment.available_memory_bytes()


def _needed_bytes(pair: ModelPair) -> float | None:
    """As `--plan` says; None unless both models are here."""
    from bench.measurement import plan

    if not _readiness(pair)[0] or not all(map(_is_made, (pair.target, pair.draft))):
        return None
    try:
        resolved = resolved_pair(pair)
    except FAILURES:
        return None  # the topic of pairs, or the A/A run, says why
    return plan.memory_bytes(resolved)


def _readiness(pair: ModelPair) -> tuple[bool, str]:
    from backends.models.pairs import readiness

    try:
        return readiness(pair)
    except ImportError as error:
        return False, str(error)


def _is_made(model: str) -> bool:
    """Whether an embedded model lies in the cache already; others are no matter of the cache."""
    from backends.models import cache, pairs

    if not model.startswith(pairs.EMBEDDED_PREFIX):
        return True
    return any(cache.cache_folder().glob(f"smollm2-{model.removeprefix(pairs.EMBEDDED_PREFIX)}-*"))


def resolved_pair(pair: ModelPair) -> ModelPair:
    """With folders for models, and of the family that its target has."""
    from dataclasses import replace

    from backends.models import pairs

    found = pairs.resolve(target=pair.target, draft=pair.draft, dtype=pair.dtype)
    return replace(found, name=pair.name)


def _boost() -> bool | None:
    try:
        return _CPUFREQ_BOOST.read_text().strip() == "1"
    except OSError:
        return None


def _on_battery() -> bool:
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and battery.power_plugged is False


def _openmp_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _OPENMP_VARIABLE.fullmatch(name)}


def _absent_preloads() -> tuple[str, ...]:
    """Names without a folder are looked up by the loader, so they are let pass."""
    named = re.split(r"[ :]+", os.environ.get("LD_PRELOAD", ""))
    return tuple(path for path in named if "/" in path and not Path(path).exists())


def _entry_points() -> Finding:
    """Compare the backends that the checkout declares with those that are installed."""
    from backends.doctor import checks
    from bench import registry

    declared: list[str] = []
    with contextlib.suppress(OSError):  # installed without a checkout
        declared = list(tomllib.loads(_PYPROJECT.read_text())["project"]["entry-points"]["specheat.backends"])
    return checks.entry_points(declared, registry.backend_names(), broken=None)


def _backends() -> Iterator[BackendFacts]:
    """Imports each backend's module and makes none of them."""
    from backends.doctor.checks import VLLM, BackendFacts
    from bench.records.environment import installed_version
    from bench.registry import backend_factory, backend_names

    for name in backend_names():
        try:
            factory = backend_factory(name)
        except FAILURES as error:
            yield BackendFacts(name, " ".join(str(error).split()))
            continue
        if name == "vllm" and not any(map(installed_version, VLLM)):
            yield BackendFacts(name, "vLLM is not installed")
        else:
            yield BackendFacts(name, None, _rules(factory))


def _rules(factory: Callable[..., Any]) -> tuple[str, ...]:
    """Where the class that a factory returns says them for all its instances."""
    try:
        made = typing.get_type_hints(factory).get("return")
    except (NameError, TypeError):
        return ()
    declared = getattr(made, "capabilities", None)
    return tuple(sorted(declared.rules)) if isinstance(declared, Capabilities) else ()


def _pairs(args: Namespace, asked: ModelPair) -> Iterator[PairFacts]:
    from backends.doctor.checks import PairFacts
    from backends.models.pairs import load_table

    rows = {**load_table(args.pairs_file), asked.name: asked}
    for pair in rows.values():
        ready, why = _readiness(pair)
        if ready and not all(map(_is_made, (pair.target, pair.draft))):
            why = "ready; made on first use"
        yield PairFacts(pair.name, ready, why, asked=pair is asked)


def _results(folder: Path) -> ResultsFacts:
    from backends.doctor.checks import ResultsFacts
    from bench.records import files

    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    error = None
    if folder.exists() and not folder.is_dir():
        error = f"{folder} is not a folder"
    elif existing == folder.absolute():
        try:
            files.check_writable(folder)
        except OSError as reason:
            error = str(reason)
    elif not os.access(existing, os.W_OK):
        error = f"cannot make {folder}: {existing} is not writable"
    interrupted = None
    for log in folder.glob(f"{session_log.FILE}*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            interrupted = " ".join(("pytest", *json.loads(log.read_text())["command"]))
    journals = tuple(unfinished_journal(path, folder) for path in sorted(folder.rglob(f"*{files.UNFINISHED}")))
    return ResultsFacts(str(folder), error, shutil.disk_usage(existing).free, interrupted, journals)


def unfinished_journal(path: Path, folder: Path) -> Journal:
    from backends.doctor.checks import Journal

    header, *rest = path.read_bytes().splitlines() or [b""]
    command = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        command = str(json.loads(header)["command"])
    return Journal(str(path.relative_to(folder)), command.removesuffix(" --resume"), len(rest), _is_locked(path))


def _is_locked(path: Path) -> bool:
    """Whether another process writes it."""
    try:
        with path.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except PermissionError:
        return False  # not ours to write, thus not ours to lock
    return False
