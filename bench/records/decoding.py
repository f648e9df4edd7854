"""One decoding: the model pair, the request, and what the engine reports of it."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


def derive_seed(seed: int, *parts: object) -> int:
    """Return a 63-bit seed that depends on every part and is the same on every machine."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


FIRST, BONUS = (0, -1)  # slots of emitted tokens that test no draft token: the prefill's, and the one after the last draft


class Position(NamedTuple):
    """A token that a round emitted. It is where a draft token was tested, unless its slot is BONUS."""

    place: int  # index in the output
    slot: int  # 1..k, or BONUS
    accepted: bool  # it is the draft token itself


def num_tested(round_: Round) -> int:
    """Return how many draft tokens of a round were tested: those that were accepted, and the one that was rejected, if any."""
    return round_.accepted + (round_.accepted < round_.drafted and round_.emitted == round_.accepted + 1)


def placed_rounds(rounds: Sequence[Round], num_tokens: int) -> Iterator[tuple[int, Round]]:
    """Yield each round of an output with the index of the first token that it emitted.

    The prefill's token belongs to no round, unless the first round carries the prefill. Of 6 tokens, rounds that emit 3 and 2
    begin at 1 and 4; rounds that emit 3 and 3 begin at 0 and 3. Raise ValueError if they emitted another number of tokens.
    """
    num_emitted = sum(round_.emitted for round_ in rounds)
    place = num_tokens - num_emitted
    if rounds and place not in (0, 1):
        raise ValueError(f"expected rounds that emit {num_tokens - 1} or {num_tokens} tokens, got {num_emitted}")
    for round_ in rounds:
        yield place, round_
        place += round_.emitted


def emitted_positions(rounds: Sequence[Round], num_tokens: int) -> Iterator[Position]:
    """Yield every token that the rounds of an output emitted, in order. Raise ValueError as `placed_rounds`."""
    for first, round_ in placed_rounds(rounds, num_tokens):
        for slot in range(1, round_.emitted + 1):
            yield Position(first + slot - 1, slot if slot <= round_.drafted else BONUS, slot <= round_.accepted)


FinishReason = Literal["stop", "length"]
DraftLength = Literal["constant", "adaptive"]
Scalar = str | int | float | bool | None
Schedule = tuple[tuple[int, float], ...]  # (index of the first new token, temperature) of each piece
AUTOREGRESSIVE = 0  # num_draft_tokens of the baseline arm


def parse_schedule(text: str) -> Schedule:
    """Parse `1@0,0.25@24`: T = 1 from the first new token on, 0.25 from index 24 on. Raise ValueError if it is invalid."""
    try:
        pieces = [piece.split("@") for piece in text.split(",")]
        schedule = tuple((int(start), float(temperature)) for temperature, start in pieces)
    except ValueError:
        raise ValueError(f"expected a schedule such as 1@0,0.25@24 (temperature@first token), got {text!r}") from None
    check_schedule(schedule)
    return schedule


def schedule_text(schedule: Schedule) -> str:
    """Return the form that `parse_schedule` reads."""
    return ",".join(f"{temperature:.15g}@{start}" for start, temperature in schedule)


def check_schedule(schedule: Schedule) -> None:
    """Raise ValueError if a schedule omits the first token, does not ascend, or contains an invalid temperature."""
    starts = [start for start, _ in schedule]
    if starts[:1] not in ([], [0]):
        raise ValueError(f"expected a schedule whose first piece starts at token 0, got {starts[0]}")
    if any(second <= first for first, second in itertools.pairwise(starts)):
        raise ValueError(f"expected a schedule of pieces in ascending order, got starts {', '.join(map(str, starts))}")
    for _, temperature in schedule:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"expected a schedule of finite temperatures >= 0, got {temperature}")


