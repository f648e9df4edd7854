"""Generations that advance in turns: who goes next, and whose clock runs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pytest

from bench.measurement import timing, turns
from bench.measurement.interleaving import in_turns
from bench.protocols import Steppable
from bench.records.decoding import DecodeRequest, Generation, Round
from tests.support.fakes import AsynchronousFake, FakeClock

REQUEST = DecodeRequest(prompt_ids=(1,), max_new_tokens=7, num_draft_tokens=1, seed=4)
PLAIN = replace(REQUEST, num_draft_tokens=0)


@dataclass
class Steps:
    """A generation of the fake below: the first step gives one token, later ones one or, with speculation, two."""

    backend: SteppableFake
    request: DecodeRequest
    tokens: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    closed: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def advance(self) -> bool:
        name = "sd" if self.request.num_draft_tokens else "ar"
        self.backend.log.append(name)
        if len(self.backend.log) == self.backend.fails_at:
            raise RuntimeError("out of memory")
        self.backend.queued_s += (
            self.backend.prefill_s if not self.tokens else self.backend.round_s if name == "sd" else self.backend.ar_s
        )
        num = 2 if name == "sd" and self.tokens else 1
        if num == 2:
            self.rounds.append(Round(drafted=1, accepted=1, emitted=2))
        self.tokens += range(num)
        return len(self.tokens) >= self.request.max_new_tokens

    def generation(self) -> Generation:
        return Generation(tuple(self.tokens), "length", tuple(self.rounds), first_token_s=4.0)

    def close(self) -> None:
        self.closed = True


class SteppableFake(AsynchronousFake):
    fails_at = 0
    prefill_s = 5.0

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.log: list[str] = []
        self.started: list[Steps] = []

    def start(self, request: DecodeRequest) -> Steps:
        self.started.append(Steps(self, request))
        return self.started[-1]


def test_the_generation_with_the_fewest_tokens_goes_next_and_the_first_named_on_a_tie() -> None:
    backend = SteppableFake(FakeClock())
    assert isinstance(backend, Steppable)
    in_turns(backend, {"sd": backend.start(REQUEST), "ar": backend.start(PLAIN)}, backend.clock)
    # Tokens of sd and ar: 1 0, 1 1, 3 1, 3 2, 3 3, 5 3, 5 4, 5 5, 7 5, 7 6, 7 7.
    assert backend.log == ["sd", "ar", "sd", "ar", "ar", "sd", "ar", "ar", "sd", "ar", "ar"]


def test_a_turn_is_as_many_steps_as_it_has_room_for() -> None:
    backend = SteppableFake(FakeClock())
    backend.ar_s, backend.round_s, backend.prefill_s = 0.02, 0.03, 0.06
    in_turns(backend, {"sd": backend.start(REQUEST), "ar": backend.start(PLAIN)}, backend.clock)
    # A prefill is a turn. Then three steps of AR (0.06 s) and two rounds of SD (0.06 s).
    assert backend.log == ["sd", "ar", "sd", "sd", "ar", "ar", "ar", "ar", "ar", "ar", "sd"]


@pytest.mark.parametrize("order", ["ar_first", "sd_first"])
def test_each_arm_of_a_pair_pays_for_its_own_steps_only(order: str) -> None:
    clock = FakeClock()
    backend = SteppableFake(clock)
    plan = replace(timing.plan_pairs(1, 1, seed=0)[0], order=order)
    (pair,) = timing.time_pair(backend, plan, (REQUEST,), clock=clock)
    assert pair.interleaved
    assert backend.log[0] == order[:2]
    assert (pair.ar.seconds, pair.sd.seconds) == (5.0 + 6 * 2.0, 5.0 + 3 * 3.0)
    assert (pair.ar.first_token_s, pair.sd.first_token_s) == (4.0, 4.0)
    assert backend.calls == []  # nothing is generated as a whole
    (whole,) = timing.time_pair(backend, plan, (REQUEST,), interleave=False, clock=clock)
    assert not whole.interleaved
    assert len(backend.calls) == 2
    assert (whole.ar.seed, whole.sd.seed) == (pair.ar.seed, pair.sd.seed)


def test_seconds_in_which_the_process_was_stopped_count_for_no_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    backend = SteppableFake(clock)
    start = clock()
    # The prefills take 5 s each, ar first: one stop in the middle of ar's, one across the end of both.
    stopped = turns.Pauses(((start + 1.0, start + 2.0), (start + 9.0, start + 10.5)))
    monkeypatch.setattr(turns, "side_by_side", lambda: nullcontext(stopped))
    requests = {"ar": PLAIN, "sd": REQUEST}
    arms = timing.time_arms(backend, requests, clock, interleaved=True, side_by_side=True)
    assert arms["ar"].seconds + arms["sd"].seconds == 17.0 + 14.0 - 2.5
    assert arms["ar"].first_token_s == 3.0
    assert arms["sd"].first_token_s == 4.0


def test_the_baseline_and_the_warm_up_are_interleaved_too() -> None:
    clock = FakeClock()
    backend = SteppableFake(clock)
    triple = timing.time_triple(backend, 0, ("ar_again", "ar"), REQUEST, clock=clock)
    assert triple.interleaved
    assert triple.ar.seconds == triple.ar_again.seconds == 17.0
    _, settled = timing.warm_up(backend, REQUEST, clock=clock)
    assert settled
    assert backend.calls == []
    # A plain decode that cannot be advanced: all three arms are timed as a whole.
    assert not timing.interleaves(backend, ("ar", timing.NATIVE))


def test_an_arm_that_cannot_start_gives_up_the_others() -> None:
    class OneAtATime(SteppableFake):
        def start(self, request: DecodeRequest) -> Steps:
            if self.started:
                raise ValueError("one at a time")
            return super().start(request)

    backend = OneAtATime(FakeClock())
    with pytest.raises(ValueError, match="one at a time"):
        timing.time_arms(backend, {"ar": PLAIN, "sd": REQUEST}, backend.clock, interleaved=True)
    assert [decoding.closed for decoding in backend.started] == [True]


def test_an_error_of_one_generation_ends_the_others() -> None:
    backend = SteppableFake(FakeClock())
    backend.fails_at = 4
    with pytest.raises(RuntimeError, match="out of memory"):
        in_turns(backend, {"sd": backend.start(REQUEST), "ar": backend.start(PLAIN)}, backend.clock)
    assert all(decoding.closed for decoding in backend.started)
