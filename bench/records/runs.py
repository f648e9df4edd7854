"""What a run measured: frozen records of cells, pairs and single generations.

Records hold raw counts and seconds only. Every ratio (alpha, gamma, block efficiency) is a function of them, in
`bench.analysis.metrics`. New tokens include the end token when one was emitted. Times are wall-clock seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from bench.records import decoding
from bench.records.decoding import DraftLength, FinishReason, ForwardSeconds, ModelPair, Replay, Round, Scalar, Schedule

SCHEMA = 2  # of the records that we write; `bench.records.files` also reads those of schema 1
Order = Literal["ar_first", "sd_first"]
STEPS = ("baseline", "warm-up", "pairs", "certificate")  # of a cell, in the order in which they run
SHARED_BY = "machine_shared_by"  # in an environment: runs, or shards of a sweep on one CPU, at the same time; absent: one


@dataclass(frozen=True, slots=True)
class Conditions:
    """What else the machine did during a timed call; None where it cannot be read. CPU-seconds are sums over all cores."""

    cpu_s: float | None = None  # CPU-seconds that passed, idle ones included
    steal_s: float | None = None  # those that the hypervisor gave to other machines
    others_s: float | None = None  # those that other processes used
    clock_mhz: int | None = None  # of the GPU's multiprocessors when the call ended
    throttle: tuple[str, ...] | None = None  # why the GPU ran below its clocks when the call ended; empty: it did not


@dataclass(frozen=True, slots=True)
class TimedArm:
    """One timed generation: `seconds` is the whole call, or up to its own last token for generations decoded together."""

    seed: int
    seconds: float  # the device is synchronised at both ends
    first_token_s: float | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    rounds: tuple[Round, ...] | None
    conditions: Conditions | None = None  # None: not read


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
    group: int | None = None  # index of the first prompt in the batch; None if decoded alone
    interleaved: bool = False  # both arms advanced in turns; else one followed the other
    visit: int | None = None  # its place among the pairs of all cells, in the order of measurement; a batch has one place


@dataclass(frozen=True, slots=True)
class BaselineTriple:
    """One prompt decoded three times without speculation: twice by the AR arm (A/A), once by the engine's own plain decode."""

    prompt_index: int
    order: tuple[str, ...]  # the three names below in the order they ran
    ar: TimedArm
    ar_again: TimedArm
    native: TimedArm | None  # None where the AR arm already is the engine's own plain decode
    interleaved: bool = False  # as of a pair


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
    temperature: float  # of a schedule, the hottest
    draft_temperature: float
    num_draft_tokens: int  # with an adaptive draft length, the most
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
    concurrency: int = 1  # generations decoded at once
    draft_length: DraftLength = "constant"
    schedule: Schedule = ()  # decode T by token; empty: `temperature` throughout
    inflation: str = ""  # shape to which the target was inflated, which the pair's name also contains; empty: not inflated
    options: tuple[tuple[str, Scalar], ...] = ()  # what the user passed to the backend, and what a suite varies beyond these

    @property
    def label(self) -> str:
        """Return a short name, for progress bars and messages."""
        temperature = decoding.schedule_text(self.schedule) or f"{self.temperature:g}"
        at_most = "" if self.draft_length == "constant" else "<"
        return f"{self.backend} {self.pair} {self.rule} T={temperature} k{at_most}={self.num_draft_tokens}"

    @property
    def draws(self) -> tuple[object, ...]:
        """Return what its random numbers depend on beside the seed: every other field, so that no two cells share any."""
        return tuple(getattr(self, each.name) for each in fields(self) if each.name != "seed")


@dataclass(frozen=True, slots=True)
class TextEvidence:
    """What one teacher-forced pass of the target measured on one generation: the raw material of the certificate.

    One entry per token, the end token included. At T > 0: `pit` is the randomised probability integral transform (tokens
    ordered by descending probability, ties by id), uniform on 0..1 if the token was drawn from the target;
    `excess_surprisal` is surprisal minus entropy in nats, with mean 0 in that case and variance `surprisal_variance`. A token
    off the truncated support has pit 1 and is marked. At T = 0 only `logit_gap` is filled: the best logit minus the token's.
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
    """All generations of one cell as scored by the target, and the numerical noise of that machine."""

    dtype: str
    near_tie: float  # tau: 99.9th percentile of |1-token minus (k+1)-token forward| over logits; T = 0 tolerance
    texts: tuple[TextEvidence, ...]
    target: str = ""  # where the target that scored them came from; empty: not recorded


@dataclass(frozen=True, slots=True)
class CellRecord:
    """One measured cell, or one that failed: then `error` holds the reason and there are no pairs."""

    cell: Cell
    started: str  # ISO 8601, UTC
    warmup_s: tuple[float, ...]  # seconds per token of each warm-up generation
    warmup_settled: bool
    pairs: tuple[TimedPair, ...]
    evidence: Evidence | None = None  # what the losslessness certificate is derived from
    scoring_error: str | None = None  # why there is none although it was wanted
    scoring_s: float | None = None  # seconds the evidence took; the first cell's include loading what it needs
    # Largest resident memory of this process and its children (some engines run in one), sampled after every pair.
    peak_memory_bytes: int | None = None
    throttle: tuple[str, ...] = ()  # reasons seen between pairs, in records whose arms have no conditions
    # Wall-clock seconds of each of STEPS; empty: the cell was resumed, or took turns with other processes.
    wall_s: dict[str, float] = field(default_factory=dict)
    stopped: str = ""  # why it ended before its last pair (`bench.measurement.stopping`): precision or time; empty: it did not
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of one suite on one backend: the content of one file of results."""

    schema: int
    suite: str
    preset: str
    command: tuple[str, ...]
    created: str  # ISO 8601, UTC
    environment: dict[str, Scalar]
    model_pair: ModelPair
    model_hashes: dict[str, str]
    prompt_format: dict[str, Scalar]  # template name and hash, system prompt, BOS, truncation, end tokens
    backend_settings: dict[str, Scalar]
    baseline: tuple[BaselineTriple, ...]
    cells: tuple[CellRecord, ...]
    # Draft, by its name in cells -> how it was made, from its card; drafts without a card are left out.
    drafts: dict[str, dict[str, Scalar]] = field(default_factory=dict)
    # Of a copy whose cells were certified later: the name of the record, when, and the machine and commit that scored.
    certified: dict[str, Scalar] = field(default_factory=dict)
