"""TODO: purpose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.analysis import metrics
from bench.records import decoding
from bench.records.decoding import Round
from bench.records.runs import Cell, CellRecord
from bench.statistics import intervals
from bench.statistics.intervals import RatioInterval


@dataclass(frozen=True, slots=True)
class Stretch:
    """New tokens for which a schedule has one temperature."""

    start: int
    end: int
    temperature: float

    def overlap(self, first: int, count: int) -> int:
        """How many of `count` tokens from `first` on lie in it."""
        return max(0, min(self.end, first + count) - max(self.start, first))


def stretches(cell: Cell) -> tuple[Stretch, ...]:
    """Of the longest text that a cell allows; empty without a schedule."""
    if not cell.schedule:
        return ()
    limit = cell.max_new_tokens
    reached = [piece for piece in cell.schedule if piece[0] < limit]
    return tuple(Stretch(start, end, piece) for (start, piece), (end, _) in pairwise((*reached, (limit, 0.0))))


def counted_alpha(record: CellRecord, stretch: Stretch) -> RatioInterval | None:
    """Accepted / tested draft tokens of a stretch; None where none was tested, or the rule judges jointly."""
    if record.cell.rule in metrics.JOINT_RULES:
        return None
    return _share(_counted(record, stretch))


def expected_alpha(record: CellRecord, stretch: Stretch) -> RatioInterval | None:
    """Mean acceptance probability of the positions of a stretch that the replays tested; None as above."""
    if record.cell.rule in metrics.JOINT_RULES:
        return None
    found = []
    for pair in record.pairs:
        if pair.replay is not None:
            rounds = _placed(pair.replay.rounds, len(pair.replay.token_ids))
            probs = [
                min(prob, 1.0)
                for (first, _), round_probs in zip(rounds, pair.replay.acceptance_probs, strict=True)
                for prob in round_probs[max(0, stretch.start - first) : max(0, stretch.end - first)]
            ]
            found.append((sum(probs), len(probs), metrics.cluster(pair)))
    return _share(found)


def alpha_against(record: CellRecord, constant: CellRecord, stretch: Stretch) -> RatioInterval | None:
    """Counted alpha / that of another schedule over the same stretch, paired by prompt; None where there is no ratio."""
    if record.cell.rule in metrics.JOINT_RULES:
        return None
    ours, theirs = _counted(record, stretch), _counted(constant, stretch)
    rows = [(accepted, tested, 0, 0, prompt) for accepted, tested, prompt in ours]
    rows += [(0, 0, accepted, tested, prompt) for accepted, tested, prompt in theirs]
    if not all(sum(row[column] for row in rows) for column in range(4)):
        return None
    return intervals.ratio_of_totals(*zip(*rows, strict=True))


def _counted(record: CellRecord, stretch: Stretch) -> list[tuple[int, int, int]]:
    """Of each pair whose engine reports rounds: draft tokens of a stretch accepted, tested, and the prompt."""
    found = []
    for pair in record.pairs:
        if pair.sd.rounds is not None:
            rounds = tuple(_placed(pair.sd.rounds, len(pair.sd.token_ids)))
            accepted = sum(stretch.overlap(first, round_.accepted) for first, round_ in rounds)
            rejections = sum(stretch.overlap(first + r.accepted, decoding.is_rejection(r)) for first, r in rounds)
            found.append((accepted, accepted + rejections, metrics.cluster(pair)))
    return found


def _placed(rounds: Sequence[Round], num_tokens: int) -> Iterator[tuple[int, Round]]:
    """Each round with the index of its first new token. The prefill's token, if it is in no round, comes before."""
    first = num_tokens - sum(round_.emitted for round_ in rounds)
    for round_ in rounds:
        yield first, round_
        first += round_.emitted


def _share(found: Sequence[tuple[float, int, int]]) -> RatioInterval | None:
    if not any(trials for _, trials, _ in found):
        return None
    return intervals.proportion(*zip(*found, strict=True))
