"""Acceptance within texts whose temperature changes: does it follow the temperature of the moment?

A stretch is the new tokens from `start` up to but without `end`, the first having index 0. What a schedule does in a stretch
is held against the schedule of that temperature throughout, over the same stretch, because place in the text matters too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bench import metrics, statistics, tables
from bench.environment import machine_slug
from bench.records import Cell, CellRecord, Round, schedule_text
from bench.rendering import MISSING, Entry, Table
from bench.statistics import RatioInterval

FACTS = {
    "schedule": "temperature@index of the first new token it holds for, of target and draft alike",
    "while hot, while cold": "tested positions of the tokens that have the hottest and the coldest temperature of these rows",
    "constant": "alpha counted of the schedule of that temperature throughout, over the same tokens of its texts",
    "/ constant": "ratio of these two: 1 where acceptance follows the temperature of the moment and nothing else",
    "intervals": "95 % over prompts",
}


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
    return statistics.ratio_of_totals(*zip(*rows, strict=True))


def halves_table(rows: Sequence[tables.Row]) -> Table:
    """One row a schedule: alpha while hot and while cold, each beside the constant schedule's over the same tokens.

    Args:    rows: of one suite, at least one of which has a schedule
    """
    scheduled = [row for row in rows if row.record.cell.schedule]
    constants = {_constant(row.record.cell): row.record for row in scheduled if len(row.record.cell.schedule) == 1}
    temperatures = [temperature for row in scheduled for _, temperature in row.record.cell.schedule]
    extremes = {"hot": max(temperatures), "cold": min(temperatures)}
    columns = ("alpha while {}\ncounted", "alpha while {}\nexpected", "constant {},\nsame tokens", "/ constant\n{}")
    own = {"schedule", "temperature", "draft_temperature"}
    varying = [name for name in tables.split_identity(scheduled)[0] if name not in own]
    body = []
    for row in scheduled:
        texts = [schedule_text(row.record.cell.schedule)]
        texts += [tables.scalar_text(name, tables.identity(row).get(name)) for name in varying]
        for temperature in extremes.values():
            texts += _alphas(row.record, temperature, constants)
        body.append(tuple(map(Entry, texts)))
    run = scheduled[0].run
    return Table(
        f"{run.suite} on {machine_slug(run.environment)}: acceptance while hot and while cold",
        ("schedule", *varying, *(column.format(state) for state in extremes for column in columns)),
        tuple(body),
        (),
        dict(FACTS),
        {},
    )


def _alphas(record: CellRecord, temperature: float, constants: dict[Cell, CellRecord]) -> tuple[str, str, str, str]:
    """Counted, expected, the constant schedule's, and the ratio, where a schedule has this temperature."""
    stretch = next((each for each in stretches(record.cell) if each.temperature == temperature), None)
    if stretch is None:
        return (MISSING,) * 4
    alphas = (counted_alpha(record, stretch), expected_alpha(record, stretch))
    constant = constants.get(_constant(replace(record.cell, temperature=temperature)))
    if constant is not None and constant is not record:
        beside = (counted_alpha(constant, stretch), alpha_against(record, constant, stretch))
    else:
        beside = (None, None)
    counted, expected, constants_own, ratio = map(tables.interval_text, (*alphas, *beside))
    return counted, expected, constants_own, ratio


def _constant(cell: Cell) -> Cell:
    """What the constant schedule of a cell's temperature has in common with it."""
    options = tuple(option for option in cell.options if option[0] != "schedule")
    return replace(cell, draft_temperature=cell.temperature, options=options)


def _counted(record: CellRecord, stretch: Stretch) -> list[tuple[int, int, int]]:
    """Of each pair whose engine reports rounds: draft tokens of a stretch accepted, tested, and the prompt."""
    found = []
    for pair in record.pairs:
        if pair.sd.rounds is not None:
            rounds = tuple(_placed(pair.sd.rounds, len(pair.sd.token_ids)))
            accepted = sum(stretch.overlap(first, round_.accepted) for first, round_ in rounds)
            rejections = sum(stretch.overlap(first + r.accepted, metrics.is_rejection(r)) for first, r in rounds)
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
    return statistics.proportion(*zip(*found, strict=True))
