"""Every number a table prints, as a function of records.

Records hold counts and seconds; ratios exist only here. None means that the record cannot say: nothing was measured, or
the engine does not report it. Decode seconds leave out the call up to its first token, and decode tokens that token, in
both arms alike. Prompts are the clusters of every interval.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.records.decoding import ForwardSeconds, PhaseSeconds, Replay, Round, num_tested
from bench.records.runs import STEPS, CellRecord, RunRecord, TimedArm, TimedPair
from bench.statistics import intervals, theory
from bench.statistics.intervals import Interval

ROUND_PHASES = tuple(name for name in PhaseSeconds.__slots__ if name != "prefill")


# Cost of temperature
def round_costs(record: CellRecord) -> dict[str, float] | None:
    """Seconds of a round by phase, from the replays; None without them."""
    replays = [pair.replay for pair in record.pairs if pair.replay is not None]
    num_rounds = sum(len(replay.rounds) for replay in replays)
    if not num_rounds:
        return None
    return {name: sum(getattr(replay.phase_s, name) for replay in replays) / num_rounds for name in ROUND_PHASES}


Forward = Literal["ar", "draft", "verify"]
ArmName = Literal["ar", "sd"]
Times = Literal["decode", "end_to_end"]
Spent = tuple[float, int]  # seconds and tokens that one arm adds to its totals
OfPrompt = tuple[int, tuple[float, float]]  # a prompt, and two numbers that are summed over prompts
Columns = tuple[list[float], list[int], list[float], list[int]]  # AR seconds and tokens, SD seconds and tokens

JOINT_RULES = frozenset({"block"})  # judged as a whole round: no acceptance probability of a single position


@dataclass(frozen=True, slots=True)
class RoundCounts:
    """Sums over rounds. Draft tokens behind a rejection, an accepted end token or the token limit are not tested."""

    drafted: int
    accepted: int
    tested: int  # accepted + rejections
    emitted: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far counted acceptance is from expected acceptance."""

    z: float
    p: float  # two-sided
    compared: int  # tested positions; rounds, for rules judged jointly


def count_rounds(rounds: Iterable[Round]) -> RoundCounts:
    """Sum rounds."""
    rounds = tuple(rounds)
    return RoundCounts(
        drafted=sum(r.drafted for r in rounds),
        accepted=sum(r.accepted for r in rounds),
        tested=sum(map(num_tested, rounds)),
        emitted=sum(r.emitted for r in rounds),
        rounds=len(rounds),
    )


def counted_alpha(record: CellRecord) -> Interval | None:
    """Alpha as accepted / (accepted + rejections); None for rules judged jointly."""
    if record.cell.rule in JOINT_RULES:
        return None
    return share_of((prompt, (counts.accepted, counts.tested)) for prompt, counts in counts_of(record))


def expected_alpha(record: CellRecord) -> Interval | None:
    """Alpha as the mean acceptance probability of positions tested in the replays; None for rules judged jointly."""
    if record.cell.rule in JOINT_RULES:
        return None
    found = []
    for pair, replay in replays_of(record):
        probs = [min(prob, 1.0) for round_probs in replay.acceptance_probs for prob in round_probs]
        found.append((cluster(pair), (sum(probs), len(probs))))
    return share_of(found)


def draft_utilisation(record: CellRecord) -> Interval | None:
    """Accepted / drafted, untested draft tokens included. Not alpha."""
    return share_of((prompt, (counts.accepted, counts.drafted)) for prompt, counts in counts_of(record))


def block_efficiency(record: CellRecord) -> Interval | None:
    """Tokens emitted / rounds, in 1..k+1."""
    counts = [(prompt, counts.emitted, counts.rounds) for prompt, counts in counts_of(record) if counts.rounds]
    if not counts:
        return None
    prompts, emitted, rounds = zip(*counts, strict=True)
    return intervals.mean_ratio(emitted, rounds, prompts)


def acceptance_agreement(record: CellRecord) -> Agreement | None:
    """Whether the replays accepted as their probabilities say; exact where those are 0 or 1, as at T = 0."""
    if record.cell.rule in JOINT_RULES:
        lengths = [
            (round_.accepted, expected)
            for _, replay in replays_of(record)
            for round_, expected in zip(replay.rounds, replay.joint_length or (), strict=True)
        ]
        if not lengths:
            return None
        z = intervals.self_normalised_z(*zip(*lengths, strict=True))
        return Agreement(z, intervals.two_sided_p(z), len(lengths))
    outcomes = [
        (position < round_.accepted, prob)
        for _, replay in replays_of(record)
        for round_, probs in zip(replay.rounds, replay.acceptance_probs, strict=True)
        for position, prob in enumerate(probs)
    ]
    if not outcomes:
        return None
    accepted, expected = zip(*outcomes, strict=True)
    z = intervals.martingale_z(accepted, expected)
    return Agreement(z, intervals.martingale_p(accepted, expected, z), len(outcomes))


