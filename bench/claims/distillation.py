"""The claims that the KD matrix decides: differences of alpha between drafts, with other seeds and other prompts in mind.

A seed's effect is the sum of signed means over cells, a cell being a kind of draft at a decode T. All drafts are measured along
the same texts, so that effects are paired by prompt; drafts of one seed stay together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis.quantities import Finding
from bench.claims.claim import Claim, LineRecord, Records, Rule
from bench.claims.decoding import draft_temperatures, tuned_draft_temperature
from bench.statistics.effects import Effect, left_out_ratios, over_seeds_and_prompts
from bench.statistics.intervals import MIN_CLUSTERS, UNKNOWN, Array

if TYPE_CHECKING:
    from bench.records.kd_matrix import Matrix, MeasuredDraft

Kind = tuple[str, float | None]  # arm; KD T, none of a mixture and of the start
Cell = tuple[Kind, float]  # at a decode T
Means = tuple[tuple[int, Sequence[Cell]], ...]  # sign, and cells whose mean it has
Design = Callable[[frozenset[Cell]], Means]  # of the cells that were measured
START: Kind = ("start", None)
HOT, COLD = 0.8, 0.2  # decode T from and up to which
HIGH_KD = 0.6
COMPOSED_FROM, COMPOSED_GAIN = 0.7, math.log(1.12)
POINT = 0.01  # of alpha: worse by less is as good


def effect(matrix: Matrix, design: Design, *, in_logs: bool = False) -> tuple[Effect, str] | None:
    """What a design finds in alpha, or in its log, and in how much; None where no seed has all cells.

    Seeds that lack one of the cells are left out: a matrix that was stopped has them.
    """
    by_seed: dict[int | None, dict[Cell, Array]] = {}
    for line in matrix.measured:
        by_seed.setdefault(line.seed, {}).update(_alphas(line))
    start = by_seed.pop(None, {})
    of_seeds = [start | alphas for alphas in by_seed.values()]
    means = design(frozenset(cell for alphas in of_seeds for cell in alphas))
    needed = {cell for _, cells in means for cell in cells}
    complete = [alphas for alphas in of_seeds if needed <= alphas.keys()]
    if not complete or not all(cells for _, cells in means):
        return None
    values = np.stack([_signed_means(alphas, means, in_logs) for alphas in complete])
    found = over_seeds_and_prompts(values)
    if values.shape[1] - 1 < MIN_CLUSTERS:
        found = replace(found, parts=(UNKNOWN,))
    return found, f"{len(complete)} seeds, {values.shape[1] - 1} prompts of {matrix.domains[0]}"


def _alphas(line: MeasuredDraft) -> dict[Cell, Array]:
    """(1 + P,) of each cell: alpha of all prompts, then without each; none of an online draft with another lambda than 1."""
    found: dict[Cell, Array] = {}
    if line.on_policy == (line.arm == "online"):
        for cell in line.cells:
            found[(line.arm, line.kd_temperature), cell.temperature] = left_out_ratios(cell.accepted, cell.tested)
    return found


def _signed_means(alphas: Mapping[Cell, Array], means: Means, in_logs: bool) -> Array:
    values = {cell: np.log(alpha) for cell, alpha in alphas.items()} if in_logs else alphas
    signed = [sign * np.mean([values[cell] for cell in cells], axis=0) for sign, cells in means]
    found: Array = np.sum(signed, axis=0)
    return found


# Designs
def _of_arm(measured: Iterable[Cell], arm: str, *, at: Callable[[float], bool] = lambda decode_t: True) -> list[Cell]:
    return sorted(cell for cell in measured if cell[0][0] == arm and at(cell[1]))


def softens(measured: frozenset[Cell]) -> Means:
    """Change of alpha from decode T 0 to 1, of drafts of high KD T less of the start."""
    kinds = {kind for kind, _ in measured if kind[0] in ("offline", "online") and (kind[1] or 0.0) >= HIGH_KD}
    both = sorted(kind for kind in kinds if {(kind, 0.0), (kind, 1.0)} <= measured)
    return (
        (1, [(kind, 1.0) for kind in both]),
        (-1, [(kind, 0.0) for kind in both]),
        (-1, [(START, 1.0)]),
        (1, [(START, 0.0)]),
    )


def matched(measured: frozenset[Cell]) -> Means:
    """Offline drafts at a decode T: that of the same KD T less the others."""
    offline = _of_arm(measured, "offline")
    diagonal = [cell for cell in offline if cell[0][1] == cell[1]]
    columns = {decode_t for _, decode_t in diagonal}
    return (1, diagonal), (-1, [cell for cell in offline if cell[1] in columns and cell not in diagonal])


def online_advantage(measured: frozenset[Cell], *, at: Callable[[float], bool] = lambda decode_t: True) -> Means:
    """Online drafts less offline drafts of the same KD T, at the same decode T."""
    online = _of_arm(measured, "online", at=at)
    both = [(kind, decode_t) for kind, decode_t in online if (("offline", kind[1]), decode_t) in measured]
    return (1, both), (-1, [(("offline", kind[1]), decode_t) for kind, decode_t in both])


def online_when_hot(measured: frozenset[Cell]) -> Means:
    """The advantage of online drafts when hot, less when cold."""
    hot = online_advantage(measured, at=lambda decode_t: decode_t >= HOT)
    cold = online_advantage(measured, at=lambda decode_t: decode_t <= COLD)
    return (*hot, *((-sign, cells) for sign, cells in cold))


def online_when_greedy(measured: frozenset[Cell]) -> Means:
    """The online draft of KD T 0 less the offline one, at decode T 0."""
    return tuple(
        (sign, [cell for cell in cells if cell[0][1] == 0.0])
        for sign, cells in online_advantage(measured, at=lambda decode_t: decode_t == 0.0)
    )


def composed(measured: frozenset[Cell]) -> Means:
    """The composed draft less the offline one of KD T 1, at high decode T."""
    both = [
        decode_t
        for _, decode_t in _of_arm(measured, "composed", at=lambda decode_t: decode_t >= COMPOSED_FROM)
        if (("offline", 1.0), decode_t) in measured
    ]
    return (
        (1, [(("composed", None), decode_t) for decode_t in both]),
        (-1, [(("offline", 1.0), decode_t) for decode_t in both]),
    )


def mixture(measured: frozenset[Cell]) -> Means:
    """The mixture, one draft for all decode T, less the matched drafts."""
    diagonal = [
        cell
        for cell in _of_arm(measured, "offline")
        if cell[0][1] == cell[1] and (("mixture", None), cell[1]) in measured
    ]
    return (1, [(("mixture", None), decode_t) for _, decode_t in diagonal]), (-1, diagonal)


def matched_at(measured: frozenset[Cell], *, decode_t: float) -> Means:
    """The draft matched to one decode T less the start."""
    return (1, [cell for cell in [(("offline", decode_t), decode_t)] if cell in measured]), (-1, [(START, decode_t)])


# Claims
def in_matrix(records: Records, *, suites: Sequence[str], design: Design, in_logs: bool = False) -> Finding | None:
    """What a design finds in the newest matrix with enough seeds to test it, of the first of these suites that has one.

    Where none has, what it finds in the newest one of the first suite that has its cells.
    """
    untested: Finding | None = None
    for suite in suites:
        for matrix, used in _matrices(records.lines.get(suite, ())):
            if (found := effect(matrix, design, in_logs=in_logs)) is not None:
                files, commands = (
                    tuple(dict.fromkeys(values)) for values in ((u.file for u in used), (u.command for u in used))
                )
                finding = Finding(found[0], found[1], files, commands)
                if finding.effect.testable:
                    return finding
                untested = untested or finding
    return untested


def _matrices(lines: Sequence[LineRecord]) -> Iterator[tuple[Matrix, list[LineRecord]]]:
    """Records that were made alike as one, on their first domain, and which they are; the newest first."""
    if not lines:
        return
    from bench.records.kd_matrix import load, merged

    for matrix in merged([line.path for line in lines]):
        drafts = {each.draft: each for each in matrix.measured if each.arm != START[0]}  # which is alike in all
        used = [line for line in lines if any(drafts.get(each.draft) == each for each in load(line.path).measured)]
        yield matrix.on(matrix.domains[0]), used


def tuned_against_matched(records: Records, *, suites: Sequence[str]) -> Finding | None:
    """What another draft T gains at the hottest decode T less what distillation at that T gains there."""
    tuned, rows = tuned_draft_temperature(records), draft_temperatures(records)
    if tuned is None:
        return None
    decode_t = rows[0].record.cell.temperature
    distilled = in_matrix(records, suites=suites, design=functools.partial(matched_at, decode_t=decode_t))
    if distilled is None:
        return None
    return Finding(
        tuned.effect.minus(distilled.effect),
        f"{tuned.detail}; {distilled.detail}",
        (*tuned.files, *distilled.files),
        (*tuned.commands, *distilled.commands),
    )


MATRIX, COMMAND = "kd_matrix", "specheat kd-matrix --prompts instructions:train --out drafts/matrix"
GAINS, LOSES = Rule("points", ">", 0.0), Rule("points", "<", 0.0)
NO_WORSE = Rule("points", ">", -POINT)


def claims() -> tuple[Claim, ...]:
    """In the order of the ledger."""
    of_all = functools.partial(in_matrix, suites=(MATRIX, "composed", "paradigm"))
    of_paradigms = functools.partial(in_matrix, suites=(MATRIX, "paradigm"))
    of_mixtures = functools.partial(in_matrix, suites=(MATRIX, "composed"))
    return (
        Claim(
            "kd-softens",
            "Distillation at high temperature softens the fall of acceptance.",
            "paper",
            f"change of alpha from decode T 0 to 1 of offline and online drafts of KD T >= {HIGH_KD:g} - of the start",
            GAINS,
            COMMAND,
            functools.partial(of_all, design=softens),
        ),
        Claim(
            "matched-best",
            "Distilling at the decode T is best.",
            "paper",
            "alpha of the offline draft whose KD T is the decode T - mean of other KD T there, mean over decode T",
            GAINS,
            COMMAND,
            functools.partial(of_all, design=matched),
        ),
        Claim(
            "online-better",
            "Online distillation beats offline.",
            "paper",
            "alpha of online (lambda 1) - offline, mean over KD T and decode T",
            GAINS,
            COMMAND,
            functools.partial(of_paradigms, design=online_advantage),
        ),
        Claim(
            "online-best-hot",
            "The advantage of online distillation is largest at high temperature.",
            "paper",
            f"online - offline alpha at decode T >= {HOT:g}, - the same at decode T <= {COLD:g}",
            GAINS,
            COMMAND,
            functools.partial(of_paradigms, design=online_when_hot),
        ),
        Claim(
            "online-anomaly",
            "At decode T 0 online distillation loses to offline.",
            "paper",
            "alpha of online (lambda 1) - offline at KD T 0 and decode T 0",
            LOSES,
            COMMAND,
            functools.partial(of_paradigms, design=online_when_greedy),
        ),
        Claim(
            "composed-gains",
            "Data composed of several temperatures gains at least 12 % at high temperature.",
            "paper",
            f"alpha of composed / of offline at KD T 1, geometric mean over decode T >= {COMPOSED_FROM:g}",
            Rule("ratio", ">", COMPOSED_GAIN),
            COMMAND,
            functools.partial(of_mixtures, design=composed, in_logs=True),
        ),
        Claim(
            "mixture-as-good",
            "One draft distilled on a mixture of temperatures is as good as one for each, to a point of alpha.",
            "contested",
            "alpha of the mixture - of the matched offline draft, mean over decode T",
            NO_WORSE,
            COMMAND,
            functools.partial(of_mixtures, design=mixture),
        ),
        Claim(
            "draft-temperature-as-good",
            "Another draft T, which is free, gains as much as distillation at the decode T, to a point of alpha.",
            "contested",
            "gain of alpha by the best other draft T, - of the matched offline draft over the start, at the hottest T up to 1",
            NO_WORSE,
            f"pytest --benchmark-only suites/test_draft_temperature.py, and {COMMAND}",
            functools.partial(tuned_against_matched, suites=(MATRIX, "composed", "paradigm")),
        ),
    )
