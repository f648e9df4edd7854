"""The processes vLLM runs in: one that has imported it and forks another for each engine.

Importing vLLM takes much longer than starting a small engine, and an engine's memory is only surely freed when its process
ends. So `main` imports once and forks; an engine's process serves one pipe until the other end is closed.

On a CPU the engine lives in that process. Its OpenMP threads are then bound by the environment that the process was started
with, and the global random state, from which vLLM draws its drafts, is ours to seed.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import sys
import time
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from bench.records import AUTOREGRESSIVE, DecodeRequest, Scalar

Steps = tuple[tuple[int, int], ...]  # accepted and drafted tokens of every round that had a draft

# Keeps the noise of the drafts apart from the noise they are judged with, which vLLM seeds with the request's seed.
DRAFT_NOISE = 0x9E3779B97F4A7C15


@dataclasses.dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself once it is up."""

    device: str
    reports_steps: bool  # of speculation
    v2_model_runner: bool  # the one that knows block verification
    seeded: bool
    settings: dict[str, Scalar]


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """What came of one request."""

    token_ids: tuple[int, ...]
    steps: Steps | None  # None: the engine does not say
    first_token_s: float


def main() -> None:
    """Serve the pipe whose file descriptor is the argument: each pipe that comes through it becomes an engine's."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the engines: leave no zombies
    starter = Connection(int(sys.argv[1]))
    import vllm
    from vllm import LLMEngine  # noqa: F401  vLLM imports most of itself only when asked for this

    starter.send(vllm.__version__)
    gc.freeze()  # an engine's start collects garbage seven times: not through all these modules
    while True:
        try:
            fd = reduction.recv_handle(starter)
        except EOFError:
            return
        if os.fork() == 0:
            starter.close()
            serve(Connection(fd))
        os.close(fd)


def serve(pipe: Connection) -> None:
    """One engine: its arguments and environment come first, then requests."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    arguments, environment = pipe.recv()
    os.environ.update(environment)
    from vllm import EngineArgs, LLMEngine

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    reports_steps = "per_request_spec_decode_metrics" in known
    if reports_steps and "speculative_config" in arguments:
        arguments["per_request_spec_decode_metrics"] = "detailed"
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    pipe.send(facts(engine, reports_steps=reports_steps))
    while (request := received(pipe)) is not None:
        pipe.send(generate(engine, request))
    if not in_process():
        engine.engine_core.shutdown()
    os._exit(0)  # quicker than tearing down; what runs at exit belongs to the process that forked this one


def in_process() -> bool:
    """Whether vLLM runs its engine in the process that asks, not in one of its own."""
    return os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"


def received(pipe: Connection) -> DecodeRequest | None:
    """The next request; None when the other end says so, or is gone."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def generate(engine: Any, request: DecodeRequest) -> Text:
    """Decode one request alone."""
    start = time.perf_counter()
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed,
        max_tokens=request.max_new_tokens,
        stop_token_ids=list(request.eos_token_ids),
        ignore_eos=True,  # the model's own end tokens: the request names those that count
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    if request.num_draft_tokens > AUTOREGRESSIVE:
        import torch

        torch.manual_seed((request.seed ^ DRAFT_NOISE) % 2**63)
    engine.add_request("text", {"prompt_token_ids": list(request.prompt_ids)}, sampling)
    outputs = engine.step()
    first_token_s = time.perf_counter() - start  # the prompt fits into one step, which draws the first token
    while engine.has_unfinished_requests():
        outputs = engine.step()
    (output,) = outputs
    if output.num_cached_tokens:
        raise RuntimeError(f"{output.num_cached_tokens} prompt tokens came from a cache that should be off")
    (completion,) = output.outputs
    metrics = getattr(completion, "spec_decode_metrics", None)
    return Text(
        token_ids=tuple(completion.token_ids),
        steps=tuple(zip(metrics.per_step_accepted, metrics.per_step_drafted, strict=True)) if metrics else None,
        first_token_s=first_token_s,
    )


def facts(engine: Any, *, reports_steps: bool) -> EngineFacts:
    """Read back from the configuration that vLLM has settled on."""
    import torch
    from vllm.platforms import current_platform

    from backends import vllm_cpu_fix

    config = engine.vllm_config
    preloaded = (os.path.basename(path) for path in os.environ.get("LD_PRELOAD", "").split(":"))
    return EngineFacts(
        device=current_platform.device_type,
        reports_steps=reports_steps,
        v2_model_runner=config.use_v2_model_runner,
        seeded=in_process(),
        settings={
            "torch": str(torch.__version__),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "compilation": config.compilation_config.mode.name.lower(),
            "cuda_graphs": str(config.compilation_config.cudagraph_mode.name).lower(),
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