# Wall time
def times_measured(record: CellRecord) -> Times:
    """Which seconds gamma is made of: end to end where an engine cannot tell when a first token came."""
    return _times(arm for pair in record.pairs for arm in (pair.ar, pair.sd))


def gamma(record: CellRecord, *, confidence: float = 0.95) -> Interval | None:
    """AR seconds per token / SD seconds per token, ratio of totals, of the seconds that `times_measured` names.

    Texts end on their own, so arms differ in length. Totals are per arm: an arm whose text is one token long
    decodes nothing and adds neither seconds nor tokens, and the other arm of its pair still counts.
    """
    return _ratio_of_arms(record, times_measured(record), confidence)


def gamma_e2e(record: CellRecord, *, confidence: float = 0.95) -> Interval | None:
    """Gamma of whole calls: prefill and first token included."""
    return _ratio_of_arms(record, "end_to_end", confidence)


def gamma_geometric(record: CellRecord) -> Interval | None:
    """Geometric mean over prompts of each prompt's gamma: every prompt weighs the same."""
    columns = time_columns(record, times_measured(record))
    if columns is None or not any(all(values) for values in zip(*columns, strict=True)):
        return None
    return intervals.geometric_mean_ratio(*columns, _clusters(record))


def seconds_per_token(record: CellRecord, arm: ArmName) -> Interval | None:
    """Seconds per token of one arm, of the seconds that `times_measured` names."""
    times = times_measured(record)
    of_pairs = [spent(getattr(pair, arm), times) for pair in record.pairs]
    if not sum(tokens for _, tokens in of_pairs):
        return None
    seconds, tokens = zip(*of_pairs, strict=True)
    return intervals.mean_ratio(seconds, tokens, _clusters(record))


def aa_floor(run: RunRecord) -> float | None:
    """Return the half-width of the 95 % interval of log(AR / AR'): a |log gamma| below it is noise."""
    times = _times(arm for triple in run.baseline for arm in (triple.ar, triple.ar_again))
    columns = _columns(*([spent(getattr(triple, arm), times) for triple in run.baseline] for arm in ("ar", "ar_again")))
    if columns is None:
        return None
    return intervals.log_ratio_floor(*columns, [triple.prompt_index for triple in run.baseline])


def native_ratio(run: RunRecord) -> Interval | None:
    """Return AR seconds per token / native seconds per token, over both AR texts of a triple. Above 1, AR is slower."""
    triples = [(triple, triple.native) for triple in run.baseline if triple.native is not None]
    times = _times(arm for triple, native in triples for arm in (triple.ar, triple.ar_again, native))
    ours = [_sum_spent(spent(triple.ar, times), spent(triple.ar_again, times)) for triple, _ in triples]
    columns = _columns(ours, [spent(native, times) for _, native in triples])
    if columns is None:
        return None
    return intervals.ratio_of_totals(*columns, [triple.prompt_index for triple, _ in triples])


def share_after_end_token(record: CellRecord, arm: ArmName, *, end_token_ids: Collection[int]) -> float | None:
    """Share of an arm's tokens that lie behind its first end token: what a fixed-length run decoded for nothing."""
    texts = [getattr(pair, arm).token_ids for pair in record.pairs]
    behind = 0
    for token_ids in texts:
        ends = (place for place, token in enumerate(token_ids) if token in end_token_ids)
        behind += len(token_ids) - 1 - next(ends, len(token_ids) - 1)
    return behind / sum(map(len, texts)) if texts else None


def first_token_seconds(record: CellRecord, arm: ArmName) -> Interval | None:
    """Mean seconds from the call to the first token; None where the engine cannot tell."""
    seconds = [getattr(pair, arm).first_token_s for pair in record.pairs]
    if not seconds or None in seconds:
        return None
    return intervals.mean_ratio(seconds, [1] * len(seconds), _clusters(record))


# Beside another backend, on the same prompts
def speed_against(record: CellRecord, reference: CellRecord) -> Interval | None:
    """Speculative tokens per second / the reference's. The two ran minutes apart: a drift in between is in no interval."""
    if times_measured(record) != times_measured(reference):
        return None
    seconds, reference_seconds = (
        [(cluster(pair), spent(pair.sd, times_measured(record))) for pair in each.pairs] for each in (record, reference)
    )
    return ratio_of_ratios(reference_seconds, seconds)


