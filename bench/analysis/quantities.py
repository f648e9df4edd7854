"""Effects of cells, paired by prompt, from raw counts and seconds.

Gamma is the ratio of totals, as in the tables. An effect is a weighted sum of such numbers over a few cells. Its error is a
jackknife that leaves a prompt out of all cells at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter

import numpy as np

from bench.analysis import metrics
from bench.analysis.rows import Row
from bench.records.command_line import shell_text
from bench.records.runs import CellRecord, TimedPair
from bench.statistics.effects import Effect, LargestEffect, Number, PromptSums, Statistic, contrast, paired_effect
from bench.statistics.intervals import Array, Interval


@dataclass(frozen=True, slots=True)
class Finding:
    """An effect and where it comes from."""

    effect: Effect | LargestEffect
    detail: str  # what was compared with what
    files: tuple[str, ...]  # below the folder of results
    commands: tuple[str, ...]  # that made them


Summands = Callable[[CellRecord], Iterator[tuple[TimedPair, Sequence[float]]]]  # the summands of each pair


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number of a cell: what is summed over each prompt, and the number that follows from the sums."""

    columns: Summands
    of: Number
    timed: bool = False  # the summands are seconds, whose noise the texts of a batch share


CellOf = tuple[Row, Quantity]  # a cell, and what is taken from it


def prompt_sums(cells: Sequence[CellOf]) -> list[PromptSums] | None:
    """Return the sums of each cell, on the prompts that all cells of a prompt set have; None if one lacks such numbers."""
    pairs = [list(quantity.columns(row.record)) for row, quantity in cells]
    sets = [row.record.cell.prompts_hash for row, _ in cells]
    shared: dict[str, set[int]] = {}
    for prompt_set, of_cell in zip(sets, pairs, strict=True):
        prompts = {pair.prompt_index for pair, _ in of_cell}
        shared[prompt_set] = shared.get(prompt_set, prompts) & prompts
    if not all(shared.values()):
        return None
    found = []
    for (row, quantity), prompt_set, of_cell in zip(cells, sets, pairs, strict=True):
        kept = [(pair, values) for pair, values in of_cell if pair.prompt_index in shared[prompt_set]]
        batches = metrics.groups_of(row.record, [pair for pair, _ in kept]) if quantity.timed else None
        found.append(
            PromptSums(
                prompt_set,
                _summed([pair.prompt_index for pair, _ in kept], [values for _, values in kept]),
                None if batches is None else _summed(batches, [values for _, values in kept]),
            )
        )
    return found


def gamma_without_luck(record: CellRecord) -> Interval | None:
    """Return gamma without the luck of acceptance, as far as pairs were replayed; None if none was, or nothing was decoded."""
    pairs = list(LOG_GAMMA_WITHOUT_LUCK.columns(record))
    if not any(pair.replay is not None for pair, _ in pairs):
        return None
    prompts, values = [pair.prompt_index for pair, _ in pairs], [values for _, values in pairs]
    batches = metrics.groups_of(record, [pair for pair, _ in pairs])
    sums = PromptSums("", _summed(prompts, values), None if batches is None else _summed(batches, values))
    effect = paired_effect(contrast(log_gamma_without_luck, (1.0,)), [sums])
    return replace(effect.interval.transformed(math.exp), num_clusters=len(sums.totals), parts=effect.parts)


def compared(statistic: Statistic, cells: Sequence[CellOf], detail: str) -> Finding | None:
    """Return a statistic of cells, on the prompts that all cells of a prompt set have; None if one lacks such numbers."""
    sums = prompt_sums(cells)
    return None if sums is None else finding(paired_effect(statistic, sums), cells, sums, detail)


def largest(statistics: Sequence[Statistic], cells: Sequence[CellOf], detail: str, *, num_choices: int = 1) -> Finding | None:
    """Return the largest of several statistics of the same cells, as `compared`; num_choices: see `LargestEffect`."""
    sums = prompt_sums(cells)
    if sums is None:
        return None
    effects = tuple(paired_effect(statistic, sums) for statistic in statistics)
    return finding(LargestEffect(effects, num_choices), cells, sums, detail)


def finding(effect: Effect | LargestEffect, cells: Sequence[CellOf], sums: Sequence[PromptSums], detail: str) -> Finding:
    """Return an effect of cells, with the number of prompts, the files and the commands of these cells."""
    num_prompts = {each.prompt_set: len(each.totals) for each in sums}
    runs = {row.file: row.run for row, _ in cells}
    commands = tuple(dict.fromkeys(shell_text(run.command) for run in runs.values()))
    return Finding(effect, f"{detail}; {' and '.join(map(str, num_prompts.values()))} prompts", tuple(runs), commands)


def weighted(quantity: Quantity, cells: Sequence[tuple[float, Row]], detail: str) -> Finding | None:
    """Return a weighted sum of the quantity of cells."""
    statistic = contrast(quantity.of, [weight for weight, _ in cells])
    return compared(statistic, [(row, quantity) for _, row in cells], detail)


def trend(quantity: Quantity, rows: Sequence[Row]) -> Finding | None:
    """Return the least-squares slope of the quantity of cells over T, for each 1.0 of T; None for a single T."""
    temperatures = [row.record.cell.temperature for row in rows]
    if len(set(temperatures)) < 2:
        return None
    cells = list(zip(trend_weights(temperatures), rows, strict=True))
    return weighted(quantity, cells, f"T = {', '.join(f'{each:g}' for each in temperatures)}")


