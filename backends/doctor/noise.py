"""Measure and judge the noise floor: the autoregressive arm against itself, both arms of a prompt adjacent in time."""

from __future__ import annotations

import itertools
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from backends.doctor.check import Check
from backends.doctor.installation import FAILURES, resolved
from bench.analysis.metrics import spent
from bench.measurement.cells import first_cell, request_of
from bench.measurement.timing import baseline_rounds, plan_baseline, warm_up
from bench.options.arguments import from_options
from bench.progress import Meter
from bench.protocols import Backend, Clock
from bench.records.decoding import AUTOREGRESSIVE, DecodeRequest, ModelPair, derive_seed
from bench.records.machine import throttle_reasons
from bench.records.runs import BaselineTriple
from bench.statistics import intervals

TOPIC = "noise floor"
TEMPERATURE = 1.0  # as in the floor of a suite: another seed gives other tokens
WARMUP_LIMIT_S = 60.0
REQUIRED = ("memory", "pairs")  # a problem with one of these topics prevents the A/A run
GOOD_FLOOR = 0.02  # the margin of SAME: a higher floor cannot show that two things are equally fast
POOR_FLOOR = 0.05
DRIFT = 0.02


@dataclass(frozen=True, slots=True)
class NoiseRun:
    """The autoregressive arm against itself."""

    pair: str
    warmup_settled: bool
    triples: tuple[BaselineTriple, ...]  # in the order in which they ran
    throttle: tuple[str, ...] = ()
    interrupted: bool = False


def noise_floor(
    args: Namespace, requested: ModelPair, found: Sequence[Check], *, seconds: float
) -> tuple[tuple[Check, ...], bool]:
    """Return what the A/A run shows, or why there was none; and whether it was interrupted."""
    hindrance = next((each.topic for each in found if each.state == "problem" and each.topic in REQUIRED), None)
    if hindrance is not None:
        return (Check(TOPIC, "note", f"not measured, because of the problem with {hindrance} above"),), False
    try:
        run = _measured(args, requested, seconds=seconds)
    except FAILURES as error:
        text = f"not measured: {' '.join(str(error).split())}"
        return (Check(TOPIC, "problem", text, "Correct that, or name another pair or --device."),), False
    except KeyboardInterrupt:
        return (Check(TOPIC, "note", "interrupted before anything was measured"),), True
    return tuple(judge(run)), run.interrupted


def _measured(args: Namespace, requested: ModelPair, *, seconds: float) -> NoiseRun:
    from backends.models import checkpoints
    from bench.registry import backend_factory

    pair = resolved(requested)
    checkpoints.check_compatible(pair)
    requests = _requests(pair)
    backend = backend_factory("reference")(pair, device=args.device, options={})
    try:
        with Meter("A/A run", math.ceil(seconds), unit="s") as meter:

            def report(num_prompts: int, elapsed_s: float) -> None:
                meter.show(min(int(elapsed_s), meter.total), f"{num_prompts} prompts")

            return aa_run(backend, requests, pair=pair.name, device=args.device, seconds=seconds, report=report)
    finally:
        backend.close()


