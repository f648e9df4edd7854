"""What is asked, what happened, and what was measured: frozen records, stored as they are.

Raw counts and seconds only. Every ratio (alpha, gamma, block efficiency) is a function of these, in `bench.metrics`.
Token ids are plain ints, new tokens include the end token when one was emitted. Times are wall-clock seconds.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
DraftLength = Literal["constant", "adaptive"]
Order = Literal["ar_first", "sd_first"]
Scalar = str | int | float | bool | None
Schedule = tuple[tuple[int, float], ...]  # (index of the first new token, temperature) of each piece

AUTOREGRESSIVE = 0  # num_draft_tokens of the baseline arm
SHARED_BY = (
    "machine_shared_by"  # in an environment: shards of a sweep on one CPU at the same time; absent: it was alone
)


def parse_schedule(text: str) -> Schedule:
    """`1@0,0.25@24`: temperature 1 from the first new token on, 0.25 from the one with index 24 on.

    Raises: ValueError: another form, or no schedule that `check_schedule` passes
    """
    try:
        pieces = [piece.split("@") for piece in text.split(",")]
        schedule = tuple((int(start), float(temperature)) for temperature, start in pieces)
    except ValueError:
        raise ValueError(f"expected a schedule such as 1@0,0.25@24 (temperature@first token), got {text!r}") from None
    check_schedule(schedule)
    return schedule


def schedule_text(schedule: Schedule) -> str:
    """As `parse_schedule` reads it."""
    return ",".join(f"{temperature:.15g}@{start}" for start, temperature in schedule)


def check_schedule(schedule: Schedule) -> None:
    """Raises: ValueError: it leaves the first token out, does not ascend, or has a temperature that is none."""
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
    """A target and a draft, both plain transformers checkpoints (folders, or hub ids where the row says so)."""

    name: str
    target: str
    draft: str
    family: str  # "causal" or "encoder-decoder"
    dtype: str  # "bfloat16" or "float32"
    licence: str = ""
    note: str = ""
    device_map: str = ""  # how transformers spreads the target over devices; empty: it lies on one
    tensor_parallel_size: int = 1  # GPUs over which vLLM splits the models


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
    schedule: Schedule = ()  # of the decode T, which the draft T follows; empty: `temperature` throughout
    draft_length: DraftLength = "constant"  # adaptive: k is the most that a round drafts

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
        """Decode T of a new token; the first has index 0."""
        return next((piece for start, piece in reversed(self.schedule) if start <= index), self.temperature)

    def draft_temperature_at(self, index: int) -> float:
        """Draft T of a new token: the decode T of its place, unless it was given."""
        return self.temperature_at(index) if self.draft_temperature is None else self.draft_temperature


@dataclass(frozen=True, slots=True)
class Round:
    """One draft-then-verify pass: 0 <= accepted <= drafted <= k, emitted <= accepted + 1.

    emitted == accepted + 1 when the target's own token followed; emitted == accepted when an accepted end token or the
    token limit closed the round first. Draft tokens behind that point were drafted and not tested.
    """

    drafted: int
    accepted: int
    emitted: int


@dataclass(frozen=True, slots=True)
class Generation:
    """What one call of a backend produced. `rounds` is empty for an autoregressive call, None where the engine cannot tell."""

    token_ids: tuple[int, ...]  # (N,) 1 <= N <= max_new_tokens
    finish_reason: FinishReason
    rounds: tuple[Round, ...] | None  # emit N - 1 tokens; N where drafting precedes the prefill (it is part of round 1)
    first_token_s: float | None  # seconds from the call to the first new token; None where the engine cannot tell
    last_token_s: float | None = (
        None  # seconds to the last one, where texts were decoded together; None: the call's end
    )


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
    """An untimed second run of one request with the instruments on.

    `acceptance_probs` holds, per round, the probability that each *tested* draft token is accepted, given what came
    before it (for the rejection rule, sum_v min(p_v, q_v)); `joint_length` holds, for rules judged jointly, the expected
    number of accepted tokens of the round instead.
    """

    token_ids: tuple[int, ...]
    rounds: tuple[Round, ...]
    acceptance_probs: tuple[tuple[float, ...], ...]
    joint_length: tuple[float, ...] | None
    phase_s: PhaseSeconds


@dataclass(frozen=True, slots=True)
class ForwardSeconds:
    """One bare forward of each kind at the same context length, model call only, and the floor of each beside it.

    The floor is the linear layers alone, which stream every weight once; None where nobody measured it.
    """

    context_length: int
    ar_s: float  # target, 1 token
    draft_s: float  # draft, 1 token
    verify_s: float  # target, k + 1 tokens
    ar_floor_s: float | None = None
    draft_floor_s: float | None = None
    verify_floor_s: float | None = None


@dataclass(frozen=True, slots=True)
class TimedArm:
    """One timed generation. `seconds` covers the whole call, both ends synchronised.

    Of texts decoded together each has its own seconds, from the common start to its last token, as the engine says.
    """

    seed: int
    seconds: float
    first_token_s: float | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    rounds: tuple[Round, ...] | None


@dataclass(frozen=True, slots=True)
class TimedPair:
    """The unit of measurement: AR and SD on one prompt, adjacent in time, in a stored order."""

    prompt_index: int
    repeat: int
    order: Order
    ar: TimedArm
    sd: TimedArm
    forwards: tuple[ForwardSeconds, ...] = ()
    replay: Replay | None = None
    group: int | None = None  # first prompt of those decoded together with this one, who share their fate; None: alone


@dataclass(frozen=True, slots=True)
class BaselineTriple:
    """One prompt decoded three times without speculation: twice by the AR arm (A/A), once by the engine's own plain decode."""

    prompt_index: int
    order: tuple[str, ...]  # the three names below in the order they ran
    ar: TimedArm
    ar_again: TimedArm
    native: TimedArm | None  # None where the AR arm already is the engine's own plain decode


