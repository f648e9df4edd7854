"""Functions of the claims that KD matrices decide: contrasts of drafts.

For each seed, a contrast is a sum of signed means over cells, where a cell is a kind of draft at a decode T and a draft T. Its
error covers other seeds and other prompts. All drafts are measured along the same texts, so contrasts are paired by prompt;
drafts of one seed stay together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from bench.analysis.kd_matrix import alpha_of, efficiency_at
from bench.analysis.quantities import LOG_GAMMA, Finding, weighted
from bench.analysis.rows import Row
from bench.claims.claim import Find, LineRecord, Records
from bench.claims.decoding import in_one_run
from bench.prompts.sets import parted
from bench.records.kd_matrix import START, TUNING, Matrix, MatrixCell, MeasuredDraft, load, merged
from bench.statistics.effects import Effect, LargestEffect, over_seeds_and_prompts
from bench.statistics.intervals import MIN_CLUSTERS, UNKNOWN, Array

LEAST_PROMPTS = 2500  # distinct ones that the text of every draft answers; drafts of fewer decide nothing
KD_TEMPERATURES = (0.0, 0.4, 0.7, 1.0)  # of means over KD T; others were measured with fewer arms and seeds
UNALIGNED, ALIGNED = "reference", "base"  # recipe of the start: human answers, or the target's distributions
# The measured texts of claims.toml state these limits.
HOT, COLD, HIGH_KD, COMPOSED_FROM = 0.8, 0.2, 0.7, 0.7


class Key(NamedTuple):
    """A kind of draft, and where it was measured."""

    arm: str  # with its lambda, if that is neither 0 nor 1: online@0.5
    kd_temperature: float | None  # None: a mixture, or the start
    decode_temperature: float
    draft_temperature: str = "equal"  # to the decode T; or one, or tuned


Means = Sequence[tuple[int, Sequence[Key]]]  # sign, and the cells over which the mean is taken
Design = Callable[[frozenset[Key]], Means]  # of the measured cells
Number = Callable[[MatrixCell], Array]


def log_efficiency(num_draft_tokens: int) -> Number:
    """Return the function that takes the log of block efficiency. At one k its contrasts are those of predicted log gamma."""
    efficiency = efficiency_at(num_draft_tokens)
    return lambda cell: np.log(efficiency(cell))


def arm_name(line: MeasuredDraft) -> str:
    return f"{line.arm}@{line.on_policy:g}" if line.on_policy not in (0.0, 1.0) else line.arm


def values_by_seed(matrix: Matrix, domain: str, number: Number) -> list[dict[Key, Array]]:
    """Return a number of each cell on one domain, (1 + P,), for each seed; the start is in every seed."""
    by_seed: dict[int | None, dict[Key, Array]] = {}
    for line in matrix.measured:
        if line.arm == TUNING:
            continue
        for cell in line.cells:
            if cell.domain == domain:
                draft_t = "equal" if cell.draft_temperature is None else "tuned" if cell.tuned else "one"
                key = Key(arm_name(line), line.kd_temperature, cell.temperature, draft_t)
                by_seed.setdefault(line.seed, {})[key] = number(cell)
    start = by_seed.pop(None, {})
    return [start | values for values in by_seed.values()]


def contrasts(of_seeds: Sequence[Mapping[Key, Array]], designs: Sequence[Means]) -> tuple[list[Effect], int, int] | None:
    """Return the effect of each design, and how many seeds and prompts it rests on; None if no seed has all cells."""
    needed = {key for means in designs for _, keys in means for key in keys}
    complete = [values for values in of_seeds if needed <= values.keys()]  # a seed of a stopped matrix may lack some
    if not complete or not needed or not all(keys for means in designs for _, keys in means):
        return None
    effects = []
    for means in designs:
        sums = [sum(sign * np.mean([values[key] for key in keys], axis=0) for sign, keys in means) for values in complete]
        effects.append(over_seeds_and_prompts(np.stack(sums)))
    num_prompts = len(next(iter(complete[0].values()))) - 1
    if num_prompts < MIN_CLUSTERS:
        effects = [replace(effect, parts=(UNKNOWN,)) for effect in effects]
    return effects, len(complete), num_prompts


# Designs
def less(arm: str, partner: Callable[[Key], Key], at: Callable[[Key], bool] = lambda key: True) -> Design:
    """Return the design of an arm less its partners, where both were measured: over KD_TEMPERATURES and decode T up to 1."""

    def design(measured: frozenset[Key]) -> Means:
        own = sorted(key for key in measured if key.arm == arm and key.draft_temperature == "equal" and at(key))
        own = [key for key in own if key.decode_temperature <= 1 and key.kd_temperature in (None, *KD_TEMPERATURES)]
        both = [key for key in own if partner(key) in measured]
        return (1, both), (-1, [partner(key) for key in both])

    return design


def of_arm(arm: str) -> Callable[[Key], Key]:
    """Return the function that gives the cell of another arm at the same KD T and decode T."""
    return lambda key: key._replace(arm=arm)


def of_start(key: Key) -> Key:
    return key._replace(arm=START, kd_temperature=None)


def matched(key: Key) -> Key:
    return key._replace(arm="offline", kd_temperature=key.decode_temperature, draft_temperature="equal")


def softens(arm: str) -> Design:
    """Return the change of alpha from decode T 0 to 1: that of an arm's drafts of high KD T less that of the start."""

    def design(measured: frozenset[Key]) -> Means:
        high = [at for at in KD_TEMPERATURES if at >= HIGH_KD and Key(arm, at, 1.0) in measured]
        hot, cold = ([Key(arm, kd_t, decode_t) for kd_t in high] for decode_t in (1.0, 0.0))
        return (1, hot), (-1, cold), (-1, [Key(START, None, 1.0)]), (1, [Key(START, None, 0.0)])

    return design


