"""What is asked, what happened, and what was measured: frozen records, stored as they are.

Raw counts and seconds only. Every ratio (alpha, gamma, block efficiency) is a function of these, in `bench.analysis.metrics`.
Token ids are plain ints, new tokens include the end token when one was emitted. Times are wall-clock seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.records.decoding import (
    DraftLength,
    FinishReason,
    ForwardSeconds,
    ModelPair,
    Replay,
    Round,
    Scalar,
    Schedule,
    parse_schedule,
    schedule_text,
)

Order = Literal["ar_first", "sd_first"]
SHARED_BY = (
    "machine_shared_by"  # in an environment: shards of a sweep on one CPU at the same time; absent: it was alone
)


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
    stopped: str = (
        ""  # what ended it before its last pair (`bench.measurement.stopping`): precision or time; empty: nothing did
    )
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
