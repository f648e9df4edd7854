"""Every number that a table prints, as a function of records.

Records hold counts and seconds; ratios exist only here. None means that the record does not contain the number: nothing was
measured, or the engine does not report it. Decode seconds omit the call up to its first token, and decode tokens omit that
token, in both arms alike. Every interval is over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Literal

import numpy as np

from bench.records.decoding import ForwardSeconds, PhaseSeconds, Replay, Round, num_tested
from bench.records.runs import STEPS, CellRecord, RunRecord, TimedArm, TimedPair
from bench.statistics import intervals, theory
from bench.statistics.intervals import Interval

Forward = Literal["ar", "draft", "verify"]
ArmName = Literal["ar", "sd"]
Times = Literal["decode", "end_to_end"]
Spent = tuple[float, int]  # seconds and tokens that one arm adds to its totals
ProbsOf = Callable[[Replay], Iterable[Sequence[float]]]  # acceptance probabilities of each round that count
OfPrompt = tuple[int, tuple[float, float]]  # a prompt, and two numbers that are summed over prompts
Columns = tuple[list[float], list[int], list[float], list[int]]  # AR seconds and tokens, SD seconds and tokens

ROUND_PHASES = tuple(name for name in PhaseSeconds.__slots__ if name != "prefill")
JOINT_RULES = frozenset({"block"})  # they judge a whole round, so no single position has an acceptance probability


# Acceptance
@dataclass(frozen=True, slots=True)
class RoundCounts:
    """Sums over rounds. Draft tokens after a rejection, an accepted end token or the token limit are not tested."""

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
    compared: int  # tested positions; rounds, for rules that judge jointly


def count_rounds(rounds: Iterable[Round]) -> RoundCounts:
    rounds = tuple(rounds)
    drafted, accepted, emitted = (sum(getattr(each, name) for each in rounds) for name in Round.__slots__)
    return RoundCounts(drafted, accepted, sum(map(num_tested, rounds)), emitted, len(rounds))


def counted_alpha(record: CellRecord) -> Interval | None:
    """Return alpha as accepted / (accepted + rejections); None for rules that judge jointly."""
    return None if record.cell.rule in JOINT_RULES else share_of(tested_of(record))


def replayed_alpha(record: CellRecord) -> Interval | None:
    """Return counted alpha over the pairs of expected alpha, beside which it stands; None where no pair has a replay."""
    return counted_alpha(replayed(record)) if any(replays_of(record)) else None


def expected_alpha(record: CellRecord, *, probs_of: ProbsOf = attrgetter("acceptance_probs")) -> Interval | None:
    """Return alpha as the mean acceptance probability of the positions tested in replays; None as above."""
    if record.cell.rule in JOINT_RULES:
        return None
    found = []
    for pair, replay in replays_of(record):
        probs = [min(prob, 1.0) for prob in chain.from_iterable(probs_of(replay))]  # a sum may round to just above 1
        found.append((pair.prompt_index, (sum(probs), len(probs))))
    return share_of(found)


def draft_utilisation(record: CellRecord) -> Interval | None:
    """Return accepted / drafted, including draft tokens that were not tested. It is not alpha."""
    return share_of((prompt, (counts.accepted, counts.drafted)) for prompt, counts in counts_of(record))


def block_efficiency(record: CellRecord) -> Interval | None:
    """Return tokens emitted / rounds, in 1..k+1."""
    counts = [(each.emitted, each.rounds, prompt) for prompt, each in counts_of(record) if each.rounds]
    return intervals.mean_ratio(*zip(*counts, strict=True)) if counts else None


def acceptance_agreement(record: CellRecord) -> Agreement | None:
    """Compare the acceptances of replays with their probabilities; exact where those are 0 or 1, as at T = 0."""
    if record.cell.rule in JOINT_RULES:
        lengths = [
            (round_.accepted, expected)
            for _, replay in replays_of(record)
            for round_, expected in zip(replay.rounds, replay.joint_length or (), strict=True)
        ]
        if not lengths:
            return None
        z = intervals.self_normalised_z(*zip(*lengths, strict=True))  # a joint rule has no variance in closed form
        return Agreement(z, intervals.two_sided_p(z), len(lengths))
    outcomes = [
        (place < round_.accepted, prob)
        for _, replay in replays_of(record)
        for round_, probs in zip(replay.rounds, replay.acceptance_probs, strict=True)
        for place, prob in enumerate(probs)
    ]
    if not outcomes:
        return None
    accepted, expected = zip(*outcomes, strict=True)
    z = intervals.martingale_z(accepted, expected)
    return Agreement(z, intervals.martingale_p(accepted, expected, z), len(outcomes))


# Wall time
def times_measured(record: CellRecord) -> Times:
    """Return which seconds gamma is made of: end to end if an engine does not report when a first token came."""
    return _times(arm for pair in record.pairs for arm in (pair.ar, pair.sd))


def gamma(record: CellRecord, *, confidence: float = 0.95) -> Interval | None:
    """Return AR seconds per token / SD seconds per token, ratio of totals, of the seconds that `times_measured` names.

    Arms differ in length if texts end naturally. Totals are per arm: an arm whose text is one token long decodes nothing and
    adds neither seconds nor tokens, and the other arm of its pair still counts.
    """
    columns = time_columns(record, times_measured(record))
    return columns and intervals.ratio_of_totals(*columns, _prompts(record), groups=groups_of(record), confidence=confidence)


def gamma_e2e(record: CellRecord) -> Interval | None:
    """Return gamma of whole calls, which include prefill and first token."""
    columns = time_columns(record, "end_to_end")
    return columns and intervals.ratio_of_totals(*columns, _prompts(record), groups=groups_of(record))


def gamma_geometric(record: CellRecord) -> Interval | None:
    """Return the geometric mean over prompts of each prompt's gamma: every prompt weighs the same."""
    columns = time_columns(record, times_measured(record))
    if columns is None or not any(map(all, zip(*columns, strict=True))):
        return None
    return intervals.geometric_mean_ratio(*columns, _prompts(record), groups=groups_of(record))


