"""Effects of cells, paired by prompt, from raw counts and seconds.

Alpha is the counted one and gamma the ratio of totals, as in the tables. An effect is a weighted sum of such numbers over a few
cells. Its error is a jackknife that leaves a prompt out of all cells at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis import metrics
from bench.analysis.rows import Row
from bench.records.command_line import shell_text
from bench.records.runs import CellRecord
from bench.statistics.effects import Effect, Number, PromptSums, Statistic, contrast, paired_effect
from bench.statistics.intervals import Array


@dataclass(frozen=True, slots=True)
class Finding:
    """An effect and where it comes from."""

    effect: Effect
    detail: str  # what was compared with what
    files: tuple[str, ...]  # below the folder of results
    commands: tuple[str, ...]  # that made them


Summands = Callable[[CellRecord], Iterator[tuple[int, Sequence[float]]]]  # prompt and summands of each pair


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number of a cell: what is summed over each prompt, and the number that follows from the sums."""

    columns: Summands
    of: Number


def compared(statistic: Statistic, cells: Sequence[tuple[Row, Summands]], detail: str) -> Finding | None:
    """Return a statistic of cells, on the prompts that all cells of a prompt set have; None if one lacks such numbers."""
    sums = [_by_prompt(columns(row.record)) for row, columns in cells]
    sets = [row.record.cell.prompts_hash for row, _ in cells]
    shared: dict[str, set[int]] = {}
    for prompt_set, of_prompts in zip(sets, sums, strict=True):
        shared[prompt_set] = shared.get(prompt_set, set(of_prompts)) & of_prompts.keys()
    if not all(shared.values()):
        return None
    # In the same order in all cells of a set: the jackknife removes a prompt from them by its place.
    totals = (np.array([own[prompt] for prompt in sorted(shared[name])]) for name, own in zip(sets, sums, strict=True))
    runs = {row.file: row.run for row, _ in cells}
    detail = f"{detail}; {' and '.join(str(len(prompts)) for prompts in shared.values())} prompts"
    commands = tuple(dict.fromkeys(shell_text(run.command) for run in runs.values()))
    return Finding(paired_effect(statistic, list(map(PromptSums, sets, totals))), detail, tuple(runs), commands)


def weighted(quantity: Quantity, cells: Sequence[tuple[float, Row]], detail: str) -> Finding | None:
    """Return a weighted sum of the quantity of cells."""
    statistic = contrast(quantity.of, [weight for weight, _ in cells])
    return compared(statistic, [(row, quantity.columns) for _, row in cells], detail)


def _by_prompt(summands: Iterator[tuple[int, Sequence[float]]]) -> dict[int, Array]:
    found: dict[int, Array] = {}
    for prompt, values in summands:
        found[prompt] = found.get(prompt, np.zeros(len(values))) + np.array(values, float)
    return found


# Quantities
def _arm_seconds(record: CellRecord) -> Iterator[tuple[int, Sequence[float]]]:
    columns = metrics.time_columns(record, metrics.times_measured(record))
    if columns is not None:
        yield from zip(map(metrics.cluster, record.pairs), zip(*columns, strict=True), strict=True)


def _arm_seconds_of_rounds(record: CellRecord) -> Iterator[tuple[int, Sequence[float]]]:
    """Yield seconds and tokens of the autoregressive arm, seconds and rounds of the speculative one."""
    of_decoding = metrics.times_measured(record) == "decode"
    for (prompt, (ar_s, ar_tokens, sd_s, _)), pair in zip(_arm_seconds(record), record.pairs, strict=True):
        if pair.sd.rounds is not None:
            # Decode seconds omit the first round if it has the prefill.
            untimed = of_decoding and metrics.first_round_has_prefill(pair.sd)
            yield prompt, (ar_s, ar_tokens, sd_s, len(pair.sd.rounds) - untimed)


def _phase_seconds(record: CellRecord) -> Iterator[tuple[int, Sequence[float]]]:
    for pair in record.pairs:
        if pair.replay is not None:
            yield metrics.cluster(pair), (pair.replay.phase_s.accept, pair.replay.phase_s.verify)


def alpha_of(sums: Array) -> Array:
    """Return alpha from accepted and tested tokens."""
    return sums[..., 0] / sums[..., 1]


def log_quotient(sums: Array) -> Array:
    return np.log(sums[..., 0] / sums[..., 1])


def log_ratio_of(sums: Array) -> Array:
    """Return log((sums 0 / sums 1) / (sums 2 / sums 3)), such as from seconds and tokens of both arms."""
    return np.log(sums) @ np.array([1.0, -1.0, -1.0, 1.0])


ALPHA = Quantity(metrics.tested_of, alpha_of)
LOG_GAMMA = Quantity(_arm_seconds, log_ratio_of)

# Cells run minutes apart. A drift of the machine cancels against seconds of the same minute.
LOG_ROUND_COST = Quantity(_arm_seconds_of_rounds, lambda sums: -log_ratio_of(sums))  # in autoregressive tokens
LOG_ACCEPT_COST = Quantity(_phase_seconds, log_quotient)  # in verifications
