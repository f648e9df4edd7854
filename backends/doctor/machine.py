"""Check the machine: other programs, memory, precision, GPU and threads.

`gather` functions read the machine; check functions judge facts and touch nothing, so tests give them made-up facts.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from backends.doctor.check import Check, State
from bench.errors import first_line
from bench.records.decoding import Scalar
from bench.records.machine import throttle_reasons

Facts = Mapping[str, Scalar]  # as bench.records.environment.capture returns them
OBSERVED_S = 1.0
BUSY_SHARE = 0.1  # of the usable cores: what other programs may take before measurements suffer
STOLEN_SHARE = 0.02  # of the time: what the host of a virtual machine may take
NAMED_CORES = 0.1  # programs that take less are not named
_OPENMP_VARIABLE = re.compile(r"(OMP|KMP|GOMP|MKL)_\w+|VLLM_CPU_OMP_THREADS_BIND")
_OPENMP_RUNTIME = re.compile(r"lib(gomp|iomp5|omp\d*)[.-].*")


@dataclass(frozen=True, slots=True)
class Activity:
    """What the usable cores did while the doctor waited."""

    busy_cores: float
    stolen_share: float  # of their time, taken by the host of a virtual machine
    busiest: tuple[tuple[str, float], ...]  # programs and the number of cores that each took


@dataclass(frozen=True, slots=True)
class Gpu:
    """What torch and the driver report."""

    present: bool  # a driver is installed
    usable: bool  # torch can use it
    requested: bool  # --device names it
    name: str = ""
    free_bytes: int = 0
    total_bytes: int = 0
    throttle: tuple[str, ...] = ()


def gather_activity() -> Activity:
    """Watch all processes but this one for a second in which this one sleeps."""
    import psutil

    others = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    for process in others:
        with contextlib.suppress(psutil.Error):
            process.cpu_percent()  # the next call returns the use since this one
    everywhere = psutil.cpu_times_percent(interval=OBSERVED_S, percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(everywhere))
    ours = [times for core, times in enumerate(everywhere) if core in usable] or everywhere
    stolen = sum(getattr(times, "steal", 0.0) for times in ours) / 100
    waiting = sum(times.idle + getattr(times, "iowait", 0.0) for times in ours) / 100
    busiest: list[tuple[str, float]] = []
    for process in others:
        with contextlib.suppress(psutil.Error):
            busiest.append((process.name(), process.cpu_percent() / 100))
    named = sorted((each for each in busiest if each[1] >= NAMED_CORES), key=lambda each: -each[1])
    return Activity(max(0.0, len(ours) - waiting - stolen), stolen / len(ours), tuple(named[:3]))


def gather_gpu(device: str) -> Gpu:
    """Import torch and read what it reports of a device.

    Raises: ValueError: no such device
    """
    requested = device.startswith("cuda")
    present = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    try:
        import torch
    except (ImportError, OSError):  # OSError: a shared library that cannot be opened
        return Gpu(present, usable=False, requested=requested)
    wrong = f"expected a device such as cpu, cuda or cuda:1, got {device!r}"
    try:
        torch.device(device)
        if not torch.cuda.is_available():
            return Gpu(present, usable=False, requested=requested)
        name = device if requested else "cuda"
        free_bytes, total_bytes = torch.cuda.mem_get_info(name)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{wrong}: {first_line(error)}") from None
    card = torch.cuda.get_device_name(name)
    return Gpu(True, True, requested, card, free_bytes, total_bytes, throttle_reasons(name))


def cores(env: Facts, activity: Activity) -> Iterator[Check]:
    """Check whether the cores are free for measuring."""
    topic, usable, quota = "machine", _number(env, "num_usable_cores"), _number(env, "cpu_quota_cores")
    logical, physical = env.get("num_logical_cores"), env.get("num_physical_cores")
    found = f"{usable:g} of {logical} cores usable" + (f", {physical} physical" if physical not in (None, logical) else "")
    yield Check(topic, "ok", f"{env.get('cpu_model', 'CPU')}: {found}, {env.get('ram_gib')} GiB of memory")
    if 0 < quota < usable:
        yield Check(topic, "note", f"this container gets the time of {quota:g} cores, though it sees {usable:g}")
    text = f"other programs keep {activity.busy_cores:.1f} of {usable:g} cores busy"
    if activity.busy_cores > BUSY_SHARE * usable:
        names = ", ".join(f"{name} ({cores:.1f})" for name, cores in activity.busiest) or "see `top`"
        yield Check(topic, "problem", text, f"End the other programs: {names}. Then run the doctor again.")
    elif _number(env, "load_avg_1min") > usable / 2:
        load = f"{text}, but the load average of the last minute is {env['load_avg_1min']:g}"
        yield Check(topic, "note", load, "Make sure that whatever ran has ended.")
    else:
        yield Check(topic, "ok", text)
    if activity.stolen_share > STOLEN_SHARE:
        stolen = f"the host of this virtual machine took {activity.stolen_share:.0%} of the cores' time"
        yield Check(topic, "problem", stolen, "Measure on a machine whose cores are not shared, or at another hour.")


def memory(free_bytes: int, needed_bytes: float | None, pair: str) -> Check:
    """Check the free memory. `needed_bytes` is None where the pair's models are not on this machine yet."""
    text = f"{free_bytes / 2**30:.1f} GiB are free"
    if needed_bytes is None:
        return Check("memory", "ok", text)
    text = f"{text}, {pair} needs about {needed_bytes / 2**30:.1f}"
    if free_bytes < needed_bytes:
        return Check("memory", "problem", text, "Close other programs, or name a smaller pair with --pair.")
    return Check("memory", "ok", text)