def seconds_per_token(record: CellRecord, arm: ArmName) -> Interval | None:
    """Return seconds per token of one arm, of the seconds that `times_measured` names."""
    times = times_measured(record)
    of_pairs = [(*spent(getattr(pair, arm), times), pair.prompt_index) for pair in record.pairs]
    if not any(tokens for _, tokens, _ in of_pairs):
        return None
    return intervals.mean_ratio(*zip(*of_pairs, strict=True), groups=groups_of(record))


def first_token_seconds(record: CellRecord, arm: ArmName) -> Interval | None:
    """Return mean seconds from the call to the first token; None if the engine does not report them."""
    seconds = [getattr(pair, arm).first_token_s for pair in record.pairs]
    if not seconds or None in seconds:
        return None
    return intervals.mean_ratio(seconds, [1] * len(seconds), _prompts(record), groups=groups_of(record))


def share_after_end_token(record: CellRecord, arm: ArmName, *, end_token_ids: Collection[int]) -> float | None:
    """Return the share of an arm's tokens after its first end token, which a fixed-length run decoded for nothing."""
    texts = [getattr(pair, arm).token_ids for pair in record.pairs]
    # A place from the end is the number of tokens after it; the last one is that of the first end token.
    ends = [[place for place, token in enumerate(reversed(ids)) if token in end_token_ids] for ids in texts]
    return sum(places[-1] for places in ends if places) / sum(map(len, texts)) if texts else None


