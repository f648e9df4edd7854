"""Timing on a fake clock: nothing sleeps, and every second is accounted for."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest

from bench.analysis import metrics
from bench.measurement import timing, turns
from bench.records import decoding, machine
from bench.records.decoding import DecodeRequest, ForwardSeconds, Generation, PhaseSeconds, Replay
from bench.records.runs import Conditions, TimedPair
from tests.support.fakes import AsynchronousFake, ConcurrentFake, FakeClock
from tests.support.record_builder import make_cell, make_record

REQUEST = DecodeRequest(prompt_ids=(1,), max_new_tokens=10, num_draft_tokens=1, seed=4)
REQUESTS = (REQUEST,) * 6


def test_a_timed_call_waits_for_the_work_it_asked_for() -> None:
    clock = FakeClock()
    backend = AsynchronousFake(clock)
    assert timing.time_call(backend, backend.generate, REQUEST, clock).seconds == 5 * 3.0


def test_a_timed_call_does_not_pay_for_work_queued_before_it() -> None:
    clock = FakeClock()
    backend = AsynchronousFake(clock)
    backend.queued_s = 1000.0
    assert timing.time_call(backend, backend.generate, REQUEST, clock).seconds == 5 * 3.0


def test_instrumentation_is_paused_inside_a_timed_call_and_restored_after_it() -> None:
    clock = FakeClock()
    backend = AsynchronousFake(clock)
    seen = []

    def call(request: DecodeRequest) -> object:
        seen.append((sys.gettrace(), sys.getprofile()))
        return AsynchronousFake.generate(backend, request)

    def profiler(*_: object) -> None: ...

    before = sys.getprofile()
    sys.setprofile(profiler)
    try:
        timing.time_call(backend, call, REQUEST, clock)  # type: ignore[arg-type]
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(before)
    assert seen == [(None, None)]


def test_seconds_in_which_the_process_was_stopped_are_no_part_of_any(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    backend = AsynchronousFake(clock)
    start = clock()
    stopped = turns.Pauses(((start - 5.0, start - 4.0), (start + 2.0, start + 3.5), (start + 9.0, start + 10.0)))
    monkeypatch.setattr(turns, "side_by_side", lambda: nullcontext(stopped))

    def call(request: DecodeRequest) -> Generation:
        return replace(AsynchronousFake.generate(backend, request), first_token_s=4.0)

    timed = timing.time_call(backend, call, REQUEST, clock, side_by_side=True)
    assert timed.seconds == 5 * 3.0 - 1.5 - 1.0
    assert timed.first_token_s == 4.0 - 1.5
    # Of a warm-up, which nobody makes beside it, all seconds count.
    assert timing.time_call(backend, call, REQUEST, clock).first_token_s == 4.0


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_is_collected_in_neither_arm_and_afterwards_as_before(collecting: bool) -> None:
    clock = FakeClock()

    class Looking(AsynchronousFake):
        def generate(self, request: DecodeRequest) -> Generation:
            seen.append((request.num_draft_tokens > 0, gc.isenabled()))
            return super().generate(request)

    seen: list[tuple[bool, bool]] = []
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with timing.frozen_garbage():
            assert gc.get_freeze_count() > 0
            timing.time_pair(Looking(clock), timing.plan_pairs(1, 1, seed=0)[0], REQUESTS, clock=clock)
        assert gc.isenabled() == collecting
        assert gc.get_freeze_count() == 0
    finally:
        (gc.enable if before else gc.disable)()
    assert sorted(seen) == [(False, False), (True, False)]


def test_a_warm_up_has_room_for_a_whole_round() -> None:
    clock = FakeClock()
    backend = AsynchronousFake(clock)
    request = replace(REQUEST, num_draft_tokens=6, max_new_tokens=64)
    series, settled = timing.warm_up(backend, request, clock=clock)
    assert settled
    assert {call.max_new_tokens for call in backend.calls} == {14}
    assert [call.num_draft_tokens for call in backend.calls] == [0, 6] * len(series)
    timing.warm_up(backend, replace(request, max_new_tokens=5), clock=clock)
    assert backend.calls[-1].max_new_tokens == 5


@pytest.mark.parametrize("change", [0.9, 1.1])
def test_a_series_that_gets_faster_or_slower_is_not_settled(change: float) -> None:
    clock = FakeClock()
    backend = AsynchronousFake(clock, slowness=lambda call: change ** (call // 2))
    series, settled = timing.warm_up(backend, REQUEST, clock=clock)
    assert not settled
    assert len(series) == timing.WARMUP_MAX_STEPS


def test_warm_up_goes_on_until_the_series_stops_falling() -> None:
    clock = FakeClock()
    # 20 calls at falling cost, then steady: two calls a step.
    backend = AsynchronousFake(clock, slowness=lambda call: max(1.0, 10.0 - call // 2))
    series, settled = timing.warm_up(backend, REQUEST, clock=clock)
    assert settled
    assert series[-1] == series[-timing.WARMUP_WINDOW] < series[0]
    assert len(series) > 2 * timing.WARMUP_WINDOW


def test_the_plain_decode_is_warmed_up_with_both_arms_and_without_speculation() -> None:
    class WithPlainDecode(AsynchronousFake):
        def generate_natively(self, request: DecodeRequest) -> Generation:
            requests.append(request)
            return self.generate(request)

    clock, requests = FakeClock(), []  # type: ignore[var-annotated]
    series, settled = timing.warm_up(WithPlainDecode(clock), REQUEST, native=True, clock=clock)
    assert settled
    assert len(requests) == len(series)
    assert all(request.num_draft_tokens == 0 for request in requests)


def test_orders_are_balanced_over_prompts_and_alternate_within_one() -> None:
    plans = timing.plan_pairs(9, 2, seed=1)
    first, second = plans[:9], plans[9:]
    assert abs(Counter(p.order for p in first)["ar_first"] - 4.5) == 0.5
    assert Counter(p.order for p in plans) == {"ar_first": 9, "sd_first": 9}
    assert [repeat for plan in plans for _, repeat in plan.texts] == [0] * 9 + [1] * 9
    visited = [[plan.texts[0][0] for plan in part] for part in (first, second)]
    assert all(sorted(prompts) == list(range(9)) != prompts for prompts in visited)
    assert visited[0] != visited[1]
    orders = {plan.texts[0]: plan.order for plan in plans}
    assert all(orders[prompt, 0] != orders[prompt, 1] for prompt in range(9))
    assert timing.plan_pairs(9, 2, seed=1) == plans != timing.plan_pairs(9, 2, seed=2)


def test_with_concurrency_every_prompt_comes_equally_often_and_no_text_twice() -> None:
    plans = timing.plan_pairs(5, 2, seed=1, concurrency=3)
    texts = [text for plan in plans for text in plan.texts]
    assert all(len({prompt for prompt, _ in plan.texts}) == 3 for plan in plans)
    assert len(set(texts)) == len(texts) == 30
    assert set(Counter(prompt for prompt, _ in texts).values()) == {6}
    assert len(timing.plan_pairs(2, 1, seed=1, concurrency=5)[0].texts) == 5  # more than there are prompts


def test_texts_decoded_together_have_separate_seconds_and_share_a_batch() -> None:
    clock = FakeClock()
    backend = ConcurrentFake(clock)
    plans = timing.plan_pairs(4, 1, seed=0, concurrency=2)
    pairs = [pair for plan in plans for pair in timing.time_pair(backend, plan, REQUESTS, clock=clock)]
    assert [len(calls) for calls in backend.together] == [2] * 8
    assert [(pair.ar.seconds, pair.sd.seconds) for pair in pairs[:2]] == [(20.0, 15.0), (40.0, 30.0)]
    assert metrics.groups_of(replace(make_record(make_cell(concurrency=2)), pairs=tuple(pairs))) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({pair.sd.seed for pair in pairs}) == 8


class InstrumentedFake(AsynchronousFake):
    """Offers both instruments, and counts how often they were used."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.timed: list[DecodeRequest] = []
        self.replayed: list[DecodeRequest] = []

    def time_forwards(self, request: DecodeRequest, *, context_length: int, samples: int) -> tuple[ForwardSeconds, ...]:
        self.timed.append(request)
        return (ForwardSeconds(context_length, 1.0, 1.0, 1.0),) * samples

    def replay(self, request: DecodeRequest) -> Replay:
        self.replayed.append(request)
        return Replay((), (), (), None, PhaseSeconds(0, 0, 0, 0, 0))


