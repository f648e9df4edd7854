"""TODO: purpose."""

from __future__ import annotations

import itertools
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from backends.doctor.facts import FAILURES, resolved_pair
from bench.options import settings
from bench.protocols import Backend, Clock
from bench.records.decoding import DecodeRequest, ModelPair
from bench.records.runs import BaselineTriple

if TYPE_CHECKING:
    from backends.doctor.checks import Finding, NoiseRun


TEMPERATURE = 1.0  # as for the floor of a suite: another seed gives another text
WARMUP_LIMIT_S = 60.0
HINDERING = ("memory", "pairs")  # topics without which the A/A run cannot be


def noise_findings(
    args: Namespace, asked: ModelPair, found: Sequence[Finding], *, seconds: float
) -> tuple[tuple[Finding, ...], bool]:
    """What the A/A run shows, or why there is none; and whether it was interrupted."""
    from backends.doctor import checks

    topic = "noise floor"
    hindrance = next((each.topic for each in found if each.state == "problem" and each.topic in HINDERING), None)
    if hindrance is not None:
        return (checks.Finding(topic, "note", f"not measured, because of the problem with {hindrance} above"),), False
    try:
        run = _measured(args, asked, seconds=seconds)
    except FAILURES as error:
        text = f"not measured: {' '.join(str(error).split())}"
        return (checks.Finding(topic, "problem", text, "Put that right, or name another pair or --device."),), False
    except KeyboardInterrupt:
        return (checks.Finding(topic, "note", "interrupted before anything was measured"),), True
    return tuple(checks.noise(run)), run.interrupted


def _measured(args: Namespace, asked: ModelPair, *, seconds: float) -> NoiseRun:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from backends.models import checkpoints
    from bench.registry import backend_factory

    pair = resolved_pair(asked)
    checkpoints.check_compatible(pair)
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
    from backends.models import checkpoints
    from bench.prompts import formatting, sets

    max_new_tokens = settings.PRESETS["quick"].max_new_tokens
    context_length, tokenizer = checkpoints.context_length(pair), checkpoints.tokenizer(pair)
    prompt_format = formatting.prompt_format(
        tokenizer,
        chat_template="default" if tokenizer.chat_template else "none",
        max_prompt_tokens=context_length - max_new_tokens - 1,
    )
    encoded = formatting.encode(
        sets.load(settings.PROMPTS),
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
    from backends.doctor.checks import NoiseRun
    from bench.measurement.timing import warm_up
    from bench.records.environment import throttle_reasons

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

    from bench.measurement.timing import baseline_rounds, plan_baseline
    from bench.records.decoding import derive_seed

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