def aa_floor(run: RunRecord) -> float | None:
    """Return how far from 0 the 95 % interval of log(AR / AR') reaches: a |log gamma| up to it is noise."""
    times = _times(arm for triple in run.baseline for arm in (triple.ar, triple.ar_again))
    columns = _columns(*([spent(getattr(triple, arm), times) for triple in run.baseline] for arm in ("ar", "ar_again")))
    return columns and intervals.log_ratio_floor(*columns, [triple.prompt_index for triple in run.baseline])


def native_ratio(run: RunRecord) -> Interval | None:
    """Return AR seconds per token / native seconds per token, over both AR texts of a triple. Above 1, AR is slower."""
    triples = [(triple, triple.native) for triple in run.baseline if triple.native is not None]
    times = _times(arm for triple, native in triples for arm in (triple.ar, triple.ar_again, native))
    both = [(spent(triple.ar, times), spent(triple.ar_again, times)) for triple, _ in triples]
    ours = [(first_s + again_s, tokens + more) for (first_s, tokens), (again_s, more) in both]
    columns = _columns(ours, [spent(native, times) for _, native in triples])
    return columns and intervals.ratio_of_totals(*columns, [triple.prompt_index for triple, _ in triples])


# Against another backend, on the same prompts
def speed_against(record: CellRecord, reference: CellRecord) -> Interval | None:
    """Return speculative tokens per second / the reference's. A drift of the machine between the two is not covered."""
    times = times_measured(record)
    if times != times_measured(reference):
        return None
    seconds, of_reference = (((p.prompt_index, spent(p.sd, times)) for p in each.pairs) for each in (record, reference))
    batches, others = groups_of(reference), groups_of(record)
    together = None if batches is None or others is None else [*batches, *others]
    return ratio_of_ratios(of_reference, seconds, groups=together)


def alpha_against(record: CellRecord, reference: CellRecord) -> Interval | None:
    """Return counted alpha / the reference's, paired by prompt; None if one has no alpha."""
    if JOINT_RULES & {record.cell.rule, reference.cell.rule}:
        return None
    return ratio_of_ratios(tested_of(record), tested_of(reference))


# Mechanism
def cost_ratio(record: CellRecord) -> float | None:
    """Return c, the median over the bare-forward samples of draft seconds / target seconds."""
    return _median(sample.draft_s / sample.ar_s for sample in _forwards(record))


def over_floor(record: CellRecord, forward: Forward) -> float | None:
    """Return the median over the bare-forward samples of a forward / its linear layers alone; None without floors."""
    return _median(getattr(sample, f"{forward}_s") / floor_s for sample, floor_s in _floors(record, forward))


def floor_seconds(record: CellRecord, forward: Forward) -> float | None:
    """Return the median seconds of the linear layers alone over the bare-forward samples; None without floors."""
    return _median(floor_s for _, floor_s in _floors(record, forward))


def predicted_gamma(record: CellRecord, *, cost: float | None = None) -> float | None:
    """Return gamma of a loop without overhead, at the measured block efficiency; `cost` replaces the measured c."""
    efficiency = block_efficiency(record)
    return None if efficiency is None else _gamma_at(record, efficiency.estimate, cost=cost)


def iid_predicted_gamma(record: CellRecord) -> float | None:
    """Return gamma of a loop without overhead if every draft token were accepted with probability counted alpha."""
    alpha = counted_alpha(record)
    if alpha is None or record.cell.draft_length != "constant":
        return None
    return _gamma_at(record, theory.expected_block_efficiency(alpha.estimate, record.cell.num_draft_tokens))


def round_costs(record: CellRecord) -> dict[str, float] | None:
    """Return the seconds of a round by phase, from the replays; None without them."""
    num_rounds = sum(len(replay.rounds) for _, replay in replays_of(record))
    seconds = _phase_seconds(record)
    return {name: seconds[name] / num_rounds for name in ROUND_PHASES} if num_rounds else None