@dataclass(frozen=True, slots=True)
class ModelPair:
    """A target and a draft, both plain transformers checkpoints: folders once resolved, before that maybe hub ids."""

    name: str
    target: str
    draft: str
    family: str  # "causal" or "encoder-decoder"
    dtype: str  # "bfloat16" or "float32"
    licence: str = ""
    note: str = ""
    device_map: str = ""  # how transformers spreads the target over devices; empty: all of it on one
    tensor_parallel_size: int = 1  # GPUs over which vLLM splits the models
    inflation: str = ""  # shape to which the target was inflated, as in `name`; empty: it was not


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """One generation, fully specified. The autoregressive baseline is the same request with num_draft_tokens = 0."""

    prompt_ids: tuple[int, ...]  # (P,) P >= 1
    max_new_tokens: int  # >= 1
    num_draft_tokens: int = AUTOREGRESSIVE  # k
    temperature: float = 1.0  # decode T; 0 is greedy
    draft_temperature: float | None = None  # None: the decode T
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    rule: str = "rejection"
    seed: int = 0
    eos_token_ids: tuple[int, ...] = ()  # empty: the end token is ignored
    schedule: Schedule = ()  # of the decode T; the draft T follows it; empty: `temperature` throughout
    draft_length: DraftLength = "constant"  # adaptive: a round drafts at most k tokens

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("expected a prompt of at least one token, got an empty one")
        if self.max_new_tokens < 1:
            raise ValueError(f"expected max_new_tokens >= 1, got {self.max_new_tokens}")
        if self.num_draft_tokens < 0:
            raise ValueError(f"expected num_draft_tokens >= 0, got {self.num_draft_tokens}")
        for name, value in (("temperature", self.temperature), ("draft_temperature", self.draft_temperature)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"expected a finite {name} >= 0, got {value}")
        if self.top_k < 0:
            raise ValueError(f"expected top_k >= 0 (0 is off), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"expected top_p in (0, 1] (1 is off), got {self.top_p}")
        check_schedule(self.schedule)

    def temperature_at(self, index: int) -> float:
        """Return the decode T of a new token; the first has index 0."""
        return next((piece for start, piece in reversed(self.schedule) if start <= index), self.temperature)

    def draft_temperature_at(self, index: int) -> float:
        """Return the draft T of a new token: the given one, else the decode T of that token."""
        return self.temperature_at(index) if self.draft_temperature is None else self.draft_temperature


@dataclass(frozen=True, slots=True)
class Round:
    """One draft-then-verify pass: 0 <= accepted <= drafted <= k, emitted <= accepted + 1.

    emitted == accepted + 1 when the target's own token followed; emitted == accepted when an accepted end token or the
    token limit closed the round first. Draft tokens after that point were drafted and not tested.
    """

    drafted: int
    accepted: int
    emitted: int


@dataclass(frozen=True, slots=True)
class Generation:
    """What one call of a backend produced. `rounds` is empty for an autoregressive call, None where it is unknown."""

    token_ids: tuple[int, ...]  # (N,) 1 <= N <= max_new_tokens
    finish_reason: FinishReason
    rounds: tuple[Round, ...] | None  # emit N - 1 tokens; N where drafting precedes the prefill (it is part of round 1)
    first_token_s: float | None  # seconds from the call to the first new token; None: the engine does not report it
    last_token_s: float | None = None  # seconds to the last one, if decoded together with others; None: the call's end


@dataclass(frozen=True, slots=True)
class PhaseSeconds:
    """Where the seconds of an instrumented replay went; `other` is the rest of the loop."""

    prefill: float
    draft: float
    verify: float
    accept: float
    other: float


@dataclass(frozen=True, slots=True)
class Replay:
    """An untimed second run of one request, instrumented.

    `acceptance_probs` holds, per round, the probability that each *tested* draft token is accepted, given what came
    before it (for the rejection rule, sum_v min(p_v, q_v)). For rules that judge a round jointly, `joint_length` holds the
    expected number of accepted tokens of each round instead.
    """

    token_ids: tuple[int, ...]
    rounds: tuple[Round, ...]
    acceptance_probs: tuple[tuple[float, ...], ...]
    joint_length: tuple[float, ...] | None
    phase_s: PhaseSeconds


@dataclass(frozen=True, slots=True)
class ForwardSeconds:
    """One bare forward of each kind at one context length (model call only), and its floor, the linear layers alone."""

    context_length: int
    ar_s: float  # target, 1 token
    draft_s: float  # draft, 1 token
    verify_s: float  # target, k + 1 tokens
    ar_floor_s: float | None = None  # it streams every weight once; None: not measured
    draft_floor_s: float | None = None
    verify_floor_s: float | None = None
