"""`specheat doctor`: what this machine can measure, how small a difference it can see, and what to fix.

Gathers the facts that `bench.doctor` judges. No model is loaded but for the A/A run, and nothing is fetched or installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import math
import os
import re
import shutil
import time
import tomllib
import typing
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import session_log, settings
from bench.protocols import Backend, BackendUnavailable, Capabilities, Clock
from bench.records import BaselineTriple, DecodeRequest, ModelPair

if TYPE_CHECKING:
    from bench.doctor import Activity, BackendFacts, Finding, Gpu, Journal, NoiseRun, PairFacts, ResultsFacts

TEMPERATURE = 1.0  # as for the floor of a suite: another seed gives another text
OBSERVED_S = 1.0
WARMUP_LIMIT_S = 60.0
NAMED_CORES = 0.1  # programs that take less are not named
# What a package, a device or a model that is broken or missing raises
FAILURES = (ValueError, BackendUnavailable, ImportError, OSError, RuntimeError)
HINDERING = ("memory", "pairs")  # topics without which the A/A run cannot be
_OPENMP_VARIABLE = re.compile(r"(OMP|KMP|GOMP|MKL)_\w+|VLLM_CPU_OMP_THREADS_BIND")
_CPUFREQ_BOOST = Path("/sys/devices/system/cpu/cpufreq/boost")
_PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


class Doctor:
    help = "say what this machine can measure, how small a difference it sees, and what to fix (exit: 1 with a problem)"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("--pair", metavar="NAME", help=f"model pair by name (default: {settings.DEFAULT_PAIR})")
        parser.add_argument("--target", metavar="ID|DIR", help="target model instead of a named pair")
        parser.add_argument("--draft", metavar="ID|DIR", help="draft model; with --pair it replaces the pair's draft")
        parser.add_argument("--pairs-file", type=Path, metavar="TOML", help="more model pairs")
        parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cpu)")
        parser.add_argument(
            "--results", type=Path, default=Path("results"), metavar="DIR", help="where records go (default: results)"
        )
        parser.add_argument(
            "--seconds", default="60", metavar="S", help="length of the A/A run behind its warm-up (default: 60)"
        )
        parser.add_argument("--no-noise", action="store_true", help="leave the A/A run out")
        parser.add_argument("--json", action="store_true", help="print the findings as JSON")

    def run(self, args: Namespace) -> int:
        from backends import pairs
        from bench import doctor
        from bench.cli import INTERRUPTED

        seconds = _seconds(args.seconds)
        asked = pairs.named(pairs.load_table(args.pairs_file), args.pair, target=args.target, draft=args.draft)
        found = tuple(_look(args, asked))
        width = min(shutil.get_terminal_size((120, 24)).columns, 120)
        if not args.json:
            print(doctor.as_text(found, width=width), flush=True)
        interrupted = False
        if not args.no_noise:
            noise, interrupted = _noise(args, asked, found, seconds=seconds)
            if not args.json:
                print(f"\n{doctor.as_text(noise, width=width)}")
            found += noise
        print(_as_json(found) if args.json else f"\n{doctor.summary(found)}")
        if interrupted:
            return INTERRUPTED
        return int(any(finding.state == "problem" for finding in found))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"expected --seconds to be a number above 0, got {text!r}")
    return seconds


def _as_json(found: Sequence[Finding]) -> str:
    from dataclasses import asdict

    return json.dumps([asdict(finding) for finding in found], indent=1)


def _look(args: Namespace, asked: ModelPair) -> Iterator[Finding]:
    """Everything but the A/A run."""
    from rich.console import Console

    from bench import doctor, environment
    from bench.registry import installed_version

    with Console(stderr=True).status("watching what else runs") as status:
        activity = _activity()
        status.update("importing torch")
        found = _gpu(args.device)
        env = environment.capture(args.device if found.asked else "cuda")
        status.update("looking at packages, backends and pairs")
        engines = tuple(_backends())
    yield from doctor.machine(env, activity)
    yield doctor.memory(_free_memory(found), _needed_bytes(asked), asked.name)
    yield doctor.precision(dtype=asked.dtype, device=args.device, has_bfloat16=_has_bfloat16())
    yield from doctor.clocks(env, boost=_boost(), on_battery=_on_battery())
    yield from doctor.gpu(env, found)
    yield from doctor.threads(env, _openmp_variables(), absent_preloads=_absent_preloads())
    versions = {name: installed_version(name) for name in doctor.ALL_PACKAGES}
    yield from doctor.packages(versions, has_gpu=found.present or found.usable)
    yield _entry_points()
    yield from doctor.backends(engines)
    yield from doctor.pairs(tuple(_pairs(args, asked)))
    yield from doctor.results(_results(args.results))
    yield doctor.commit(env)


def _activity() -> Activity:
    """Of a second in which we do nothing."""
    import psutil

    from bench.doctor import Activity

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
    from bench import environment
    from bench.doctor import Gpu

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

        from backends.products import can_pack
    except (ImportError, OSError):
        return True  # the topic of packages says what is missing
    return can_pack(torch.empty(0, dtype=torch.bfloat16))


def _free_memory(gpu: Gpu) -> int:
    from bench import environment

    return gpu.free_bytes if gpu.asked and gpu.usable else environment.available_memory_bytes()


def _needed_bytes(pair: ModelPair) -> float | None:
    """As `--plan` says; None unless both models are here."""
    from bench import plan

    if not _readiness(pair)[0] or not all(map(_is_made, (pair.target, pair.draft))):
        return None
    try:
        resolved = _resolved(pair)
    except FAILURES:
        return None  # the topic of pairs, or the A/A run, says why
    return plan.memory_bytes(resolved)


def _readiness(pair: ModelPair) -> tuple[bool, str]:
    from backends.pairs import readiness

    try:
        return readiness(pair)
    except ImportError as error:
        return False, str(error)


def _is_made(model: str) -> bool:
    """Whether an embedded model lies in the cache already; others are no matter of the cache."""
    from backends import pairs, smollm2

    if not model.startswith(pairs.EMBEDDED_PREFIX):
        return True
    return any(smollm2.cache_folder().glob(f"smollm2-{model.removeprefix(pairs.EMBEDDED_PREFIX)}-*"))


def _resolved(pair: ModelPair) -> ModelPair:
    """With folders for models, and of the family that its target has."""
    from dataclasses import replace

    from backends import pairs

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
    """Commands and backends that the checkout declares, against those that are installed."""
    from bench import doctor, registry

    declared: list[str] = []
    with contextlib.suppress(OSError):  # installed without a checkout
        groups = tomllib.loads(_PYPROJECT.read_text())["project"]["entry-points"]
        declared = [name for group in ("specheat.commands", "specheat.backends") for name in groups[group]]
    broken = None
    try:
        registry.claim_makers()
    except (BackendUnavailable, ValueError) as error:
        broken = str(error)
    return doctor.entry_points(declared, (*registry.commands(), *registry.backend_names()), broken=broken)


def _backends() -> Iterator[BackendFacts]:
    """Imports each backend's module and makes none of them."""
    from bench.doctor import VLLM, BackendFacts
    from bench.registry import backend_factory, backend_names, installed_version

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
    from backends.pairs import load_table
    from bench.doctor import PairFacts

    rows = {**load_table(args.pairs_file), asked.name: asked}
    for pair in rows.values():
        ready, why = _readiness(pair)
        if ready and not all(map(_is_made, (pair.target, pair.draft))):
            why = "ready; made on first use"
        yield PairFacts(pair.name, ready, why, asked=pair is asked)