@pytest.mark.parametrize("every", [1, 3])
def test_instruments_follow_every_nth_prompt_and_each_prompt_has_them_in_some_repeat(every: int) -> None:
    clock = FakeClock()
    backend = InstrumentedFake(clock)
    plans = timing.plan_pairs(6, 3, seed=0)
    pairs = [pair for plan in plans for pair in timing.time_pair(backend, plan, REQUESTS, instrument_every=every, clock=clock)]
    instrumented = [pair for pair in pairs if pair.replay is not None]
    assert len(instrumented) == len(backend.timed) == len(backend.replayed) == 18 // every
    assert all(bool(pair.forwards) == (pair.replay is not None) for pair in pairs)
    assert {pair.prompt_index for pair in instrumented} == set(range(6))


def test_a_text_that_ends_after_the_call_is_refused_and_so_is_load_on_a_backend_that_takes_none() -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match="last tokens within"):
        timing.time_together(ConcurrentFake(clock, late_s=1000.0), [REQUEST, REQUEST], clock)
    with pytest.raises(ValueError, match="one prompt at a time"):
        timing.time_together(AsynchronousFake(clock), [REQUEST, REQUEST], clock)


def test_every_baseline_order_comes_up_equally_often() -> None:
    assert set(Counter(timing.plan_baseline(12, seed=3, native=True)).values()) == {2}
    assert set(Counter(timing.plan_baseline(12, seed=3, native=False)).values()) == {6}


