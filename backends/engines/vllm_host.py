"""The processes that vLLM runs in: one that imports it, and forks another for each engine.

Importing vLLM takes much longer than starting a small engine, and an engine's memory is only certain to be freed when its
process ends. So `main` imports once and forks; an engine's process serves one pipe until the other end is closed.

On a CPU the engine lives in that process. Its OpenMP threads are then bound by the environment that the process was started
with, and the global random state, from which vLLM draws its drafts, can be seeded here.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import mmap
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.records.decoding import AUTOREGRESSIVE, DecodeRequest, Scalar

Steps = tuple[tuple[int, int], ...]  # accepted and drafted tokens of every round that had a draft

COUNT_STEPS = "SPECHEAT_VLLM_COUNT_STEPS"  # 1: count rounds as with an older vLLM, even if this one reports them


@dataclasses.dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine reports once it runs."""

    process_group: int  # its process, and those it has started
    device: str
    v2_model_runner: bool  # the one that has block verification
    seeded: bool
    settings: dict[str, Scalar]


class Progress:
    """How many tokens the first output has, in a file that both processes map: nobody wakes up to tell or to read it."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self.counter = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")

    @property
    def num_tokens(self) -> int:
        return self.counter[0]

    @num_tokens.setter
    def num_tokens(self, number: int) -> None:
        self.counter[0] = number


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """The output of one request."""

    token_ids: tuple[int, ...]
    steps: Steps | None  # None: the engine does not report them
    first_token_s: float
    last_token_s: float


def main() -> None:
    """Serve the pipe whose file descriptor is the argument. Each pipe that comes through it becomes an engine's."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the engines: leave no zombies
    starter = Connection(int(sys.argv[1]))
    import vllm
    from vllm import LLMEngine  # noqa: F401  this imports most of vLLM

    starter.send(vllm.__version__)
    gc.freeze()  # an engine's start collects garbage seven times, and need not search all these modules
    while True:
        try:
            fd = reduction.recv_handle(starter)
        except EOFError:
            return
        if os.fork() == 0:
            starter.close()
            serve(Connection(fd))
        os.close(fd)  # the engine's process holds its copy


def serve(pipe: Connection) -> None:
    """Run one engine. Arguments, environment and progress file come first; then tuples of requests to be decoded together."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # a group that is stopped and resumed as one, with the processes that vLLM starts
    arguments, environment, progress_file = pipe.recv()
    os.environ.update(environment)
    progress = Progress(progress_file)
    from vllm import EngineArgs, LLMEngine

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    detailed = "per_request_spec_decode_metrics" in known and os.environ.get(COUNT_STEPS) != "1"
    if detailed and "speculative_config" in arguments:
        arguments["per_request_spec_decode_metrics"] = "detailed"
    if not detailed:
        arguments["disable_log_stats"] = False  # for the counters
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    pipe.send(facts(engine, steps="detailed" if detailed else "counted"))
    while (requests := received(pipe)) is not None:
        pipe.send(generate(engine, requests, progress, count_steps=not detailed))
    if not in_process():
        engine.engine_core.shutdown()
    os._exit(0)  # fast; handlers that run at a normal exit belong to the process that forked this one


def in_process() -> bool:
    """Return whether vLLM runs its engine in this process, not in another."""
    return os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"


def received(pipe: Connection) -> tuple[DecodeRequest, ...] | None:
    """Return the next requests; None once the other end is closed or sends None."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def generate(engine: Any, requests: Sequence[DecodeRequest], progress: Progress, *, count_steps: bool) -> tuple[Text, ...]:
    """Decode requests that arrive at the same moment."""
    accepted_before = num_accepted() if count_steps else 0
    start = time.perf_counter()
    if requests[0].num_draft_tokens > AUTOREGRESSIVE:
        import torch

        # Another seed than the request's, from which vLLM draws what judges the drafts.
        torch.manual_seed((requests[0].seed ^ 0x9E3779B97F4A7C15) % 2**63)
    for number, request in enumerate(requests):
        engine.add_request(str(number), {"prompt_token_ids": list(request.prompt_ids)}, sampling(request))
    outputs: dict[str, Any] = {}
    times_s: dict[str, list[float]] = {}  # at which each output grew
    lengths: list[int] = []  # of the first output, after each step
    while engine.has_unfinished_requests():
        stepped = engine.step()
        now = time.perf_counter() - start
        for output in stepped:
            outputs[output.request_id] = output
            times_s.setdefault(output.request_id, []).append(now)
            lengths.append(len(output.outputs[0].token_ids))
        progress.num_tokens = lengths[-1] if lengths else 0
    texts = tuple(text_of(outputs[name], times_s[name]) for name in map(str, range(len(requests))))
    if not count_steps or len(requests) > 1:
        return texts
    steps = counted_steps(lengths, num_accepted() - accepted_before, requests[0].num_draft_tokens)
    return (dataclasses.replace(texts[0], steps=steps),)