def when_hot(arm: str, other: str) -> Design:
    """Return the advantage of an arm over another at high decode T less that at low decode T."""

    def design(measured: frozenset[Key]) -> Means:
        hot = less(arm, of_arm(other), lambda key: key.decode_temperature >= HOT)(measured)
        cold = less(arm, of_arm(other), lambda key: key.decode_temperature <= COLD)(measured)
        return *hot, *((-sign, keys) for sign, keys in cold)

    return design


def tuned_instead(measured: frozenset[Key]) -> Means:
    """Return one offline draft, of KD T 1 with the tuned draft T, less the matched drafts with draft T = decode T."""
    tuned = sorted(key for key in measured if key[:2] == ("offline", 1.0) and key.draft_temperature == "tuned")
    both = [key for key in tuned if key.decode_temperature <= 1 and matched(key) in measured]
    return (1, both), (-1, [matched(key) for key in both])


def rows_less_diagonal(measured: frozenset[Key]) -> Sequence[Means]:
    """Return for each KD T of offline drafts its row less the matched drafts, mean over the decode T that are KD T."""
    columns = [at for at in KD_TEMPERATURES if Key("offline", at, at) in measured]
    diagonal = [Key("offline", at, at) for at in columns]
    return [((1, [Key("offline", kd_t, at) for at in columns]), (-1, diagonal)) for kd_t in columns]


# Findings
def in_matrix(
    records: Records, *, design: Design, start: str = UNALIGNED, number: Number = alpha_of, place: int = 0
) -> Finding | None:
    """Return what a design finds in the newest matrix of this start that has its cells, on its domain of this place."""
    return _first(records, start, number, place, lambda measured: [design(measured)], lambda effects: effects[0])


def best_row(records: Records, *, start: str = UNALIGNED) -> Finding | None:
    """Return the largest excess of a row of offline drafts over the matched drafts."""
    return _first(records, start, alpha_of, 0, rows_less_diagonal, lambda effects: LargestEffect(tuple(effects)))


def _first(
    records: Records,
    start: str,
    number: Number,
    place: int,
    designs: Callable[[frozenset[Key]], Sequence[Means]],
    joined: Callable[[list[Effect]], Effect | LargestEffect],
) -> Finding | None:
    for matrix, used in _matrices(records.lines.get("kd_matrix", ()), start):
        if place >= len(matrix.domains):
            continue
        domain = matrix.domains[place]
        of_seeds = values_by_seed(matrix, domain, number)
        found = contrasts(of_seeds, designs(frozenset(key for values in of_seeds for key in values)))
        if found is not None:
            effects, num_seeds, num_prompts = found
            files, commands = ({getattr(line, name): None for line in used} for name in ("file", "command"))
            detail = f"{num_seeds} seeds, {num_prompts} prompts of {domain}"
            return Finding(joined(effects), detail, tuple(files), tuple(commands))
    return None


