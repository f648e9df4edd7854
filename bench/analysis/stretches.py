"""Stretches of a text for which a schedule has one temperature, and the acceptance in each."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from bench.analysis import metrics
from bench.records.decoding import BONUS, Replay, emitted_positions, placed_rounds
from bench.records.runs import Cell, CellRecord, TimedPair
from bench.statistics.intervals import Interval


@dataclass(frozen=True, slots=True)
class Stretch:
    """New tokens from `start` up to `end`, for which a schedule has one temperature."""

    start: int
    end: int
    temperature: float


def stretches(cell: Cell) -> tuple[Stretch, ...]:
    """Return the stretches of the longest text that a cell allows; empty without a schedule."""
    limit = cell.max_new_tokens
    reached = [piece for piece in cell.schedule if piece[0] < limit]
    return tuple(Stretch(start, end, piece) for (start, piece), (end, _) in pairwise((*reached, (limit, 0.0))))


def counts_in(record: CellRecord, stretch: Stretch) -> Iterator[tuple[TimedPair, tuple[int, int]]]:
    """Yield each pair whose engine reports rounds, with the accepted and the tested draft tokens of a stretch."""
    for pair in record.pairs:
        if pair.sd.rounds is not None:
            tested = (p for p in emitted_positions(pair.sd.rounds, len(pair.sd.token_ids)) if p.slot != BONUS)
            passed = [p.accepted for p in tested if stretch.start <= p.place < stretch.end]
            yield pair, (sum(passed), len(passed))


def counted_alpha(record: CellRecord, stretch: Stretch) -> Interval | None:
    """Return accepted / tested draft tokens of a stretch; None if none was tested, or if the rule judges jointly."""
    return None if record.cell.rule in metrics.JOINT_RULES else metrics.share_of(_by_prompt(record, stretch))


def expected_alpha(record: CellRecord, stretch: Stretch) -> Interval | None:
    """Return the mean acceptance probability of the positions of a stretch that replays tested; None as above."""
    return metrics.expected_alpha(record, probs_of=functools.partial(probs_in, stretch=stretch))


def probs_in(replay: Replay, stretch: Stretch) -> Iterator[tuple[float, ...]]:
    """Yield for each round the acceptance probabilities of the positions of a stretch."""
    rounds = placed_rounds(replay.rounds, len(replay.token_ids))
    for (first, _), probs in zip(rounds, replay.acceptance_probs, strict=True):
        yield probs[max(0, stretch.start - first) : max(0, stretch.end - first)]


def alpha_against(record: CellRecord, constant: CellRecord, stretch: Stretch) -> Interval | None:
    """Return counted alpha / that of another schedule over the same stretch, paired by prompt; None without a ratio."""
    if record.cell.rule in metrics.JOINT_RULES:
        return None
    return metrics.ratio_of_ratios(_by_prompt(record, stretch), _by_prompt(constant, stretch))


def _by_prompt(record: CellRecord, stretch: Stretch) -> Iterator[metrics.OfPrompt]:
    return ((pair.prompt_index, counts) for pair, counts in counts_in(record, stretch))