def trend_weights(temperatures: Sequence[float]) -> list[float]:
    """Return the weights of cells in a least-squares slope: (T_i - mean) / sum_j (T_j - mean)^2; of 0, 0.5, 1: -1, 0, 1."""
    distances = np.array(temperatures) - np.mean(temperatures)
    weights: list[float] = (distances / (distances**2).sum()).tolist()
    return weights


def _summed(labels: Sequence[int], values: Sequence[Sequence[float]]) -> Array:
    """Return the sums over the rows of each label, in the order of labels."""
    _, places = np.unique(labels, return_inverse=True)
    sums = np.zeros((int(places.max()) + 1, len(values[0])))
    np.add.at(sums, places, np.array(values, float))
    return sums


# Quantities
def expected(probs_of: metrics.ProbsOf, counted: Summands) -> Summands:
    """Return the summands of expected alpha: acceptance probabilities of a replay, and its number of tested tokens.

    A pair without a replay keeps its counted summands, where an outcome (0 or 1) stands for its probability. Given what came
    before a token, both have the same mean, so that they may be added up: only the noise of the draws is in the latter.
    """

    def summands(record: CellRecord) -> Iterator[tuple[TimedPair, Sequence[float]]]:
        for pair, outcomes in counted(record):
            if pair.replay is None:
                yield pair, outcomes
            else:
                probs = [min(prob, 1.0) for prob in chain.from_iterable(probs_of(pair.replay))]  # as in `expected_alpha`
                yield pair, (sum(probs), len(probs))

    return summands


def _accepted_of_tested(record: CellRecord) -> Iterator[tuple[TimedPair, Sequence[float]]]:
    for pair in record.pairs:
        if pair.sd.rounds is not None:
            counts = metrics.count_rounds(pair.sd.rounds)
            yield pair, (counts.accepted, counts.tested)


def _arm_seconds(record: CellRecord) -> Iterator[tuple[TimedPair, Sequence[float]]]:
    columns = metrics.time_columns(record, metrics.times_measured(record))
    if columns is not None:
        yield from zip(record.pairs, zip(*columns, strict=True), strict=True)


def _arm_seconds_and_surplus(record: CellRecord) -> Iterator[tuple[TimedPair, Sequence[float]]]:
    """Yield what `_arm_seconds` does, after the surplus of accepted over expected draft tokens: 0 where that is not known."""
    for pair, values in _arm_seconds(record):
        surplus, replay = 0.0, pair.replay
        if replay is not None:
            expected = replay.joint_length or chain.from_iterable(replay.acceptance_probs)
            surplus = metrics.count_rounds(replay.rounds).accepted - sum(expected)
        yield pair, (surplus, *values)  # the last one weighs the prompt


def _round_seconds(record: CellRecord) -> Iterator[tuple[TimedPair, Sequence[float]]]:
    """Yield the seconds of the rounds of a pair, and those of the bare forwards of these rounds, which were timed after it."""
    of_decoding = metrics.times_measured(record) == "decode"
    for pair in record.pairs:
        if pair.sd.rounds is not None and pair.forwards:
            # Decode seconds omit the first round if it has the prefill.
            rounds = pair.sd.rounds[of_decoding and metrics.first_round_has_prefill(pair.sd) :]
            drafted = sum(round_.drafted for round_ in rounds)
            # The median, because one stalled forward of three would make all rounds of the pair look cheap.
            bare_s = np.median([drafted * each.draft_s + len(rounds) * each.verify_s for each in pair.forwards])
            yield pair, (metrics.spent(pair.sd, metrics.times_measured(record))[0], float(bare_s))


def _phase_seconds(record: CellRecord) -> Iterator[tuple[TimedPair, Sequence[float]]]:
    """Yield the seconds of acceptance in a replay, and those of all phases of its rounds."""
    for pair, replay in metrics.replays_of(record):
        yield pair, (replay.phase_s.accept, sum(getattr(replay.phase_s, name) for name in metrics.ROUND_PHASES))


def share_of(sums: Array) -> Array:
    """Return a part of a whole, such as alpha from accepted and tested tokens."""
    return sums[..., 0] / sums[..., 1]


def log_quotient(sums: Array) -> Array:
    return np.log(sums[..., 0] / sums[..., 1])


def log_ratio_of(sums: Array) -> Array:
    """Return log((sums 0 / sums 1) / (sums 2 / sums 3)), such as from seconds and tokens of both arms."""
    return np.log(sums) @ np.array([1.0, -1.0, -1.0, 1.0])


def log_gamma_without_luck(sums: Array) -> Array:
    """Return log gamma - surplus / SD tokens.

    A draft token that is accepted by luck saves its share of the seconds: one token. The surplus of accepted tokens over their
    expectation has mean 0, so subtracting it changes no mean, but removes noise.
    """
    return log_ratio_of(sums[..., 1:]) - sums[..., 0] / sums[..., 4]


ALPHA = Quantity(_accepted_of_tested, share_of)  # counted
EXPECTED_ALPHA = Quantity(expected(attrgetter("acceptance_probs"), _accepted_of_tested), share_of)
LOG_GAMMA = Quantity(_arm_seconds, log_ratio_of, timed=True)
LOG_GAMMA_WITHOUT_LUCK = Quantity(_arm_seconds_and_surplus, log_gamma_without_luck, timed=True)

# Cells run minutes apart. A drift of the machine cancels against seconds of the same minute.
LOG_ROUND_COST = Quantity(_round_seconds, log_quotient, timed=True)  # in its bare forwards
ACCEPT_SHARE = Quantity(_phase_seconds, share_of, timed=True)