@dataclass(frozen=True, slots=True)
class Cell:
    """Everything that must be equal for two measurements to be of the same thing (machine and commit apart)."""

    suite: str
    backend: str
    rule: str
    pair: str
    draft: str
    dtype: str
    device: str
    temperature: float
    draft_temperature: float
    num_draft_tokens: int
    top_k: int
    top_p: float
    max_new_tokens: int
    end_token: str  # "natural" or "ignored"
    prompt_set: str
    num_prompts: int
    repeats: int
    prompts_hash: str
    chat_template: str
    chat_template_hash: str
    seed: int
    options: tuple[tuple[str, Scalar], ...] = ()  # anything a suite varies beyond these

    @property
    def label(self) -> str:
        """Short name for progress bars and test ids."""
        temperature = schedule_text(self.schedule) or f"{self.temperature:g}"
        k = f"k={self.num_draft_tokens}" if self.draft_length == "constant" else f"k<={self.num_draft_tokens}"
        return f"{self.backend} {self.pair} {self.rule} T={temperature} {k}"

    @property
    def draft_length(self) -> DraftLength:
        """Whether every round drafts k tokens or k is the most."""
        return "adaptive" if dict(self.options).get("draft_length") == "adaptive" else "constant"

    @property
    def concurrency(self) -> int:
        """How many texts are decoded at once."""
        return int(dict(self.options).get("concurrency") or 1)

    @property
    def draws(self) -> tuple[Scalar | tuple[int, float], ...]:
        """What its random numbers depend on beside the seed, so that no two cells of a record that are pooled share theirs."""
        varied = (self.temperature, self.draft_temperature, self.rule, self.num_draft_tokens, self.draft)
        return (*varied, self.concurrency, self.draft_length, *self.schedule)

    @property
    def schedule(self) -> Schedule:
        """Decode T by token, where it changes within a text: then `temperature` is the hottest."""
        text = dict(self.options).get("schedule")
        return () if text is None else parse_schedule(str(text))


@dataclass(frozen=True, slots=True)
class TextEvidence:
    """What the target says of one emitted text, from one teacher-forced pass: the raw material of the certificate.

    One entry a token, the end token included. At T > 0: `pit` is the randomised probability integral transform (tokens
    ordered by descending probability, ties by id), uniform on 0..1 if the token was drawn from the target;
    `excess_surprisal` is surprisal minus entropy in nats, mean 0 if so, with variance `surprisal_variance`. A token off the
    truncated support has pit 1 and is marked. At T = 0 only `logit_gap` is filled: the best logit minus the token's.
    """

    prompt_index: int
    repeat: int
    slots: tuple[int, ...]  # 0: no draft involved (first token, AR); 1..k: slot of the round; -1: bonus slot
    pit: tuple[float, ...] = ()
    excess_surprisal: tuple[float, ...] = ()
    surprisal_variance: tuple[float, ...] = ()
    off_support: tuple[int, ...] = ()  # places of tokens that truncation forbids
    logit_gap: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All texts of one cell as scored by the target, and what numerical noise that machine shows."""

    dtype: str
    near_tie: float  # tau: 99.9th percentile of |1-token minus (k+1)-token forward| over logits; T = 0 tolerance
    texts: tuple[TextEvidence, ...]


STEPS = ("baseline", "warm-up", "pairs", "certificate")  # of a cell, in their order; pairs with what is behind each


@dataclass(frozen=True, slots=True)
class CellRecord:
    """One measured cell, or one that failed: then `error` says why and there are no pairs."""

    cell: Cell
    started: str  # ISO 8601, UTC
    warmup_s: tuple[float, ...]  # seconds per token of each warm-up generation
    warmup_settled: bool
    pairs: tuple[TimedPair, ...]
    evidence: Evidence | None = None  # what the losslessness certificate is derived from
    scoring_s: float | None = None  # seconds the evidence took; the first cell's include loading what it needs
    # Largest resident memory of this process and its children (an engine of its own), sampled behind every pair.
    peak_memory_bytes: int | None = None
    throttle: tuple[str, ...] = ()  # reasons seen before the first pair and behind each; empty: none, or not readable
    # Wall-clock seconds of the steps of the cell (`STEPS`); empty: it was resumed, or took turns with others.
    wall_s: dict[str, float] = field(default_factory=dict)
    stopped: str = ""  # what ended it before its last pair (`bench.stopping`): precision or time; empty: nothing did
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of one suite on one backend: the content of one file under results/."""

    schema: int
    suite: str
    preset: str
    command: str
    created: str  # ISO 8601, UTC
    environment: dict[str, Scalar]
    model_pair: ModelPair
    model_hashes: dict[str, str]
    prompt_format: dict[str, Scalar]  # template name and hash, system prompt, BOS, truncation, end tokens
    backend_settings: dict[str, Scalar]
    baseline: tuple[BaselineTriple, ...]
    cells: tuple[CellRecord, ...]
    # Draft, as cells name it -> what its card says of how it was made; without one it is left out.
    drafts: dict[str, dict[str, Scalar]] = field(default_factory=dict)


SCHEMA = 1
