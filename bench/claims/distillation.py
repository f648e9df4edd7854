"""Functions of the claims that KD matrices decide: differences of alpha between drafts.

For each seed, an effect is a sum of signed means over cells, where a cell is a kind of draft at a decode T. Its error covers
other seeds and other prompts. All drafts are measured along the same texts, so effects are paired by prompt; drafts of one seed
stay together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bench.analysis.quantities import Finding
from bench.claims.claim import Find, LineRecord, Records
from bench.claims.decoding import draft_temperatures, tuned_draft_temperature
from bench.records.kd_matrix import Matrix, MeasuredDraft, load, merged
from bench.statistics.effects import Effect, left_out_ratios, over_seeds_and_prompts
from bench.statistics.intervals import MIN_CLUSTERS, UNKNOWN, Array

Kind = tuple[str, float | None]  # arm, and KD T; None: a mixture, or the start
DraftCell = tuple[Kind, float]  # a kind of draft at a decode T
Means = tuple[tuple[int, Sequence[DraftCell]], ...]  # sign, and the cells over which the mean is taken
Cells = frozenset[DraftCell]  # the measured ones
Design = Callable[[Cells], Means]
At = Callable[[DraftCell], bool]
START: Kind = ("start", None)
# The measured texts of claims.toml state these limits of decode T and KD T.
HOT, COLD, HIGH_KD, COMPOSED_FROM = 0.8, 0.2, 0.6, 0.7


def effect(matrix: Matrix, design: Design, *, in_logs: bool = False) -> tuple[Effect, str] | None:
    """Return what a design finds in alpha, or in its log, and the amount of data; None if no seed has all cells."""
    by_seed: dict[int | None, dict[DraftCell, Array]] = {}
    for line in matrix.measured:
        by_seed.setdefault(line.seed, {}).update(_alphas(line))
    start = by_seed.pop(None, {})
    of_seeds = [start | alphas for alphas in by_seed.values()]
    means = design(frozenset(cell for alphas in of_seeds for cell in alphas))
    needed = {cell for _, cells in means for cell in cells}
    complete = [alphas for alphas in of_seeds if needed <= alphas.keys()]  # a seed of a matrix that was stopped may lack some
    if not complete or not all(cells for _, cells in means):
        return None
    values = np.stack([_signed_means(alphas, means, in_logs) for alphas in complete])
    found, num_prompts = over_seeds_and_prompts(values), values.shape[1] - 1
    if num_prompts < MIN_CLUSTERS:
        found = replace(found, parts=(UNKNOWN,))
    return found, f"{len(complete)} seeds, {num_prompts} prompts of {matrix.domains[0]}"


def _alphas(line: MeasuredDraft) -> dict[DraftCell, Array]:
    """Return (1 + P,) for each cell: alpha of all prompts, then without each. Online drafts count only with lambda 1."""
    if line.on_policy != (line.arm == "online"):
        return {}
    kind = line.arm, line.kd_temperature
    return {(kind, cell.temperature): left_out_ratios(cell.accepted, cell.tested) for cell in line.cells}


def _signed_means(alphas: Mapping[DraftCell, Array], means: Means, in_logs: bool) -> Array:
    values = {cell: np.log(alpha) for cell, alpha in alphas.items()} if in_logs else alphas
    return sum(sign * np.mean([values[cell] for cell in cells], axis=0) for sign, cells in means)


# Designs
def softens(measured: Cells) -> Means:
    """Return the change of alpha from decode T 0 to 1: that of drafts of high KD T less that of the start."""
    kinds = {kind for kind, _ in measured if kind[0] in ("offline", "online") and (kind[1] or 0.0) >= HIGH_KD}
    both = sorted(kind for kind in kinds if {(kind, 0.0), (kind, 1.0)} <= measured)
    of_drafts = (1, [(kind, 1.0) for kind in both]), (-1, [(kind, 0.0) for kind in both])
    return *of_drafts, (-1, [(START, 1.0)]), (1, [(START, 0.0)])


def matched(measured: Cells) -> Means:
    """Return offline drafts at each decode T: that of the same KD T less the others."""
    offline = sorted(cell for cell in measured if cell[0][0] == "offline")
    diagonal = [cell for cell in offline if cell[0][1] == cell[1]]
    columns = {decode_t for _, decode_t in diagonal}
    return (1, diagonal), (-1, [cell for cell in offline if cell[1] in columns and cell not in diagonal])


def _paired(measured: Cells, arm: str, partner: Callable[[DraftCell], DraftCell], *, at: At = lambda cell: True) -> Means:
    """Return the cells of an arm less their partners, where both were measured."""
    both = sorted(cell for cell in measured if cell[0][0] == arm and at(cell) and partner(cell) in measured)
    return (1, both), (-1, [partner(cell) for cell in both])


def online_advantage(measured: Cells, *, at: At = lambda cell: True) -> Means:
    """Return online drafts less offline drafts of the same KD T, at the same decode T."""
    return _paired(measured, "online", lambda cell: (("offline", cell[0][1]), cell[1]), at=at)


def online_when_hot(measured: Cells) -> Means:
    """Return the advantage of online drafts at high decode T less that at low decode T."""
    cold = online_advantage(measured, at=lambda cell: cell[1] <= COLD)
    return *online_advantage(measured, at=lambda cell: cell[1] >= HOT), *((-sign, cells) for sign, cells in cold)


def online_when_greedy(measured: Cells) -> Means:
    """Return the online draft of KD T 0 less the offline one, at decode T 0."""
    return online_advantage(measured, at=lambda cell: cell[0][1] == cell[1] == 0.0)


def composed(measured: Cells) -> Means:
    """Return the composed draft less the offline one of KD T 1, at high decode T."""
    return _paired(measured, "composed", lambda cell: (("offline", 1.0), cell[1]), at=lambda cell: cell[1] >= COMPOSED_FROM)


def mixture(measured: Cells) -> Means:
    """Return the mixture, one draft for all decode T, less the matched drafts."""
    return _paired(measured, "mixture", lambda cell: (("offline", cell[1]), cell[1]))


def matched_at(measured: Cells, *, decode_t: float) -> Means:
    """Return the draft that is matched to one decode T less the start."""
    return (1, sorted(measured & {(("offline", decode_t), decode_t)})), (-1, [(START, decode_t)])


# Findings
def in_matrix(records: Records, *, suites: Sequence[str], design: Design, in_logs: bool = False) -> Finding | None:
    """Return what a design finds in the newest matrix with enough seeds to test it, of the first suite that has one.

    If no suite has one: what it finds in the newest matrix of the first suite that has its cells.
    """
    untested: Finding | None = None
    for suite in suites:
        for matrix, used in _matrices(records.lines.get(suite, ())):
            if (found := effect(matrix, design, in_logs=in_logs)) is not None:
                files, commands = ({getattr(line, name): None for line in used} for name in ("file", "command"))
                finding = Finding(*found, tuple(files), tuple(commands))
                if finding.effect.testable:
                    return finding
                untested = untested or finding
    return untested


def _matrices(lines: Sequence[LineRecord]) -> Iterator[tuple[Matrix, list[LineRecord]]]:
    """Yield records that were made alike as one matrix on their first domain, with these records; the newest first."""
    for matrix in merged([line.path for line in lines]):
        drafts = {each.draft: each for each in matrix.measured if each.arm != START[0]}  # all records have the start
        used = [line for line in lines if any(drafts.get(each.draft) == each for each in load(line.path).measured)]
        yield matrix.on(matrix.domains[0]), used


def tuned_against_matched(records: Records, *, suites: Sequence[str]) -> Finding | None:
    """Return what another draft T gains at the hottest decode T less what distillation at that T gains there."""
    tuned = tuned_draft_temperature(records)
    if tuned is None:
        return None
    hottest = draft_temperatures(records)[0].record.cell.temperature
    distilled = in_matrix(records, suites=suites, design=functools.partial(matched_at, decode_t=hottest))
    if distilled is None or not isinstance(distilled.effect, Effect):
        return None
    files, commands = (*tuned.files, *distilled.files), (*tuned.commands, *distilled.commands)
    return Finding(tuned.effect.minus(distilled.effect), f"{tuned.detail}; {distilled.detail}", files, commands)


OF_MIXTURES, OF_PARADIGMS = ("kd_matrix", "composed"), ("kd_matrix", "paradigm")
OF_ALL = ("kd_matrix", "composed", "paradigm")
FIND: dict[str, Find] = {
    "kd-softens": functools.partial(in_matrix, suites=OF_ALL, design=softens),
    "matched-best": functools.partial(in_matrix, suites=OF_ALL, design=matched),
    "online-better": functools.partial(in_matrix, suites=OF_PARADIGMS, design=online_advantage),
    "online-best-hot": functools.partial(in_matrix, suites=OF_PARADIGMS, design=online_when_hot),
    "online-anomaly": functools.partial(in_matrix, suites=OF_PARADIGMS, design=online_when_greedy),
    "composed-gains": functools.partial(in_matrix, suites=OF_MIXTURES, design=composed, in_logs=True),
    "mixture-as-good": functools.partial(in_matrix, suites=OF_MIXTURES, design=mixture),
    "draft-temperature-as-good": functools.partial(tuned_against_matched, suites=OF_ALL),
}