def phase_shares(record: CellRecord) -> dict[str, float] | None:
    """Return the share of the replays' seconds in each phase, by its name in PhaseSeconds; shares sum to 1."""
    seconds = _phase_seconds(record)
    total = sum(seconds.values())
    return {name: of_phase / total for name, of_phase in seconds.items()} if total else None


def certificate_cost(record: CellRecord) -> float | None:
    """Return seconds of scoring / seconds of the speculative texts that were scored."""
    decoding_s = sum(pair.sd.seconds for pair in record.pairs)
    return None if record.scoring_s is None or not decoding_s else record.scoring_s / decoding_s


def wall_shares(run: RunRecord) -> dict[str, float]:
    """Return on what a run spent the wall-clock seconds of its cells after models were loaded, as shares that sum to 1.

    `pairs` are timed arms. `instruments and the rest` is the time between them, such as replays and bare forwards. Empty if
    no cell has these seconds.
    """
    cells = [record for record in run.cells if record.wall_s]
    total = sum(sum(record.wall_s.values()) for record in cells)
    if not total:
        return {}
    steps = {step: sum(record.wall_s[step] for record in cells) for step in STEPS}
    arms_s = sum(map(_arms_seconds, cells))
    named = {"pairs": arms_s, **{name: steps[name] for name in ("warm-up", "baseline", "certificate")}}
    named["instruments and the rest"] = steps["pairs"] - arms_s
    return {name: seconds / total for name, seconds in named.items()}


