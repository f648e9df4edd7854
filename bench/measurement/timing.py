"""Timing: one generation, a warm-up, a pair, a baseline triple.

The unit is the pair: one prompt, autoregressive (AR) and speculative (SD), in a balanced, seeded and stored order. Both advance
in turns, if the engine can do that; otherwise one follows the other. Every timed region waits for the
backend before it starts and before it stops. Seconds are wall-clock.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from bench.measurement import turns
from bench.measurement.interleaving import in_turns
from bench.protocols import (
    Backend,
    Clock,
    Concurrent,
    Decoding,
    ForwardTimed,
    NativeBaseline,
    Replayable,
    Steppable,
    SteppableBaseline,
)
from bench.records import machine
from bench.records.decoding import AUTOREGRESSIVE, DecodeRequest, ForwardSeconds, Generation, Replay, derive_seed
from bench.records.runs import BaselineTriple, Conditions, Order, TimedArm, TimedPair

T = TypeVar("T")
Generate = Callable[[DecodeRequest], Generation]
Start = Callable[[DecodeRequest], Decoding]

NATIVE = "native"  # the arm that is the engine's own plain decode

WARMUP_TOKENS = 4  # at least so many per warm-up step, and enough for a whole round
WARMUP_WINDOW = 3  # the medians of the last two windows must not differ ...
WARMUP_TREND = 0.05  # ... by more than this share
WARMUP_MAX_STEPS = 48
FORWARD_SAMPLES = 3  # bare forwards of each kind, timed after an instrumented pair


@contextmanager
def uninstrumented() -> Iterator[None]:
    """Pause coverage tracers, profilers and garbage collection: they would slow the arm that runs more Python."""
    tracer, profiler, collecting = sys.gettrace(), sys.getprofile(), gc.isenabled()
    sys.settrace(None)
    sys.setprofile(None)
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        sys.settrace(tracer)
        sys.setprofile(profiler)


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Collect garbage, and leave all older objects out of later collections, which are then short."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True, slots=True)
class _Timed(Generic[T]):
    """What a call returned, when it started, how long it took, and what happened meanwhile."""

    returned: T
    start: float
    seconds: float
    pauses: turns.Pauses  # of this process
    conditions: Conditions | None

    def arm(self, request: DecodeRequest, generation: Generation, seconds: float) -> TimedArm:
        """Return the arm of a generation that ended so many seconds after the start. Pauses do not count."""
        first_token_s = generation.first_token_s
        without_pauses = None if first_token_s is None else self._without_pauses(first_token_s)
        return arm_of(request, generation, self._without_pauses(seconds), without_pauses, self.conditions)

    def _without_pauses(self, seconds: float) -> float:
        return seconds - self.pauses.between(self.start, self.start + seconds)


def arm_of(
    request: DecodeRequest, generation: Generation, seconds: float, first_token_s: float | None, conditions: Conditions | None
) -> TimedArm:
    return TimedArm(
        seed=request.seed,
        seconds=seconds,
        first_token_s=first_token_s,
        token_ids=generation.token_ids,
        finish_reason=generation.finish_reason,
        rounds=generation.rounds,
        conditions=conditions,
    )


def _timed(
    backend: Backend, call: Callable[[], T], clock: Clock, *, side_by_side: bool, device: str | None = None
) -> _Timed[T]:
    """Call, with instrumentation paused, and wait for the backend before and after. Read conditions if a device is given."""
    conditions = None
    with uninstrumented(), turns.side_by_side() if side_by_side else nullcontext(turns.Pauses()) as pauses:
        # In turns, the slices of the other processes would count as load.
        before = None if device is None or turns.are_taken() else machine.cpu_use()
        backend.synchronize()  # work queued earlier must not count
        start = clock()
        returned = call()
        backend.synchronize()  # `call` may return before the device has finished
        end = clock()
        if device is not None:
            conditions = machine.conditions_since(before, device)
    return _Timed(returned, start, end - start, pauses, conditions)


def time_call(
    backend: Backend,
    call: Generate,
    request: DecodeRequest,
    clock: Clock = time.perf_counter,
    *,
    side_by_side: bool = False,  # in slices, in turn with the same call of other processes, if any
    device: str | None = None,  # whose clock and throttling are read, and the load of the processor; None: nothing is
) -> TimedArm:
    """Time one generation."""
    timed = _timed(backend, lambda: call(request), clock, side_by_side=side_by_side, device=device)
    return timed.arm(request, timed.returned, timed.seconds)


def time_together(
    backend: Backend,
    requests: Sequence[DecodeRequest],
    clock: Clock = time.perf_counter,
    *,
    side_by_side: bool = False,
    device: str | None = None,
) -> tuple[TimedArm, ...]:
    """Time generations that are decoded at once, each to its last token. Raise ValueError if the backend cannot do it."""
    if len(requests) == 1:
        return (time_call(backend, backend.generate, requests[0], clock, side_by_side=side_by_side, device=device),)
    if not isinstance(backend, Concurrent):
        raise ValueError(f"backend {backend.name} decodes one prompt at a time")
    together = partial(backend.generate_together, requests)
    timed = _timed(backend, together, clock, side_by_side=side_by_side, device=device)
    arms, whole_s = [], timed.seconds
    for request, generation in zip(requests, timed.returned, strict=True):
        last = generation.last_token_s
        if last is None or not 0 < last <= whole_s:
            raise ValueError(f"expected last tokens within the {whole_s:.3f} s of the call, {backend.name} reports {last}")
        arms.append(timed.arm(request, generation, last))
    return tuple(arms)


def interleaves(backend: Backend, arms: Collection[str]) -> bool:
    """Return whether the engine can advance these arms in turns."""
    return isinstance(backend, Steppable) and (NATIVE not in arms or isinstance(backend, SteppableBaseline))


def time_arms(
    backend: Backend,
    requests: Mapping[str, DecodeRequest],  # in the order in which they begin
    clock: Clock = time.perf_counter,
    *,
    interleaved: bool,
    side_by_side: bool = False,
    device: str | None = None,
) -> dict[str, TimedArm]:
    """Time arms of one prompt, in turns or one after the other. The conditions of interleaved arms are those of all of them."""
    if not interleaved:
        return {
            arm: time_call(backend, _generate(backend, arm), request, clock, side_by_side=side_by_side, device=device)
            for arm, request in requests.items()
        }
    decodings = _started(backend, requests)
    advance = partial(in_turns, backend, decodings, clock)
    timed = _timed(backend, advance, clock, side_by_side=side_by_side, device=device)
    pauses = timed.pauses
    return {
        arm: arm_of(requests[arm], each.generation, each.seconds(pauses), each.first_token_s(pauses), timed.conditions)
        for arm, each in timed.returned.items()
    }


def _started(backend: Backend, requests: Mapping[str, DecodeRequest]) -> dict[str, Decoding]:
    decodings: dict[str, Decoding] = {}
    try:
        for arm, request in requests.items():
            decodings[arm] = _start(backend, arm)(request)
    except BaseException:  # an engine that does not start, or Ctrl-C meanwhile
        for decoding in decodings.values():
            decoding.close()
        raise
    return decodings


def _generate(backend: Backend, arm: str) -> Generate:
    if arm != NATIVE:
        return backend.generate
    if not isinstance(backend, NativeBaseline):
        raise ValueError(f"backend {backend.name} has no plain decode beside its AR arm")
    return backend.generate_natively


def _start(backend: Backend, arm: str) -> Start:
    if arm == NATIVE and isinstance(backend, SteppableBaseline):
        return backend.start_natively
    if arm != NATIVE and isinstance(backend, Steppable):
        return backend.start
    raise ValueError(f"backend {backend.name} cannot be advanced step by step in its arm {arm}")


def autoregressive(request: DecodeRequest) -> DecodeRequest:
    """Return the same request for the baseline arm."""
    return replace(request, num_draft_tokens=AUTOREGRESSIVE)


def warm_up(
    backend: Backend,
    request: DecodeRequest,
    *,
    concurrency: int = 1,
    native: bool = False,  # the engine's own plain decode too
    interleave: bool = True,
    clock: Clock = time.perf_counter,
) -> tuple[tuple[float, ...], bool]:
    """Decode a few tokens in all arms, again and again, until the time that it takes stays the same.

    A step has room for a round of k + 1 tokens, which needs forwards of the measured shape: 1 + (k + 1) <= 2 * (k + 1).

    Returns: seconds per token of every step, and whether the series settled within WARMUP_MAX_STEPS
    """
    num_tokens = min(max(WARMUP_TOKENS, 2 * (request.num_draft_tokens + 1)), request.max_new_tokens)
    short = replace(request, max_new_tokens=num_tokens, eos_token_ids=(), seed=0)
    plain = autoregressive(short)
    requests = {"ar": plain, "sd": short, **({NATIVE: plain} if native else {})}
    interleaved = interleave and concurrency == 1 and interleaves(backend, requests)
    series: list[float] = []
    while len(series) < WARMUP_MAX_STEPS:
        if concurrency == 1:
            arms = list(time_arms(backend, requests, clock, interleaved=interleaved).values())
        else:
            batches = ([replace(arm, seed=seed) for seed in range(concurrency)] for arm in (plain, short))
            arms = [arm for batch in batches for arm in time_together(backend, batch, clock)]
        series.append(sum(arm.seconds for arm in arms) / sum(len(arm.token_ids) for arm in arms))
        if len(series) >= 2 * WARMUP_WINDOW:
            before = statistics.median(series[-2 * WARMUP_WINDOW : -WARMUP_WINDOW])
            latest = statistics.median(series[-WARMUP_WINDOW:])
            if abs(latest - before) <= WARMUP_TREND * before:
                return tuple(series), True
    return tuple(series), False


@dataclass(frozen=True, slots=True)
class PairPlan:
    """One round of a cell: what each arm decodes together, which is one prompt by default."""

    texts: tuple[tuple[int, int], ...]  # prompt and repeat of each generation
    order: Order


def plan_pairs(num_prompts: int, repeats: int, *, seed: int, concurrency: int = 1) -> tuple[PairPlan, ...]:
    """Return a plan with every prompt `repeats` times: half of the pairs AR first (to within one), in a seeded order.

    Every repeat visits the prompts in another random order. The order of the arms alternates between the repeats of one
    prompt, so that a drift of the machine does not favour one arm. With
    concurrency, round i decodes the prompts i, i + 1, ... (modulo their number), and every prompt is decoded
    `repeats * concurrency` times.
    """
    orders: list[Order] = ["ar_first", "sd_first"]
    flips = [index % 2 for index in range(num_prompts)]
    random.Random(derive_seed(seed, "order")).shuffle(flips)
    visits = random.Random(derive_seed(seed, "prompts"))
    return tuple(
        PairPlan(
            tuple(((prompt + place) % num_prompts, repeat * concurrency + place) for place in range(concurrency)),
            orders[(flips[prompt] + repeat) % 2],
        )
        for repeat in range(repeats)
        for prompt in visits.sample(range(num_prompts), num_prompts)
    )


def plan_baseline(num_prompts: int, *, seed: int, native: bool) -> tuple[tuple[str, ...], ...]:
    """Return the order of the baseline arms for each prompt: all permutations in turn, shuffled by the seed."""
    names = ("ar", "ar_again", NATIVE) if native else ("ar", "ar_again")
    orders = list(itertools.permutations(names))
    random.Random(derive_seed(seed, "baseline")).shuffle(orders)
    return tuple(orders[index % len(orders)] for index in range(num_prompts))


def time_pair(
    backend: Backend,
    plan: PairPlan,
    requests: Sequence[DecodeRequest],  # the speculative one of each prompt, with the cell's seed; each arm derives another
    *,
    instrument_every: int = 1,  # 4: bare forwards and a replay, as long as an arm, after every fourth pair; 0: never
    interleave: bool = True,  # if the engine can
    device: str | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[TimedPair, ...]:
    """Time both arms of a round in its order; one pair for each prompt that is decoded together."""

    def seeded(text: tuple[int, int], arm: str) -> DecodeRequest:
        request = requests[text[0]]
        request = replace(request, seed=derive_seed(request.seed, *text, arm))
        return request if arm == "sd" else autoregressive(request)

    order = ("ar", "sd") if plan.order == "ar_first" else ("sd", "ar")
    alone = len(plan.texts) == 1
    interleaved = interleave and alone and interleaves(backend, order)
    arms: dict[str, tuple[TimedArm, ...]] = {}
    if alone:
        one = {arm: seeded(plan.texts[0], arm) for arm in order}
        timed = time_arms(backend, one, clock, interleaved=interleaved, side_by_side=True, device=device)
        arms = {arm: (each,) for arm, each in timed.items()}
    else:
        for arm in order:
            together = [seeded(text, arm) for text in plan.texts]
            arms[arm] = time_together(backend, together, clock, side_by_side=True, device=device)
    pairs = []
    for text, ar, sd in zip(plan.texts, arms["ar"], arms["sd"], strict=True):
        forwards: tuple[ForwardSeconds, ...] = ()
        replay: Replay | None = None
        if instrument_every > 0 and sum(text) % instrument_every == 0:
            request = seeded(text, "sd")
            if alone and isinstance(backend, ForwardTimed):  # bare forwards of one generation do not predict a batch
                # Forwards get slower with the context; the middle of the generation is its mean.
                length = len(request.prompt_ids) + len(sd.token_ids) // 2
                forwards = backend.time_forwards(request, context_length=length, samples=FORWARD_SAMPLES)
            replay = backend.replay(request) if isinstance(backend, Replayable) else None
        group = None if alone else plan.texts[0][0]
        pairs.append(TimedPair(*text, plan.order, ar, sd, forwards, replay, group, interleaved=interleaved))
    return tuple(pairs)


def time_triple(
    backend: Backend,
    prompt: int,
    order: Sequence[str],
    request: DecodeRequest,  # of this prompt, with the cell's seed
    *,
    interleave: bool = True,  # if the engine can
    device: str | None = None,
    clock: Clock = time.perf_counter,
) -> BaselineTriple:
    """Time one prompt without speculation: twice by the AR arm, and once by the engine's own plain decode, if any."""
    requests = {arm: replace(autoregressive(request), seed=derive_seed(request.seed, prompt, arm)) for arm in order}
    interleaved = interleave and interleaves(backend, order)
    arms = time_arms(backend, requests, clock, interleaved=interleaved, side_by_side=True, device=device)
    return BaselineTriple(prompt, tuple(order), arms["ar"], arms["ar_again"], arms.get(NATIVE), interleaved)
