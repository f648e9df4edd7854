"""Numbers of a KD matrix: alpha of each kind of draft at each decode temperature, and how it differs between drafts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.records.kd_matrix import NUM_DRAFT_TOKENS, OTHER_K, START, TUNING, Matrix, MatrixCell, MeasuredDraft
from bench.statistics.effects import left_out_ratios, over_prompts, over_seeds_and_prompts
from bench.statistics.intervals import Array, Interval

ARMS_OF_ONE_TEMPERATURE = ("offline", "soft", "soft:data", "online", "online:data")
LENGTHS = tuple(sorted((NUM_DRAFT_TOKENS, *OTHER_K)))  # k for which gamma is predicted
# c, the cost of a draft token in forwards of the target, for which gamma is predicted, and its source.
COSTS = {
    0.144: "the embedded pair on an AMD EPYC with 2 cores, results/studies/amd-epyc-2c/first_run",
    68 / 13016: "Llama-2-13B-chat and Llama-68M by parameters, Ouyang et al. 2024, arXiv 2410.10141",
}
Kind = tuple[str, float, float | None]  # arm, lambda, KD temperature
Intervals = list[Interval | None]  # one entry for each decode temperature
Number = Callable[[MatrixCell], Array]  # (1 + P,): of all prompts, then without each


def alpha_of(cell: MatrixCell) -> Array:
    return left_out_ratios(cell.accepted, cell.tested)


def efficiency_at(num_draft_tokens: int) -> Number:
    """Return the function that takes the block efficiency at this k from a cell."""
    return lambda cell: left_out_ratios(cell.emitted, cell.rounds_at(num_draft_tokens))


def estimate(of_seeds: Sequence[MatrixCell], against: Sequence[MatrixCell] = (), *, number: Number = alpha_of) -> Interval:
    """Return a number, or its excess over `against` on the same texts (one draft, or one of each seed in the same order).

    The interval covers other seeds and other prompts. From a single seed it has no ends.
    """
    values = np.stack(list(map(number, of_seeds)))
    return over_seeds_and_prompts(values - np.stack(list(map(number, against))) if against else values).interval


def alphas(matrix: Matrix) -> dict[Kind, Intervals]:
    """Return alpha of each kind of draft; `matched` takes the offline draft of each decode temperature."""
    return _estimates(kinds_of(matrix), matrix)


def predicted_gammas(matrix: Matrix, *, cost: float) -> dict[Kind, list[tuple[float, ...]]]:
    """Return gamma of each kind at each decode temperature for all LENGTHS; empty for records without their rounds.

    gamma = block efficiency / (1 + k c): a round is k draft tokens and one forward of the target, which verifies at the cost of
    one token.

    Source:  Leviathan et al. 2023, arXiv 2211.17192, theorem 3.8
    """
    kinds = kinds_of(matrix)
    if not all(cell.rounds_at(k) for lines in kinds.values() for line in lines for cell in line.cells for k in LENGTHS):
        return {}
    found = {}
    for kind, lines in kinds.items():
        of_temperatures = list(zip(*(line.cells for line in lines), strict=True))
        efficiencies = [[estimate(cells, number=efficiency_at(k)).estimate for k in LENGTHS] for cells in of_temperatures]
        found[kind] = [
            tuple(each / (1 + k * cost) for each, k in zip(of_cell, LENGTHS, strict=True)) for of_cell in efficiencies
        ]
    return found


@dataclass(frozen=True, slots=True)
class DraftTemperatures:
    """Alpha of a kind at one decode T with three draft T, mean over seeds."""

    equal: float
    one: float
    tuned: float
    chosen: tuple[float, ...]  # the tuned draft T of each seed


def draft_temperatures(matrix: Matrix, domain: str) -> dict[Kind, dict[float, DraftTemperatures]]:
    """Return what the draft T does to each kind at the decode T where it was varied; empty if it was not."""
    equal, varied = kinds_of(matrix.on(domain)), kinds_of(matrix.varied(domain))
    found: dict[Kind, dict[float, DraftTemperatures]] = {}
    for kind, lines in varied.items():
        of_equal = {
            cell.temperature: [line.cells[place] for line in equal[kind]] for place, cell in enumerate(equal[kind][0].cells)
        }
        cells = [cell for line in lines for cell in line.cells]
        found[kind] = {}
        for temperature in sorted({cell.temperature for cell in cells}):
            tuned, one = (
                [cell for cell in cells if cell.temperature == temperature and cell.tuned == is_tuned]
                for is_tuned in (True, False)
            )
            found[kind][temperature] = DraftTemperatures(
                estimate(of_equal[temperature]).estimate,
                estimate(one).estimate,
                estimate(tuned).estimate,
                tuple(cell.draft_temperature or 0.0 for cell in tuned),
            )
    return found if any(found.values()) else {}


def learning_rates(matrix: Matrix) -> dict[str, tuple[float, float]]:
    """Return the learning rate and the mean alpha on the tuning prompts of each draft that was trained to choose a rate."""
    lines = [line for line in matrix.measured if line.arm == TUNING]
    alphas = {line.draft: [alpha_of(cell)[0] for cell in line.cells if cell.temperature <= 1] for line in lines}
    return {line.draft: (line.learning_rate or 0.0, float(np.mean(alphas[line.draft]))) for line in lines}


def changes(matrix: Matrix) -> dict[Kind, Intervals]:
    """Return alpha of each kind less that of the start at the same decode temperature, along the same texts."""
    kinds = kinds_of(matrix)
    (start,) = kinds.pop((START, 0.0, None))
    return _estimates(kinds, matrix, start=start)


def kinds_of(matrix: Matrix) -> dict[Kind, list[MeasuredDraft]]:
    """Return the drafts of each kind, one for each seed."""
    kinds: dict[Kind, list[MeasuredDraft]] = {}
    for line in matrix.measured:
        if line.arm != TUNING:
            kinds.setdefault((line.arm, line.on_policy, line.kd_temperature), []).append(line)
    return kinds


def _estimates(
    kinds: Mapping[Kind, Sequence[MeasuredDraft]], matrix: Matrix, *, start: MeasuredDraft | None = None
) -> dict[Kind, Intervals]:
    columns = decode_temperatures(matrix)
    against: list[list[MatrixCell]] = [[cell] for cell in start.cells] if start else [[]] * len(columns)
    found: dict[Kind, Intervals] = {}
    for kind, lines in kinds.items():
        of_seeds = zip(*(line.cells for line in lines), strict=True)  # at each decode temperature, the cells of all seeds
        found[kind] = list(map(estimate, of_seeds, against))
    rows = [found.get(("offline", 0.0, column)) for column in columns]
    matched = [row[place] if row else None for place, row in enumerate(rows)]
    return found | {("matched", 0.0, None): matched} if any(matched) else found


def decode_temperatures(matrix: Matrix) -> list[float]:
    return [cell.temperature for cell in matrix.measured[0].cells]


def regrets(found: Mapping[Kind, Intervals]) -> dict[Kind, tuple[float, float]]:
    """Return the mean and the largest loss of alpha against the best of each T, of kinds that were measured at every T."""
    best = [max(value.estimate for value in of_column if value) for of_column in zip(*found.values(), strict=True)]
    complete = {kind: [value.estimate for value in row if value] for kind, row in found.items() if all(row)}
    lost = {kind: [most - own for most, own in zip(best, row, strict=True)] for kind, row in complete.items()}
    return {kind: (sum(each) / len(each), max(each)) for kind, each in lost.items()}


def best_kd_temperatures(matrix: Matrix) -> dict[tuple[str, float], list[tuple[float, list[float]]]]:
    """Return the best KD T of each arm (with its lambda) at each decode temperature, and the KD T not clearly below it."""
    kinds = {kind: sorted(lines, key=lambda line: line.seed or 0) for kind, lines in kinds_of(matrix).items()}
    found: dict[tuple[str, float], list[tuple[float, list[float]]]] = {}
    for arm in dict.fromkeys(kind[:2] for kind in kinds if kind[0] in ARMS_OF_ONE_TEMPERATURE):
        of_arm = {at: lines for (name, share, at), lines in kinds.items() if (name, share) == arm and at is not None}
        found[arm] = []
        for place in range(len(decode_temperatures(matrix))):
            cells = {at: [line.cells[place] for line in lines] for at, lines in of_arm.items()}
            best = max(cells, key=lambda at: estimate(cells[at]).estimate)
            # Seeds are paired, so a KD T with another number of seeds cannot be compared.
            others = [at for at in cells if at != best and len(cells[at]) == len(cells[best])]
            found[arm].append((best, [at for at in others if not estimate(cells[at], cells[best]).excludes_zero]))
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """How alpha_text of the start gets from the first decode T to another one."""

    temperature: float
    alpha_text: Interval
    rescaling: Interval  # the same contexts, another softmax
    context_shift: Interval  # then the contexts of that T


def split(matrix: Matrix) -> list[Step]:
    """Return the split of alpha_text's change over decode T; empty for records without `rescaled`.

    It is a split of alpha_text and not of alpha, because the slots of rounds have no frozen contexts.
    """
    start = next(line for line in matrix.measured if line.arm == START)
    coldest = start.cells[0]
    if not coldest.rescaled:
        return []
    frozen = left_out_ratios(coldest.overlap, coldest.tokens)
    steps = []
    for cell in start.cells:
        same_contexts, own = left_out_ratios(cell.rescaled, coldest.tokens), left_out_ratios(cell.overlap, cell.tokens)
        values = (own, same_contexts - frozen, own - same_contexts)  # the last two sum to the whole change
        steps.append(Step(cell.temperature, *(over_prompts(each).interval for each in values)))
    return steps