def _arms_seconds(record: CellRecord) -> float:
    """Return the seconds of timed arms. Of texts that were decoded at once, the slowest one counts."""
    groups: dict[object, float] = {}
    for pair in record.pairs:
        first = pair.prompt_index if pair.group is None else pair.group
        for arm in ("ar", "sd"):
            key = (first, pair.repeat // record.cell.concurrency, arm)  # texts of a group differ in repeat
            groups[key] = max(groups.get(key, 0.0), getattr(pair, arm).seconds)
    return sum(groups.values())


# Parts of records
def replays_of(record: CellRecord) -> Iterator[tuple[TimedPair, Replay]]:
    return ((pair, pair.replay) for pair in record.pairs if pair.replay is not None)


def replayed(record: CellRecord) -> CellRecord:
    """Return the record with only those pairs that have a replay; with all if none has one."""
    return replace(record, pairs=tuple(pair for pair, _ in replays_of(record)) or record.pairs)


def counts_of(record: CellRecord) -> Iterator[tuple[int, RoundCounts]]:
    """Yield the prompt and the counts of each pair whose engine reports rounds."""
    return ((pair.prompt_index, count_rounds(pair.sd.rounds)) for pair in record.pairs if pair.sd.rounds is not None)


def tested_of(record: CellRecord) -> Iterator[OfPrompt]:
    """Yield the prompt of each pair whose engine reports rounds, with its accepted and its tested draft tokens."""
    return ((prompt, (counts.accepted, counts.tested)) for prompt, counts in counts_of(record))


def time_columns(record: CellRecord, times: Times) -> Columns | None:
    """Return seconds and tokens of both arms, in the order of pairs; None if one of the four totals is zero."""
    return _columns(*([spent(getattr(pair, arm), times) for pair in record.pairs] for arm in ("ar", "sd")))


def spent(arm: TimedArm, times: Times) -> Spent:
    """Return the seconds and tokens that an arm adds to its totals."""
    if times == "end_to_end" or arm.first_token_s is None:
        return arm.seconds, len(arm.token_ids)
    num_first = arm.rounds[0].emitted if arm.rounds and first_round_has_prefill(arm) else 1
    num_decoded = len(arm.token_ids) - num_first
    # Without such tokens, the rest of the call is no decoding.
    return (arm.seconds - arm.first_token_s, num_decoded) if num_decoded else (0.0, 0)


def first_round_has_prefill(arm: TimedArm) -> bool:
    """Return whether the engine drafts before its prefill, so that the first token comes with those of the first round."""
    return bool(arm.rounds) and sum(round_.emitted for round_ in arm.rounds or ()) == len(arm.token_ids)


def groups_of(record: CellRecord, pairs: Sequence[TimedPair] | None = None) -> list[int] | None:
    """Return the number of the batch in which each pair was decoded; None if pairs were decoded alone.

    Args:    pairs: some of the record's; None: all
    """
    some = record.pairs if pairs is None else pairs
    batches = [(pair.group, pair.repeat // record.cell.concurrency) for pair in some]
    if any(group is None for group, _ in batches):
        return None
    numbers = {batch: number for number, batch in enumerate(dict.fromkeys(batches))}
    return [numbers[batch] for batch in batches]


def share_of(counts: Iterable[OfPrompt]) -> Interval | None:
    """Return the sum of firsts / the sum of seconds, a share in 0..1; None if nothing was tried."""
    entries = [(*values, prompt) for prompt, values in counts]
    return intervals.proportion(*zip(*entries, strict=True)) if any(trials for _, trials, _ in entries) else None


def ratio_of_ratios(
    above: Iterable[OfPrompt], below: Iterable[OfPrompt], *, groups: Sequence[int] | None = None
) -> Interval | None:
    """Return (sum of firsts / sum of seconds) of one list over that of another, paired by prompt; None if a total is zero.

    Args:    groups: the batch of each entry of both lists, if the numbers are seconds of texts that were decoded together
    """
    entries = [(*values, 0, 0, prompt) for prompt, values in above]
    others = [(0, 0, *values, prompt) for prompt, values in below]
    columns = tuple(zip(*entries, *others, strict=True))
    return intervals.ratio_of_totals(*columns, groups=groups) if columns and all(map(sum, columns[:4])) else None


def _times(arms: Iterable[TimedArm]) -> Times:
    return "end_to_end" if any(arm.first_token_s is None for arm in arms) else "decode"


def _columns(first: Sequence[Spent], second: Sequence[Spent]) -> Columns | None:
    columns = ([s for s, _ in first], [n for _, n in first], [s for s, _ in second], [n for _, n in second])
    return columns if all(sum(column) for column in columns) else None


def _prompts(record: CellRecord) -> list[int]:
    return [pair.prompt_index for pair in record.pairs]


def _phase_seconds(record: CellRecord) -> dict[str, float]:
    phases = [replay.phase_s for _, replay in replays_of(record)]
    return {name: sum(getattr(phase, name) for phase in phases) for name in PhaseSeconds.__slots__}


def _forwards(record: CellRecord) -> list[ForwardSeconds]:
    return [forwards for pair in record.pairs for forwards in pair.forwards]


def _floors(record: CellRecord, forward: Forward) -> Iterator[tuple[ForwardSeconds, float]]:
    floors = ((sample, getattr(sample, f"{forward}_floor_s")) for sample in _forwards(record))
    return ((sample, floor_s) for sample, floor_s in floors if floor_s)


def _gamma_at(record: CellRecord, efficiency: float, *, cost: float | None = None) -> float | None:
    """Return the median over the bare-forward samples of the gamma that each predicts.

    The three forwards of a sample ran together, so that drift cancels within it. If the draft length adapts, a round has the
    mean number of drafts, and its verification is that of the longest.
    """
    num_draft_tokens = float(record.cell.num_draft_tokens)
    if record.cell.draft_length == "adaptive":
        counts = count_rounds(round_ for pair in record.pairs for round_ in pair.sd.rounds or ())
        num_draft_tokens = counts.drafted / counts.rounds
    return _median(
        theory.predicted_gamma(
            efficiency,
            ar_s=sample.ar_s,
            draft_s=sample.draft_s if cost is None else cost * sample.ar_s,
            verify_s=sample.verify_s,
            num_draft_tokens=num_draft_tokens,
        )
        for sample in _forwards(record)
    )


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.median(found)) if found else None