def test_seeds_depend_on_prompt_repeat_and_arm_and_on_nothing_else() -> None:
    seeds = {decoding.derive_seed(0, prompt, repeat, arm) for prompt in range(5) for repeat in (0, 1) for arm in ("ar", "sd")}
    assert len(seeds) == 20
    assert decoding.derive_seed(0, 1, "ar") == decoding.derive_seed(0, 1, "ar")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_pairs_run_both_arms_adjacent_in_the_planned_order() -> None:
    clock = FakeClock()
    backend = AsynchronousFake(clock)
    plans = timing.plan_pairs(4, 1, seed=0)
    pairs: list[TimedPair] = []
    for plan in plans:
        pairs += timing.time_pair(backend, plan, REQUESTS, clock=clock)
        kinds = [call.num_draft_tokens for call in backend.calls[-2:]]
        assert kinds == ([0, 1] if plan.order == "ar_first" else [1, 0])
    assert len(backend.calls) == 8
    assert [(pair.ar.seconds, pair.sd.seconds) for pair in pairs] == [(20.0, 15.0)] * 4
    assert [pair.order for pair in pairs] == [plan.order for plan in plans]
    assert len({pair.ar.seed for pair in pairs} | {pair.sd.seed for pair in pairs}) == 8


def test_conditions_are_those_of_each_arm_and_none_where_no_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    plan = timing.plan_pairs(1, 1, seed=0)[0]
    monkeypatch.setattr(machine, "cpu_use", lambda: machine.CpuUse(2 * clock(), clock(), clock() / 4, clock() / 2))
    (pair,) = timing.time_pair(AsynchronousFake(clock), plan, REQUESTS, device="cpu", clock=clock)
    # The fake AR takes 20 s and SD 15 s; of two cores, one is busy, half of that with this process.
    assert pair.ar.conditions == Conditions(cpu_s=40.0, steal_s=5.0, others_s=10.0)
    assert pair.sd.conditions == Conditions(cpu_s=30.0, steal_s=3.75, others_s=7.5)
    (pair,) = timing.time_pair(AsynchronousFake(clock), plan, REQUESTS, clock=clock)
    assert pair.ar.conditions is None
    # In turns, the other processes that measure would count as load.
    monkeypatch.setattr(turns, "are_taken", lambda: True)
    monkeypatch.setattr(turns, "side_by_side", lambda: nullcontext(turns.Pauses()))
    (pair,) = timing.time_pair(AsynchronousFake(clock), plan, REQUESTS, device="cpu", clock=clock)
    assert pair.ar.conditions == Conditions()


def test_the_baseline_of_a_backend_without_a_native_decode_is_the_arm_against_itself() -> None:
    clock = FakeClock()
    backend = AsynchronousFake(clock)
    orders = timing.plan_baseline(2, seed=0, native=False)
    triples = [timing.time_triple(backend, index, order, REQUEST, clock=clock) for index, order in enumerate(orders)]
    assert [triple.native for triple in triples] == [None, None]
    assert all(call.num_draft_tokens == 0 for call in backend.calls)
    assert all(triple.ar.seed != triple.ar_again.seed for triple in triples)


def test_requesting_a_native_decode_of_that_backend_is_an_error() -> None:
    clock = FakeClock()
    (order,) = timing.plan_baseline(1, seed=0, native=True)
    with pytest.raises(ValueError, match="has no plain decode beside its AR arm"):
        timing.time_triple(AsynchronousFake(clock), 0, order, REQUEST, clock=clock)
