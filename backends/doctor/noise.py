"""Measure and judge the noise floor: the autoregressive arm against itself, both arms of a prompt adjacent in time."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from backends.doctor.checks import FAILURES, Check, Message, grade
from bench.analysis.metrics import spent
from bench.analysis.verdict import TOLERANCE
from bench.measurement.cells import first_cell, request_of
from bench.measurement.timing import plan_baseline, time_triple, warm_up
from bench.options.settings import Settings
from bench.progress import Meter
from bench.protocols import Backend, Clock
from bench.records import machine_lock
from bench.records.decoding import AUTOREGRESSIVE, DecodeRequest, derive_seed
from bench.records.machine import throttle_reasons
from bench.records.runs import BaselineTriple
from bench.statistics import intervals

WARMUP_LIMIT_S = 60.0
GOOD_FLOOR = 0.02  # the margin of SAME: a higher floor cannot show that two things are equally fast
DRIFT, POOR_DRIFT = 0.02, 0.05


@dataclass(frozen=True, slots=True)
class NoiseRun:
    """The autoregressive arm against itself."""

    warmup_settled: bool
    triples: tuple[BaselineTriple, ...]  # in the order in which they ran
    interrupted: bool = False
    pair: str = ""
    throttle: tuple[str, ...] = ()


def noise_floor(settings: Settings, found: Sequence[Check], *, seconds: float) -> Iterator[Message]:
    """Yield what the A/A run shows, or why there was none.

    Raises: KeyboardInterrupt: after the messages of a run that Ctrl-C ended
    """
    for check in found:
        if check.state == "problem" and check.topic in ("memory", "pairs"):  # no other topic prevents a run
            yield "note", f"not measured, because of the problem with {check.topic} above", ""
            return
    try:
        with machine_lock.measuring(shared=settings.shared_machine):
            run = _measured(settings, seconds=seconds)
            num_runs = machine_lock.num_runs()
    except machine_lock.MachineInUse as error:
        yield "problem", f"not measured: {error}", ""
        return
    except FAILURES as error:
        yield "problem", f"not measured: {' '.join(str(error).split())}", "Correct that, or name another pair or --device."
        return
    yield from judge(run)
    if num_runs > 1:
        yield "problem", f"{num_runs} runs shared the machine, so the floor is theirs", "Wait for the other, then try again."
    if run.interrupted:
        raise KeyboardInterrupt


def _measured(settings: Settings, *, seconds: float) -> NoiseRun:
    """Run the reference backend on the built-in prompts, cut where they are too long for the pair."""
    from backends.models import checkpoints, workloads
    from backends.models.pairs import ready
    from bench.prompts import sets
    from bench.registry import backend_factory

    pair = ready(settings.pair, target=settings.target, draft=settings.drafts[0], pairs_file=settings.pairs_file)
    settings = replace(
        settings,
        chat_template="default" if checkpoints.tokenizer(pair.target).chat_template else "none",
        max_prompt_tokens=checkpoints.context_length(pair) - settings.max_new_tokens - 1,
        temperatures=(1.0,),  # as in the floor of a suite: another seed gives other tokens
        num_draft_tokens=(AUTOREGRESSIVE,),
    )
    workload = workloads.prepare(pair, sets.load(settings.prompts[0]), settings)
    cell = first_cell("doctor", "reference", settings, workload)
    requests = [request_of(cell, prompt_ids, workload.end_token_ids) for prompt_ids in workload.prompt_ids]
    backend = backend_factory("reference")(pair, device=settings.device, options={})
    before = throttle_reasons(settings.device)
    with closing(backend), Meter("A/A run", math.ceil(seconds), unit="s") as meter:
        run = aa_run(backend, requests, meter, seconds=seconds)
    throttle = {*before, *throttle_reasons(settings.device)}
    return replace(run, pair=pair.name, throttle=tuple(sorted(throttle)))


def aa_run(
    backend: Backend, requests: Sequence[DecodeRequest], meter: Meter, *, seconds: float, clock: Clock = time.perf_counter
) -> NoiseRun:
    """Decode each prompt twice without speculation, prompt after prompt, until the time is up or Ctrl-C."""
    triples: list[BaselineTriple] = []
    settled = interrupted = False
    started = clock()

    def warmup_clock() -> float:
        if (now := clock()) > started + WARMUP_LIMIT_S:
            raise TimeoutError  # a machine that is this busy never settles
        return now

    try:
        _, settled = warm_up(backend, requests[0], clock=warmup_clock)
        started = clock()
        for repeat in itertools.count():  # all prompts again, each time with other seeds
            seed = derive_seed(0, "doctor", repeat)
            for index, order in enumerate(plan_baseline(len(requests), seed=seed, native=False)):
                triples.append(time_triple(backend, index, order, replace(requests[index], seed=seed), clock=clock))
                elapsed_s = clock() - started
                meter.show(min(int(elapsed_s), meter.total), f"{len(triples)} prompts")
                if elapsed_s >= seconds:
                    raise TimeoutError
    except (TimeoutError, KeyboardInterrupt) as end:
        interrupted = isinstance(end, KeyboardInterrupt)
    return NoiseRun(settled, tuple(triples), interrupted)


def judge(run: NoiseRun) -> Iterator[Message]:
    """Judge how small a difference can be seen here, and whether the machine kept its speed."""
    if not run.warmup_settled and not run.interrupted:
        yield "problem", "the warm-up never settled", "End the other programs, and try again."
    if run.throttle:
        yield "problem", f"the GPU was throttled: {', '.join(run.throttle)}", "Let it cool, then try again."
    prompts = [triple.prompt_index for triple in run.triples]
    num_prompts = len(set(prompts))
    if run.interrupted:
        yield "note", f"interrupted after {num_prompts} prompts", ""
    if num_prompts < intervals.MIN_CLUSTERS:
        text = f"{num_prompts} prompts were measured on {run.pair}; below {intervals.MIN_CLUSTERS} there is no interval"
        yield "note", text, "Let it go on for longer (--seconds)." if run.warmup_settled or run.interrupted else ""
        return
    # Seconds and tokens of AR, then of AR again, one column for each triple
    spent_4N = np.array([(*spent(triple.ar, "decode"), *spent(triple.ar_again, "decode")) for triple in run.triples]).T
    if (spent_4N.sum(axis=1) > 0).all():
        yield _floor(run.pair, spent_4N, prompts)
    else:
        text = f"the generations of {run.pair} end with their first token, so nothing was timed"
        yield "note", text, "Name another pair with --pair."
    yield _drift(spent_4N[0] + spent_4N[2], spent_4N[1] + spent_4N[3])


def _floor(pair: str, spent_4N: NDArray, prompts: Sequence[int]) -> Message:
    floor = intervals.log_ratio_floor(spent_4N[0], spent_4N[1], spent_4N[2], spent_4N[3], prompts)
    num_prompts, ms = len(set(prompts)), 1000 * spent_4N[::2].sum() / spent_4N[1::2].sum()
    text = f"A/A floor {floor:.1%}: differences below {floor:.1%} cannot be seen here with {num_prompts} prompts"
    text += f" ({pair}, {ms:.3g} ms/token)"
    wanted = math.ceil(num_prompts * (floor / GOOD_FLOOR) ** 2)  # a floor falls with the square root of the prompts
    remedy = f"End other programs, or measure about {wanted} prompts, which would bring it to {GOOD_FLOOR:.0%}."
    return grade(problem=floor > TOLERANCE, note=floor > GOOD_FLOOR), text, remedy


def _drift(seconds_N: NDArray, tokens_N: NDArray) -> Message:
    """Compare the second half of the run with the first: Welch's t on the logarithm of seconds per token."""
    from scipy.stats import ttest_ind

    usable_N = (seconds_N > 0) & (tokens_N > 0)
    logs = np.log(seconds_N[usable_N] / tokens_N[usable_N])
    earlier, later = logs[: len(logs) // 2], logs[len(logs) // 2 :]
    if len(earlier) < 2 or not logs.std():  # Welch's t needs a variance
        return "ok", "the speed stayed the same", ""
    drift = float(later.mean() - earlier.mean())
    low, high = ttest_ind(later, earlier, equal_var=False).confidence_interval(0.95)
    drifting = abs(drift) > DRIFT and not low <= 0 <= high
    trend, change = "drifting" if drifting else "steady", "slower" if drift > 0 else "faster"
    text = f"{trend}: the second half of the run was {abs(drift):.1%} {change} than the first"
    text += f" (95 % interval of the change in seconds per token {low:+.1%} to {high:+.1%})"
    remedy = "Find out what changed meanwhile (heat, another program), and measure when it has settled."
    return grade(problem=drifting and abs(drift) > POOR_DRIFT, note=drifting), text, remedy