def precision(*, dtype: str, device: str, has_bfloat16: bool) -> Check:
    """Check whether the processor multiplies in the pair's type."""
    if dtype != "bfloat16" or device != "cpu" or has_bfloat16:
        return Check("precision", "ok", f"{dtype} on {device}")
    text = "this processor emulates bfloat16, so a verification costs more the more tokens it has"
    return Check("precision", "note", text, "Measure with --dtype float32, and report it.")


def gpu(env: Facts, found: Gpu) -> Iterator[Check]:
    """Check the requested device. Clocks are those of an idle card."""
    topic = "GPU"
    if not found.usable:
        if not found.present:
            text, remedy = "no NVIDIA GPU", "Leave --device out, or use a machine that has one."
        else:
            text = f"there is an NVIDIA GPU, but torch {env.get('torch', '(missing)')} cannot use it"
            remedy = "Install PyTorch for your driver, then `pip install -e '.[cuda]'`."
        state: State = "problem" if found.requested else "note" if found.present else "ok"
        yield Check(topic, state, text, remedy if state != "ok" else "")
        return
    words = [
        str(env.get("gpu_name") or found.name),
        f"{found.free_bytes / 2**30:.0f} of {found.total_bytes / 2**30:.0f} GiB free",
        f"driver {env['gpu_driver']}" if "gpu_driver" in env else "",
        f"{env['gpu_sm_clock_mhz']} of {env.get('gpu_sm_clock_max_mhz', '?')} MHz" if "gpu_sm_clock_mhz" in env else "",
        f"power limit {env['gpu_power_limit_w']:g} W" if "gpu_power_limit_w" in env else "",
        f"{env['gpu_temperature_c']} °C" if "gpu_temperature_c" in env else "",
    ]
    yield Check(topic, "ok", ", ".join(filter(None, words)))
    if not found.requested:
        yield Check(topic, "note", "suites run on the CPU by default", "Add --device cuda to use the GPU.")
    if "gpu_driver" not in env:
        yield Check(topic, "note", "clocks and throttling cannot be read", "Run `pip install nvidia-ml-py`.")
    if found.throttle:
        text = f"the GPU is throttled now: {', '.join(found.throttle)}"
        yield Check(topic, "problem", text, "Let it cool and end what else runs on it; such a record is INVALID.")
    if found.free_bytes < 0.9 * found.total_bytes:
        text = f"{(found.total_bytes - found.free_bytes) / 2**30:.1f} GiB of its memory are taken"
        yield Check(topic, "problem", text, "End the programs that `nvidia-smi` lists.")


def threads(env: Facts, variables: Mapping[str, str]) -> Iterator[Check]:
    """Check how many threads torch uses, and the environment variables that change it.

    Args: variables: those of the environment that OpenMP runtimes and the loader read
    """
    topic = "threads"
    openmp = {name: value for name, value in sorted(variables.items()) if _OPENMP_VARIABLE.fullmatch(name)}
    if "torch_num_threads" in env:
        yield _num_threads(env)
    if openmp:
        words = ", ".join(f"{name}={value}" for name, value in openmp.items())
        yield Check(topic, "note", f"set here: {words}; runs to compare with need the same settings")
    count = openmp.get("OMP_NUM_THREADS")
    if count is not None and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", count.strip()):
        yield Check(topic, "problem", f"OMP_NUM_THREADS is {count!r}", "Set it to a whole number, or unset it.")
    if openmp.get("OMP_WAIT_POLICY", "").lower() == "active" or openmp.get("KMP_BLOCKTIME", "").lower() == "infinite":
        text = "threads that wait keep their core busy (OMP_WAIT_POLICY or KMP_BLOCKTIME)"
        yield Check(topic, "note", text, "Unset the variable before you measure several engines side by side.")
    preloaded = re.split(r"[ :]+", variables.get("LD_PRELOAD", ""))
    # The loader searches for names without a folder, so only paths can be checked here.
    if absent := [path for path in preloaded if "/" in path and not Path(path).exists()]:
        text = f"LD_PRELOAD names {', '.join(absent)}, which does not exist and is ignored"
        yield Check(topic, "problem", text, "Correct LD_PRELOAD, or unset it.")
    runtimes = [name for path in preloaded if _OPENMP_RUNTIME.fullmatch(name := path.rpartition("/")[2])]
    if len(runtimes) > 1:
        text = f"LD_PRELOAD has {len(runtimes)} OpenMP runtimes, {', '.join(runtimes)}"
        yield Check(topic, "problem", text, "Keep one of them.")
    elif runtimes:
        text = f"LD_PRELOAD replaces torch's OpenMP by {runtimes[0]}; records with another OpenMP are not compared"
        yield Check(topic, "note", text)


def _num_threads(env: Facts) -> Check:
    count, usable = _number(env, "torch_num_threads"), _number(env, "num_usable_cores")
    room = min(usable, _number(env, "cpu_quota_cores") or usable)
    physical = _number(env, "num_physical_cores") or usable
    text = f"torch computes with {count:g} thread{'s' * (count != 1)}"
    if count > room:
        text = f"{text}, but only {room:g} cores are usable: threads wait for each other"
        return Check("threads", "problem", text, f"Set OMP_NUM_THREADS={max(1, math.floor(room))}.")
    if count > physical:
        text = f"{text} on {physical:g} physical cores: two threads share one core"
        return Check("threads", "note", text, f"Set OMP_NUM_THREADS={physical:g}.")
    if count < math.floor(min(room, physical)):
        return Check("threads", "note", f"{text}, and {room:g} cores are usable", "Unset OMP_NUM_THREADS to use them all.")
    return Check("threads", "ok", text)


def _number(facts: Facts, key: str) -> float:
    """Return a fact as a number; 0 where it is unknown."""
    return float(facts.get(key) or 0)