def alpha_against(record: CellRecord, reference: CellRecord) -> Interval | None:
    """Counted alpha / the reference's, the prompts being the clusters of both; None where one has no alpha."""
    if JOINT_RULES & {record.cell.rule, reference.cell.rule}:
        return None
    ours, theirs = (
        [(prompt, (counts.accepted, counts.tested)) for prompt, counts in counts_of(each)]
        for each in (record, reference)
    )
    return ratio_of_ratios(ours, theirs)


# Mechanism
def cost_ratio(record: CellRecord) -> float | None:
    """c: median over the bare-forward samples of draft seconds / target seconds."""
    samples = _forwards(record)
    return float(np.median([theory.cost_ratio(draft_s=f.draft_s, ar_s=f.ar_s) for f in samples])) if samples else None


def over_floor(record: CellRecord, forward: Forward) -> float | None:
    """Median over the bare-forward samples of a forward / its linear layers alone; None without floors."""
    found = [
        getattr(sample, f"{forward}_s") / floor_s
        for sample in _forwards(record)
        if (floor_s := getattr(sample, f"{forward}_floor_s"))
    ]
    return float(np.median(found)) if found else None


def floor_seconds(record: CellRecord, forward: Forward) -> float | None:
    """Median over the samples of the linear layers alone."""
    found = [floor_s for sample in _forwards(record) if (floor_s := getattr(sample, f"{forward}_floor_s"))]
    return float(np.median(found)) if found else None


def predicted_gamma(record: CellRecord, *, cost: float | None = None) -> float | None:
    """Gamma of a loop without overhead, at the measured block efficiency; cost: were c this, rather than as measured."""
    efficiency = block_efficiency(record)
    return None if efficiency is None else _gamma_at(record, efficiency.estimate, cost=cost)


def iid_predicted_gamma(record: CellRecord) -> float | None:
    """Gamma of a loop without overhead, were every draft token accepted with probability counted alpha."""
    alpha = counted_alpha(record)
    if alpha is None or record.cell.draft_length != "constant":
        return None
    return _gamma_at(record, theory.expected_block_efficiency(alpha.estimate, record.cell.num_draft_tokens))


def certificate_cost(record: CellRecord) -> float | None:
    """Seconds of scoring / seconds of the speculative texts that were scored."""
    decoding_s = sum(pair.sd.seconds for pair in record.pairs)
    return None if record.scoring_s is None or not decoding_s else record.scoring_s / decoding_s


def wall_shares(run: RunRecord) -> dict[str, float]:
    """Where the wall-clock seconds of a run's cells went, once models were loaded, as shares that sum to 1.

    `pairs` are timed arms; `instruments and the rest` is what the harness spent between them, such as replays and bare
    forwards, which it times apart. Empty where no cell says.
    """
    cells = [record for record in run.cells if record.wall_s]
    total = sum(sum(record.wall_s.values()) for record in cells)
    if not total:
        return {}
    steps = {step: sum(record.wall_s[step] for record in cells) for step in STEPS}
    arms_s = sum(_arms_seconds(record) for record in cells)
    named = {"pairs": arms_s, "warm-up": steps["warm-up"], "baseline": steps["baseline"]}
    rest = {"certificate": steps["certificate"], "instruments and the rest": steps["pairs"] - arms_s}
    return {name: seconds / total for name, seconds in (named | rest).items()}