def _matrices(lines: Sequence[LineRecord], start: str) -> Iterator[tuple[Matrix, list[LineRecord]]]:
    """Yield the matrices of this start whose drafts can decide claims, each joined from its records; the newest first."""
    for matrix in merged([line.path for line in lines]):
        drafts = {each.draft: each for each in matrix.measured if each.arm != START}  # all records have the start
        enough = all((each.distinct_prompts or 0) >= LEAST_PROMPTS for each in drafts.values() if each.arm != TUNING)
        # A draft that was trained on the text of other prompts than it is measured on answers another question.
        sources = {parted(source)[0] for source in matrix.plan["job"].get("prompts", ())}
        if matrix.start_recipe == start and enough and parted(matrix.domains[0])[0] in sources:
            yield matrix, [line for line in lines if any(drafts.get(each.draft) == each for each in load(line.path).measured)]


def composed_in_time(rows: Sequence[Row]) -> Finding | None:
    """Return measured log gamma of composed drafts less that of offline drafts of KD T 1, mean over high decode T."""
    hot = [row for row in rows if COMPOSED_FROM <= row.record.cell.temperature <= 1]
    composed, offline = (
        [row for row in hot if row.record.cell.draft.startswith(name)] for name in ("composed-seed", "offline-t1-seed")
    )
    temperatures = [sorted(row.record.cell.temperature for row in each) for each in (composed, offline)]
    if not composed or temperatures[0] != temperatures[1]:
        return None
    cells = [(1 / len(composed), row) for row in composed] + [(-1 / len(offline), row) for row in offline]
    return weighted(LOG_GAMMA, cells, f"{len(composed)} drafts and temperatures of each")


def _on(design: Design, *, start: str = UNALIGNED, number: Number = alpha_of, place: int = 0) -> Find:
    return functools.partial(in_matrix, design=design, start=start, number=number, place=place)


def _greedy_at(kd_temperature: float) -> Design:
    return less(
        "online",
        of_arm("offline"),
        lambda key: (key.kd_temperature, key.decode_temperature) == (kd_temperature, 0.0),
    )


OFFLINE_IN_SECONDS = "offline, in the seconds of online"
ANOMALIES = {f"online-anomaly-{at:g}": _on(_greedy_at(at)) for at in KD_TEMPERATURES}
HOT_COMPOSED = less(
    "composed", lambda key: key._replace(arm="offline", kd_temperature=1.0), lambda key: key.decode_temperature >= COMPOSED_FROM
)
ABOVE_1 = (1, [Key("offline", 2.0, at) for at in (1.5, 2.0)]), (-1, [Key("offline", 1.0, at) for at in (1.5, 2.0)])
FIND: dict[str, Find] = {
    "kd-helps-offline": _on(less("offline", of_start)),
    "kd-helps-online": _on(less("online", of_start)),
    "kd-softens-offline": _on(softens("offline")),
    "kd-softens-online": _on(softens("online")),
    "matched-best": best_row,
    "online-better": _on(less("online", of_arm("offline"))),
    "online-best-hot": _on(when_hot("online", "offline")),
    **ANOMALIES,
    "composed-gains-k3": _on(HOT_COMPOSED, number=log_efficiency(3)),
    "composed-gains-k5": _on(HOT_COMPOSED, number=log_efficiency(5)),
    "composed-gains-in-time": in_one_run("kd_grid", composed_in_time, "draft", "temperature"),
    "kd-helps-soft": _on(less("soft", of_start)),
    "kd-helps-mixture": _on(less("mixture", of_start)),
    "soft-labels-better": _on(less("soft", of_arm("offline"))),
    "own-text-better": _on(less("online", of_arm("soft"))),
    "half-own-text-better": _on(less("online@0.5", of_arm("soft"))),
    "loss-t-of-data-soft": _on(less("soft:data", of_arm("soft"))),
    "loss-t-of-data-online": _on(less("online:data", of_arm("online"))),
    "online-better-in-seconds": _on(less("online", of_arm(OFFLINE_IN_SECONDS))),
    "mixture-as-good": _on(less("mixture", matched)),
    "draft-t-as-good": _on(tuned_instead),
    "kd-above-1": _on(lambda measured: ABOVE_1),
    "kd-helps-out-of-domain": _on(less("offline", of_start), place=1),
    "aligned-kd-helps-offline": _on(less("offline", of_start), start=ALIGNED),
    "aligned-kd-helps-soft": _on(less("soft", of_start), start=ALIGNED),
    "aligned-kd-helps-online": _on(less("online", of_start), start=ALIGNED),
    "aligned-online-better": _on(less("online", of_arm("offline")), start=ALIGNED),
    "aligned-soft-labels-better": _on(less("soft", of_arm("offline")), start=ALIGNED),
    "aligned-matched-best": functools.partial(best_row, start=ALIGNED),
}
