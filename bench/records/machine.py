"""What this machine reports of its processor, threads, memory and GPU. What cannot be read is left out."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.records.decoding import Scalar
from bench.records.runs import Conditions

CGROUP = Path("/sys/fs/cgroup")
VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # instructions for matrix products, the widest first
OPENMP_VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY"),
    *("KMP_AFFINITY", "KMP_BLOCKTIME", "VLLM_CPU_OMP_THREADS_BIND"),
)
# Bits of NVML's clock event reasons. Idle (0x1) and clocks locked by the user (0x2) are left out: they are no throttling.
THROTTLE_BITS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
    0x100: "display clock",
}


def processor() -> dict[str, Scalar]:
    """Return the model, the cores and the memory that this process may use."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    flags = (_cpuinfo("flags") or "").split()
    found: dict[str, Scalar] = {
        "cpu_model": _cpuinfo("model name") or platform.processor() or platform.machine(),
        **next(({"cpu_vectors": name} for name in VECTORS if name in flags), {}),
        "num_physical_cores": psutil.cpu_count(logical=False),
        "num_logical_cores": psutil.cpu_count(),
        "num_usable_cores": len(usable),
        "cpu_affinity": ",".join(_ranges(usable)),
        # Whole GiB, because the kernel's share of the memory differs from boot to boot.
        "ram_gib": round(psutil.virtual_memory().total / 2**30),
    }
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max" instead of a quota
        quota, period = (CGROUP / "cpu.max").read_text().split()
        found["cpu_quota_cores"] = int(quota) / int(period)
    return found


def threads() -> dict[str, Scalar]:
    """Return what decides how many threads work and how they wait."""
    found: dict[str, Scalar] = {name: os.environ[name] for name in OPENMP_VARIABLES if name in os.environ}
    preloaded = re.split(r"[ :]+", os.environ.get("LD_PRELOAD", ""))
    found["ld_preload"] = " ".join(os.path.basename(library) for library in preloaded if library)
    if torch := sys.modules.get("torch"):
        found["torch_num_threads"] = torch.get_num_threads()
    return found


def resident_memory_bytes() -> int:
    """Return the memory of this process and its children, where some engines live. Shared pages count once."""
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)  # pss: on Linux, each page divided by its number of users
    return total


class CpuUse(NamedTuple):
    """CPU-seconds since the machine started, summed over its cores."""

    whole_s: float  # idle ones included
    busy_s: float  # of all processes
    steal_s: float | None  # that the hypervisor gave to other machines; None: not Linux
    own_s: float  # of this process and its children


def cpu_use() -> CpuUse | None:
    """Return how the cores spent their time; None where the system does not tell."""
    try:
        times = psutil.cpu_times()
    except (OSError, ValueError, IndexError):
        return None
    steal_s = getattr(times, "steal", None)
    # The first eight are separate. Those that follow, of guests, are part of user and nice.
    whole_s = sum(times[:8])
    busy_s = whole_s - times.idle - getattr(times, "iowait", 0.0) - (steal_s or 0.0)
    this, own_s = psutil.Process(), 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            own_s += sum(process.cpu_times()[:4])  # user and system, each also of children that have ended
    return CpuUse(whole_s, busy_s, steal_s, own_s)


def conditions_since(before: CpuUse | None, device: str) -> Conditions:
    """Return how the cores spent their time since an earlier reading, if there was one, and how the GPU runs now."""
    clock_mhz = sm_clock_mhz(device)
    throttle = None if clock_mhz is None else throttle_reasons(device)
    after = None if before is None else cpu_use()
    if before is None or after is None or after.whole_s <= before.whole_s:
        return Conditions(clock_mhz=clock_mhz, throttle=throttle)
    # The kernel counts whole ticks of 10 ms, so that a difference of differences may be a little below 0.
    others_s = max(0.0, (after.busy_s - before.busy_s) - (after.own_s - before.own_s))
    steal_s = None if before.steal_s is None or after.steal_s is None else round(after.steal_s - before.steal_s, 3)
    return Conditions(round(after.whole_s - before.whole_s, 3), steal_s, round(others_s, 3), clock_mhz, throttle)


def available_memory_bytes() -> int:
    """Return the memory that a new model may take: what is free, within the limit of the container."""
    free = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())  # "max", and so a ValueError, where there is no limit
        used = int((CGROUP / "memory.current").read_text())
        reclaimable = int(re.findall(r"^inactive_file (\d+)", (CGROUP / "memory.stat").read_text(), re.MULTILINE)[0])
    except (OSError, ValueError, IndexError):
        return free
    return max(0, min(free, limit - used + reclaimable))


def gpu(device: str) -> dict[str, Scalar]:
    """Return the name, the driver, the clocks and the limits of a CUDA device."""
    found = nvml(device)
    if found is None:
        torch = sys.modules.get("torch")
        # Initialising CUDA in this process would keep an engine that forks its workers from using it.
        if torch is None or not device.startswith("cuda") or not torch.cuda.is_initialized():
            return {}
        return {"gpu_name": torch.cuda.get_device_name(device)}
    api, handle = found
    readings: dict[str, Callable[[], Scalar]] = {
        "gpu_name": lambda: _decoded(api.nvmlDeviceGetName(handle)),
        "gpu_driver": lambda: _decoded(api.nvmlSystemGetDriverVersion()),
        "gpu_sm_clock_mhz": lambda: api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_SM),
        "gpu_sm_clock_max_mhz": lambda: api.nvmlDeviceGetMaxClockInfo(handle, api.NVML_CLOCK_SM),
        "gpu_memory_clock_mhz": lambda: api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_MEM),
        "gpu_power_limit_w": lambda: api.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "gpu_temperature_c": lambda: api.nvmlDeviceGetTemperature(handle, api.NVML_TEMPERATURE_GPU),
    }
    facts: dict[str, Scalar] = {}
    for key, read in readings.items():
        with contextlib.suppress(api.NVMLError):  # not every card supports every reading
            facts[key] = read()
    return facts


def sm_clock_mhz(device: str) -> int | None:
    """Return the clock of the GPU's multiprocessors at this moment; None without NVML."""
    found = nvml(device)
    if found is None:
        return None
    api, handle = found
    try:
        return int(api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_SM))
    except api.NVMLError:
        return None


def throttle_reasons(device: str) -> tuple[str, ...]:
    """Return why the GPU runs below its clocks at this moment; empty where it does not, or without NVML."""
    found = nvml(device)
    if found is None:
        return ()
    api, handle = found
    try:
        bits = api.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    except api.NVMLError:
        return ()
    return tuple(name for bit, name in THROTTLE_BITS.items() if bits & bit)


@functools.cache
def nvml(device: str) -> tuple[Any, Any] | None:
    """Return NVML's module and the handle of a CUDA device; None for other devices, and where NVML is missing."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    # NVML numbers all GPUs of the machine, but CUDA only the visible ones.
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    try:
        name = visible[int(index or 0)] if visible else index or "0"
        pynvml.nvmlInit()
        by_name = pynvml.nvmlDeviceGetHandleByUUID
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else by_name(name)
    except (pynvml.NVMLError, IndexError):
        return None


def _cpuinfo(name: str) -> str | None:
    """Return a property of the first core, on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """Yield "0-3" for consecutive numbers, "5" for a single one."""
    for _, consecutive in itertools.groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        run = [number for _, number in consecutive]
        yield str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def _decoded(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes from older versions of pynvml