def _requests(pair: ModelPair) -> tuple[DecodeRequest, ...]:
    """Return requests for the built-in prompts, cut where they are too long for the pair."""
    from backends.models import checkpoints, workloads
    from bench.prompts import sets

    defaults = from_options(Namespace())
    asked = replace(
        defaults,
        chat_template="default" if checkpoints.tokenizer(pair.target).chat_template else "none",
        max_prompt_tokens=checkpoints.context_length(pair) - defaults.max_new_tokens - 1,
        temperatures=(TEMPERATURE,),
        num_draft_tokens=(AUTOREGRESSIVE,),
    )
    workload = workloads.prepare(pair, sets.load(asked.prompts[0]), asked)
    cell = first_cell("doctor", "reference", asked, workload)
    return tuple(request_of(cell, prompt_ids, workload.end_token_ids) for prompt_ids in workload.prompt_ids)


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

    Args: report: receives the prompts and seconds so far
    """
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
        pass  # a machine that is this busy never settles
    except KeyboardInterrupt:
        interrupted = True
    throttle |= {*throttle_reasons(device)}
    return NoiseRun(pair, settled, tuple(triples), tuple(sorted(throttle)), interrupted)


def _until(end_s: float, clock: Clock) -> Clock:
    """Return the clock, which raises TimeoutError from `end_s` on."""

    def checked() -> float:
        now = clock()
        if now > end_s:
            raise TimeoutError
        return now

    return checked


def _rounds(
    backend: Backend, requests: Sequence[DecodeRequest], on_triple: Callable[[BaselineTriple], None], clock: Clock
) -> Iterator[None]:
    """Run both arms of one prompt at a time, over all prompts again and again with new seeds."""
    for repeat in itertools.count():
        seed = derive_seed(0, "doctor", repeat)
        seeded = [replace(request, seed=seed) for request in requests]
        orders = dict(enumerate(plan_baseline(len(requests), seed=seed, native=False)))
        rounds = baseline_rounds(backend, orders, seeded, on_triple=on_triple, clock=clock)
        for _ in orders:
            rounds.setup()
            rounds.timed()
            rounds.teardown()
            yield


def judge(run: NoiseRun) -> Iterator[Check]:
    """Judge how small a difference can be seen here, and whether the machine kept its speed."""
    if not run.warmup_settled and not run.interrupted:
        yield Check(TOPIC, "problem", "the warm-up never settled", "End the other programs, and try again.")
    if run.throttle:
        yield Check(TOPIC, "problem", f"the GPU was throttled: {', '.join(run.throttle)}", "Let it cool, then try again.")
    num_prompts = len({triple.prompt_index for triple in run.triples})
    if run.interrupted:
        yield Check(TOPIC, "note", f"interrupted after {num_prompts} prompts")
    if num_prompts < intervals.MIN_CLUSTERS:
        yield Check(
            TOPIC,
            "note",
            f"{num_prompts} prompts were measured on {run.pair}; below {intervals.MIN_CLUSTERS} there is no interval",
            "Let it go on for longer (--seconds)." if run.warmup_settled or run.interrupted else "",
        )
        return
    yield _floor(run, num_prompts)
    yield _drift(run)


def _floor(run: NoiseRun, num_prompts: int) -> Check:
    first, second = (np.array([spent(getattr(t, arm), "decode") for t in run.triples]).T for arm in ("ar", "ar_again"))
    if not (first.sum(axis=1) > 0).all() or not (second.sum(axis=1) > 0).all():
        text = f"the generations of {run.pair} end with their first token, so nothing was timed"
        return Check(TOPIC, "note", text, "Name another pair with --pair.")
    clusters = [triple.prompt_index for triple in run.triples]
    floor = intervals.log_ratio_floor(first[0], first[1], second[0], second[1], clusters)
    speed = (first[0].sum() + second[0].sum()) / (first[1].sum() + second[1].sum())
    text = (
        f"A/A floor {floor:.1%}: differences below {floor:.1%} cannot be seen here with {num_prompts} prompts "
        f"({run.pair}, {1000 * speed:.3g} ms/token)"
    )
    if floor <= GOOD_FLOOR:
        return Check(TOPIC, "ok", text)
    wanted = math.ceil(num_prompts * (floor / GOOD_FLOOR) ** 2)
    enough = f"measure about {wanted} prompts, which would bring it to {GOOD_FLOOR:.0%}"
    if floor <= POOR_FLOOR:
        return Check(TOPIC, "note", text, f"For smaller differences {enough}.")
    return Check(TOPIC, "problem", text, f"End the other programs, or {enough}.")


def _drift(run: NoiseRun) -> Check:
    """Compare the second half of the run with the first: Welch's t on the logarithm of seconds per token."""
    from scipy.stats import ttest_ind

    both = [spent(triple.ar, "decode") + spent(triple.ar_again, "decode") for triple in run.triples]
    logs = np.array([math.log((a_s + b_s) / (a + b)) for a_s, a, b_s, b in both if a + b > 0 and a_s + b_s > 0])
    half = len(logs) // 2
    if half < 2 or not logs.std():
        return Check(TOPIC, "ok", "the speed stayed the same")
    drift = float(logs[half:].mean() - logs[:half].mean())
    low, high = ttest_ind(logs[half:], logs[:half], equal_var=False).confidence_interval(0.95)
    text = (
        f"the second half of the run was {abs(drift):.1%} {'slower' if drift > 0 else 'faster'} than the first "
        f"(95 % interval of the change in seconds per token {low:+.1%} to {high:+.1%})"
    )
    if low <= 0 <= high or abs(drift) <= DRIFT:
        return Check(TOPIC, "ok", f"steady: {text}")
    remedy = "Find out what changed meanwhile (heat, another program), and measure when it has settled."
    return Check(TOPIC, "problem" if abs(drift) > POOR_FLOOR else "note", f"drifting: {text}", remedy)