def num_accepted() -> int:
    """Return how many draft tokens this engine has accepted since it started."""
    from vllm.v1.metrics.reader import get_metrics_snapshot

    name = "vllm:spec_decode_num_accepted_tokens"
    return sum(getattr(metric, "value", 0) for metric in get_metrics_snapshot() if metric.name == name)


def counted_steps(lengths: Sequence[int], accepted: int, num_draft_tokens: int) -> Steps | None:
    """Return the rounds of one output, if the engine reports only how many draft tokens it accepted in all of them.

    A round emits one token more than it accepted. The last round's tail may be cut off, so it gets the accepted tokens that
    are left. Example: lengths 1, 4, 6 with 5 accepted and k = 3 are rounds that accepted 2 and 3.

    Args:    lengths: of the output after the prefill and after each round
    Returns: None if the numbers do not fit
    """
    each = [after - before - 1 for before, after in itertools.pairwise(lengths)]
    left = accepted - sum(each)  # accepted, and cut off at the end of the output
    if left < 0 or (left and not each):
        return None
    if left:
        each[-1] += left
    return tuple((one, num_draft_tokens) for one in each) if max(each, default=0) <= num_draft_tokens else None


def sampling(request: DecodeRequest) -> Any:
    """Return a request in vLLM's form."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed,
        max_tokens=request.max_new_tokens,
        stop_token_ids=list(request.eos_token_ids),
        ignore_eos=True,  # the model's own end tokens: the request names those that count
        detokenize=False,
        output_kind=RequestOutputKind.CUMULATIVE,  # one output per step, so that the first token can be timed
    )


def text_of(output: Any, times_s: Sequence[float]) -> Text:
    """Raises: RuntimeError: a part of the prompt was not computed for this request."""
    if output.num_cached_tokens:
        raise RuntimeError(f"{output.num_cached_tokens} prompt tokens came from a cache that should be off")
    (completion,) = output.outputs
    metrics = getattr(completion, "spec_decode_metrics", None)
    steps = tuple(zip(metrics.per_step_accepted, metrics.per_step_drafted, strict=True)) if metrics else None
    return Text(tuple(completion.token_ids), steps, first_token_s=times_s[0], last_token_s=times_s[-1])


def facts(engine: Any, *, steps: str) -> EngineFacts:
    """Return the configuration that vLLM has decided on."""
    import torch
    from vllm.platforms import current_platform

    from backends.engines import vllm_cpu_fix

    config = engine.vllm_config
    preloaded = (os.path.basename(path) for path in os.environ.get("LD_PRELOAD", "").split(":"))
    return EngineFacts(
        process_group=os.getpgid(0),
        device=current_platform.device_type,
        v2_model_runner=config.use_v2_model_runner,
        seeded=in_process(),
        settings={
            "torch": str(torch.__version__),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "compilation": config.compilation_config.mode.name.lower(),
            "cuda_graphs": str(config.compilation_config.cudagraph_mode.name).lower(),
            "steps": steps,
            "model_runner": "v2" if config.use_v2_model_runner else "v1",
            "max_model_len": config.model_config.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "async_scheduling": config.scheduler_config.async_scheduling,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "kv_block_size": config.cache_config.block_size,
            "engine_process": "same" if in_process() else "own",
            "threads": torch.get_num_threads(),
            "thread_binding": os.environ.get("KMP_AFFINITY", "none"),
            "preloaded": ":".join(name for name in preloaded if name) or "none",
            "vllm_cpu_fix": vllm_cpu_fix.state,
        },
    )
