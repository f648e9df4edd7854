"""Timing: one generation, a warm-up, a pair, a baseline triple, a cell of pairs as pytest-benchmark rounds.

The unit is the pair: one prompt, autoregressive (AR) and speculative (SD) adjacent in time, in a balanced, seeded and
stored order. Every timed region waits for the backend before it starts and before it stops. Seconds are wall-clock.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

from bench.measurement import turns
from bench.protocols import Backend, Clock, Concurrent, ForwardTimed, NativeBaseline, Replayable
from bench.records.decoding import AUTOREGRESSIVE, DecodeRequest, ForwardSeconds, Generation, Replay, derive_seed
from bench.records.runs import BaselineTriple, Order, TimedArm, TimedPair

T = TypeVar("T")
Generate = Callable[[DecodeRequest], Generation]

WARMUP_TOKENS = 4  # one short generation per warm-up step
WARMUP_WINDOW = 3  # the last window must not be faster than the one before it ...
WARMUP_TREND = 0.05  # ... by more than this share
WARMUP_MAX_STEPS = 24
FORWARD_SAMPLES = 3  # bare forwards of each kind, timed after an instrumented pair


@contextmanager
def uninstrumented() -> Iterator[None]:
    """Pause coverage tracers and profilers: they would slow the arm that runs more Python."""
    tracer, profiler = sys.gettrace(), sys.getprofile()
    sys.settrace(None)
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
        sys.setprofile(profiler)


@dataclass(frozen=True, slots=True)
class _Timed(Generic[T]):
    """What a call returned, when it started, how long it took, and when this process was stopped meanwhile."""

    returned: T
    start: float
    seconds: float
    pauses: turns.Pauses

    def arm(self, request: DecodeRequest, generation: Generation, seconds: float) -> TimedArm:
        """Return the arm of a generation that ended so many seconds after the start. Pauses do not count."""
        first_token_s = generation.first_token_s
        return TimedArm(
            seed=request.seed,
            seconds=self._without_pauses(seconds),
            first_token_s=None if first_token_s is None else self._without_pauses(first_token_s),
            token_ids=generation.token_ids,
            finish_reason=generation.finish_reason,
            rounds=generation.rounds,
        )

    def _without_pauses(self, seconds: float) -> float:
        return seconds - self.pauses.between(self.start, self.start + seconds)


def _timed(backend: Backend, call: Callable[[], T], clock: Clock, *, side_by_side: bool) -> _Timed[T]:
    """Call, with instrumentation paused, and wait for the backend before and after."""
    with uninstrumented(), turns.side_by_side() if side_by_side else nullcontext(turns.Pauses()) as pauses:
        backend.synchronize()  # work queued earlier must not count
        start = clock()
        returned = call()
        backend.synchronize()  # `call` may return before the device has finished
        end = clock()
    return _Timed(returned, start, end - start, pauses)


def time_call(
    backend: Backend, call: Generate, request: DecodeRequest, clock: Clock = time.perf_counter, *, side_by_side: bool = False
) -> TimedArm:
    """Time one generation; with `side_by_side` in slices, in turn with the same call of other processes, if any."""
    timed = _timed(backend, lambda: call(request), clock, side_by_side=side_by_side)
    return timed.arm(request, timed.returned, timed.seconds)


def time_together(
    backend: Backend, requests: Sequence[DecodeRequest], clock: Clock = time.perf_counter, *, side_by_side: bool = False
) -> tuple[TimedArm, ...]:
    """Time generations that are decoded at once, each to its last token. Raise ValueError if the backend cannot do it."""
    if len(requests) == 1:
        return (time_call(backend, backend.generate, requests[0], clock, side_by_side=side_by_side),)
    if not isinstance(backend, Concurrent):
        raise ValueError(f"backend {backend.name} decodes one prompt at a time")
    timed = _timed(backend, partial(backend.generate_together, requests), clock, side_by_side=side_by_side)
    arms, whole_s = [], timed.seconds
    for request, generation in zip(requests, timed.returned, strict=True):
        last = generation.last_token_s
        if last is None or not 0 < last <= whole_s:
            raise ValueError(f"expected last tokens within the {whole_s:.3f} s of the call, {backend.name} reports {last}")
        arms.append(timed.arm(request, generation, last))
    return tuple(arms)


def autoregressive(request: DecodeRequest) -> DecodeRequest:
    """Return the same request for the baseline arm."""
    return replace(request, num_draft_tokens=AUTOREGRESSIVE)


def warm_up(
    backend: Backend,
    request: DecodeRequest,
    *,
    concurrency: int = 1,
    further: Sequence[Generate] = (),
    clock: Clock = time.perf_counter,
) -> tuple[tuple[float, ...], bool]:
    """Decode a few tokens in both arms, again and again, until they stop getting faster.

    Args:    further: calls that decode without speculation and are warmed up too, such as the engine's own plain decode
    Returns: seconds per token of every step, and whether the series settled within WARMUP_MAX_STEPS
    """
    short = replace(request, max_new_tokens=min(WARMUP_TOKENS, request.max_new_tokens), eos_token_ids=())
    series: list[float] = []
    while len(series) < WARMUP_MAX_STEPS:
        arms = [
            text
            for arm in (autoregressive(short), short)
            for text in time_together(backend, [replace(arm, seed=seed) for seed in range(concurrency)], clock)
        ]
        arms += [time_call(backend, call, autoregressive(short), clock) for call in further]
        series.append(sum(arm.seconds for arm in arms) / sum(len(arm.token_ids) for arm in arms))
        if len(series) >= 2 * WARMUP_WINDOW:
            before = statistics.median(series[-2 * WARMUP_WINDOW : -WARMUP_WINDOW])
            latest = statistics.median(series[-WARMUP_WINDOW:])
            if latest > before * (1 - WARMUP_TREND):
                return tuple(series), True
    return tuple(series), False


@dataclass(frozen=True, slots=True)
class PairPlan:
    """One round of a cell: what each arm decodes together, which is one prompt by default."""

    texts: tuple[tuple[int, int], ...]  # prompt and repeat of each generation
    order: Order


def plan_pairs(num_prompts: int, repeats: int, *, seed: int, concurrency: int = 1) -> tuple[PairPlan, ...]:
    """Return a plan with every prompt `repeats` times: half of the pairs AR first (to within one), in a seeded order.

    The order alternates between the repeats of one prompt, so that a drift of the machine does not favour one arm. With
    concurrency, round i decodes the prompts i, i + 1, ... (modulo their number), and every prompt is decoded
    `repeats * concurrency` times.
    """
    orders: list[Order] = ["ar_first", "sd_first"]
    flips = [index % 2 for index in range(num_prompts)]
    random.Random(derive_seed(seed, "order")).shuffle(flips)
    return tuple(
        PairPlan(
            tuple(((prompt + place) % num_prompts, repeat * concurrency + place) for place in range(concurrency)),
            orders[(flips[prompt] + repeat) % 2],
        )
        for repeat in range(repeats)
        for prompt in range(num_prompts)
    )


def plan_baseline(num_prompts: int, *, seed: int, native: bool) -> tuple[tuple[str, ...], ...]:
    """Return the order of the baseline arms for each prompt: all permutations in turn, shuffled by the seed."""
    names = ("ar", "ar_again", "native") if native else ("ar", "ar_again")
    orders = list(itertools.permutations(names))
    random.Random(derive_seed(seed, "baseline")).shuffle(orders)
    return tuple(orders[index % len(orders)] for index in range(num_prompts))


@dataclass(slots=True)
class ArmRounds(Generic[T]):
    """Several arms per round, run by `benchmark.pedantic`: `setup`, `timed` and `teardown` are its three callables.

    Every round has its order of arms. pytest-benchmark times the arm named `timed_arm`; the arms before it run in `setup`,
    those after it in `teardown`. Our own clock times all arms in the same way.
    """

    orders: Sequence[Sequence[str]]
    run_arm: Callable[[int, str], T]  # of the round with this index
    on_round: Callable[[int, Mapping[str, T]], None]
    timed_arm: str
    index: int = -1
    arms: dict[str, T] = field(default_factory=dict)

    def setup(self) -> None:
        self.index += 1
        self.arms = {}
        order = self.orders[self.index]
        self._run(order[: order.index(self.timed_arm)])

    def timed(self) -> None:
        self._run((self.timed_arm,))

    def teardown(self) -> None:
        order = self.orders[self.index]
        self._run(order[order.index(self.timed_arm) + 1 :])
        self.on_round(self.index, self.arms)

    def _run(self, names: Sequence[str]) -> None:
        for name in names:
            self.arms[name] = self.run_arm(self.index, name)

    def run_all(self) -> None:
        """Run the same rounds without pytest-benchmark."""
        for _ in self.orders:
            self.setup()
            self.timed()
            self.teardown()


def pair_rounds(
    backend: Backend,
    plans: Sequence[PairPlan],
    requests: Sequence[DecodeRequest],  # the speculative one of each prompt, with the cell's seed; each arm derives another
    *,
    on_pairs: Callable[[tuple[TimedPair, ...]], None],
    instrument_every: int = 1,  # 4: bare forwards and a replay, as long as an arm, after every fourth pair; 0: never
    clock: Clock = time.perf_counter,
) -> ArmRounds[tuple[TimedArm, ...]]:
    """Return the pairs of one cell as rounds; `on_pairs` receives the pairs of each."""

    def seeded(text: tuple[int, int], arm: str) -> DecodeRequest:
        request = requests[text[0]]
        request = replace(request, seed=derive_seed(request.seed, *text, arm))
        return request if arm == "sd" else autoregressive(request)

    def run_arm(index: int, arm: str) -> tuple[TimedArm, ...]:
        texts = [seeded(text, arm) for text in plans[index].texts]
        return time_together(backend, texts, clock, side_by_side=True)

    def on_round(index: int, arms: Mapping[str, tuple[TimedArm, ...]]) -> None:
        plan = plans[index]
        alone = len(plan.texts) == 1
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
            pairs.append(TimedPair(*text, plan.order, ar, sd, forwards, replay, group))
        on_pairs(tuple(pairs))

    orders = [("ar", "sd") if plan.order == "ar_first" else ("sd", "ar") for plan in plans]
    return ArmRounds(orders, run_arm, on_round, timed_arm="sd")


def baseline_rounds(
    backend: Backend,
    orders: Mapping[int, tuple[str, ...]],  # of the arms, by the index of the prompt
    requests: Sequence[DecodeRequest],  # one for each prompt, with the cell's seed
    *,
    on_triple: Callable[[BaselineTriple], None],
    clock: Clock = time.perf_counter,
) -> ArmRounds[TimedArm]:
    """Return rounds without speculation: each prompt twice by the AR arm, and once by the engine's own plain decode, if any."""
    prompts = tuple(orders)

    def run_arm(index: int, arm: str) -> TimedArm:
        prompt = prompts[index]
        request = autoregressive(requests[prompt])
        call = backend.generate
        if arm == "native":
            if not isinstance(backend, NativeBaseline):
                raise ValueError(f"backend {backend.name} has no plain decode beside its AR arm")
            call = backend.generate_natively
        request = replace(request, seed=derive_seed(request.seed, prompt, arm))
        return time_call(backend, call, request, clock, side_by_side=True)

    def on_round(index: int, arms: Mapping[str, TimedArm]) -> None:
        prompt = prompts[index]
        on_triple(BaselineTriple(prompt, orders[prompt], arms["ar"], arms["ar_again"], arms.get("native")))

    return ArmRounds(tuple(orders.values()), run_arm, on_round, timed_arm="ar")