def _arms_seconds(record: CellRecord) -> float:
    """Of texts decoded at once those of the one that took longest."""
    groups: dict[object, float] = {}
    for pair in record.pairs:
        alone = pair.group is None
        group = (pair.prompt_index, pair.repeat) if alone else (pair.group, pair.repeat // record.cell.concurrency)
        for arm in ("ar", "sd"):
            key = (*group, arm)
            groups[key] = max(groups.get(key, 0.0), getattr(pair, arm).seconds)
    return sum(groups.values())


def phase_shares(record: CellRecord) -> dict[str, float] | None:
    """Share of the replays' seconds spent in each phase, by its name in PhaseSeconds; they sum to 1."""
    phases = [replay.phase_s for _, replay in replays_of(record)]
    seconds = {name: sum(getattr(phase, name) for phase in phases) for name in PhaseSeconds.__slots__}
    total = sum(seconds.values())
    return {name: of_phase / total for name, of_phase in seconds.items()} if total else None


def replays_of(record: CellRecord) -> Iterator[tuple[TimedPair, Replay]]:
    return ((pair, pair.replay) for pair in record.pairs if pair.replay is not None)


def counts_of(record: CellRecord) -> Iterator[tuple[int, RoundCounts]]:
    """Yield the prompt and the counts of each pair whose engine reports rounds."""
    return ((cluster(pair), count_rounds(pair.sd.rounds)) for pair in record.pairs if pair.sd.rounds is not None)


def share_of(counts: Iterable[OfPrompt]) -> Interval | None:
    """Return the sum of firsts / the sum of seconds, a share in 0..1; None if nothing was tried."""
    entries = [(*values, prompt) for prompt, values in counts]
    return intervals.proportion(*zip(*entries, strict=True)) if any(trials for _, trials, _ in entries) else None


def ratio_of_ratios(above: Iterable[OfPrompt], below: Iterable[OfPrompt]) -> Interval | None:
    """Return (sum of firsts / sum of seconds) of one list over that of another, paired by prompt; None if a total is zero."""
    entries = [(*values, 0, 0, prompt) for prompt, values in above]
    others = [(0, 0, *values, prompt) for prompt, values in below]
    columns = tuple(zip(*entries, *others, strict=True))
    return intervals.ratio_of_totals(*columns) if columns and all(map(sum, columns[:4])) else None


def _times(arms: Iterable[TimedArm]) -> Times:
    return "end_to_end" if any(arm.first_token_s is None for arm in arms) else "decode"


def spent(arm: TimedArm, times: Times) -> Spent:
    """Seconds and tokens that an arm adds to its totals."""
    if times == "end_to_end" or arm.first_token_s is None:
        return arm.seconds, len(arm.token_ids)
    num_decoded = len(arm.token_ids) - _num_first(arm)
    if not num_decoded:
        return 0.0, 0  # what is left of the call is no decoding
    return arm.seconds - arm.first_token_s, num_decoded


def _num_first(arm: TimedArm) -> int:
    """Tokens that came with the first: those of the first round, where an engine drafts before its prefill."""
    if arm.rounds and sum(r.emitted for r in arm.rounds) == len(arm.token_ids):
        return arm.rounds[0].emitted
    return 1


def _sum_spent(first: Spent, second: Spent) -> Spent:
    return first[0] + second[0], first[1] + second[1]


def _columns(first: list[Spent], second: list[Spent]) -> Columns | None:
    """Seconds and tokens of two arms, as the intervals take them; None where one of the four totals is zero."""
    columns = ([s for s, _ in first], [n for _, n in first], [s for s, _ in second], [n for _, n in second])
    return columns if all(sum(column) > 0 for column in columns) else None


def time_columns(record: CellRecord, times: Times) -> Columns | None:
    return _columns([spent(pair.ar, times) for pair in record.pairs], [spent(pair.sd, times) for pair in record.pairs])


def _ratio_of_arms(record: CellRecord, times: Times, confidence: float) -> Interval | None:
    columns = time_columns(record, times)
    if columns is None:
        return None
    return intervals.ratio_of_totals(*columns, _clusters(record), confidence=confidence)


def _clusters(record: CellRecord) -> list[int]:
    return [cluster(pair) for pair in record.pairs]


def cluster(pair: TimedPair) -> int:
    """What a pair is summed with before any interval is taken: its prompt, or the group it was decoded in."""
    return pair.prompt_index if pair.group is None else pair.group


def _forwards(record: CellRecord) -> list[ForwardSeconds]:
    return [forwards for pair in record.pairs for forwards in pair.forwards]


def _gamma_at(record: CellRecord, efficiency: float, *, cost: float | None = None) -> float | None:
    """Median over the bare-forward samples: each sample's three forwards ran together, so drift cancels within it.

    Where the draft length adapts, a round's drafts are the mean, and its verification that of the longest.
    """
    samples, drafts_a_round = _forwards(record), float(record.cell.num_draft_tokens)
    if record.cell.draft_length == "adaptive":
        counts = count_rounds(round_ for pair in record.pairs for round_ in pair.sd.rounds or ())
        drafts_a_round = counts.drafted / counts.rounds
    if not samples:
        return None
    gammas = [
        theory.predicted_gamma(
            efficiency,
            ar_s=f.ar_s,
            draft_s=f.draft_s if cost is None else cost * f.ar_s,
            verify_s=f.verify_s,
            num_draft_tokens=drafts_a_round,
        )
        for f in samples
    ]
    return float(np.median(gammas))