def _results(folder: Path) -> ResultsFacts:
    from bench import store
    from bench.doctor import ResultsFacts

    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    error = None
    if folder.exists() and not folder.is_dir():
        error = f"{folder} is not a folder"
    elif existing == folder.absolute():
        try:
            store.check_writable(folder)
        except OSError as reason:
            error = str(reason)
    elif not os.access(existing, os.W_OK):
        error = f"cannot make {folder}: {existing} is not writable"
    interrupted = None
    for log in folder.glob(f"{session_log.FILE}*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            interrupted = " ".join(("pytest", *json.loads(log.read_text())["command"]))
    journals = tuple(_journal(path, folder) for path in sorted(folder.rglob(f"*{store.UNFINISHED}")))
    return ResultsFacts(str(folder), error, shutil.disk_usage(existing).free, interrupted, journals)


def _journal(path: Path, folder: Path) -> Journal:
    from bench.doctor import Journal

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


def _noise(
    args: Namespace, asked: ModelPair, found: Sequence[Finding], *, seconds: float
) -> tuple[tuple[Finding, ...], bool]:
    """What the A/A run shows, or why there is none; and whether it was interrupted."""
    from bench import doctor

    topic = "noise floor"
    hindrance = next((each.topic for each in found if each.state == "problem" and each.topic in HINDERING), None)
    if hindrance is not None:
        return (doctor.Finding(topic, "note", f"not measured, because of the problem with {hindrance} above"),), False
    try:
        run = _measured(args, asked, seconds=seconds)
    except FAILURES as error:
        text = f"not measured: {' '.join(str(error).split())}"
        return (doctor.Finding(topic, "problem", text, "Put that right, or name another pair or --device."),), False
    except KeyboardInterrupt:
        return (doctor.Finding(topic, "note", "interrupted before anything was measured"),), True
    return tuple(doctor.noise(run)), run.interrupted


def _measured(args: Namespace, asked: ModelPair, *, seconds: float) -> NoiseRun:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from backends import pairs
    from bench.registry import backend_factory

    pair = _resolved(asked)
    pairs.check_compatible(pair)
    requests = _requests(pair)
    backend = backend_factory("reference")(pair, device=args.device, options={})
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("warming up", total=seconds)

            def report(num_texts: int, elapsed_s: float) -> None:
                bar.update(task, description=f"A/A run, {num_texts} prompts", completed=min(elapsed_s, seconds))

            return aa_run(backend, requests, pair=pair.name, device=args.device, seconds=seconds, report=report)
    finally:
        backend.close()


def _requests(pair: ModelPair) -> tuple[DecodeRequest, ...]:
    """Our own prompts, cut where they are too long for the pair."""
    from backends import formatting, pairs
    from bench import prompts

    max_new_tokens = settings.PRESETS["quick"].max_new_tokens
    context_length, tokenizer = pairs.context_length(pair), pairs.tokenizer(pair)
    prompt_format = formatting.prompt_format(
        tokenizer,
        chat_template="default" if tokenizer.chat_template else "none",
        max_prompt_tokens=context_length - max_new_tokens - 1,
    )
    encoded = formatting.encode(
        prompts.load(settings.PROMPTS),
        tokenizer,
        prompt_format,
        context_length=context_length,
        max_new_tokens=max_new_tokens,
        num_draft_tokens=0,
    )
    ends = formatting.end_token_ids(pair)
    return tuple(
        DecodeRequest(prompt.ids, max_new_tokens, temperature=TEMPERATURE, eos_token_ids=ends) for prompt in encoded
    )


def aa_run(
    backend: Backend,
    requests: Sequence[DecodeRequest],
    *,
    pair: str,
    device: str,
    seconds: float,
    report: Callable[[int, float], None],
    clock: Clock = time.perf_counter,
) -> NoiseRun:
    """Decode each prompt twice without speculation, prompt after prompt, until the time is up or Ctrl-C.

    Args:    report: gets prompts and seconds so far
    """
    from bench.doctor import NoiseRun
    from bench.environment import throttle_reasons
    from bench.measure import warm_up

    triples: list[BaselineTriple] = []
    settled = interrupted = False
    throttle = {*throttle_reasons(device)}
    try:
        _, settled = warm_up(backend, requests[0], clock=_until(clock() + WARMUP_LIMIT_S, clock))
        started = clock()
        for _ in _rounds(backend, requests, triples.append, clock):
            report(len(triples), clock() - started)
            if clock() - started >= seconds:
                break
    except TimeoutError:
        pass  # a machine that is so busy does not settle
    except KeyboardInterrupt:
        interrupted = True
    throttle |= {*throttle_reasons(device)}
    return NoiseRun(pair, settled, tuple(triples), tuple(sorted(throttle)), interrupted)


def _until(end_s: float, clock: Clock) -> Clock:
    """The clock, raising TimeoutError from `end_s` on."""

    def checked() -> float:
        now = clock()
        if now > end_s:
            raise TimeoutError
        return now

    return checked


def _rounds(
    backend: Backend,
    requests: Sequence[DecodeRequest],
    on_triple: Callable[[BaselineTriple], None],
    clock: Clock,
) -> Iterator[None]:
    """Each time both arms of one prompt; all prompts again and again, with other seeds."""
    from dataclasses import replace

    from bench.measure import baseline_rounds, derive_seed, plan_baseline

    for repeat in itertools.count():
        seed = derive_seed(0, "doctor", repeat)

        def request_for(index: int, seed: int = seed) -> DecodeRequest:
            return replace(requests[index], seed=seed)

        orders = plan_baseline(len(requests), seed=seed, native=False)
        rounds = baseline_rounds(backend, range(len(requests)), orders, request_for, on_triple=on_triple, clock=clock)
        for _ in orders:
            rounds.setup()
            rounds.timed()
            rounds.teardown()
            yield
