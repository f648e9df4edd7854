"""Cells that are certified together: how often is a faulty one called LOSSLESS, and how often is a sound one not?

Six temperatures of 768 tokens each, or three draft lengths at six temperatures each. The old rule judged all cells of one
backend, rule and pair together, whatever else they differed in, and no cell had to pass a bound alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from bench.analysis.certificate import FALSE_ALARM, Sample, certificates_of, certify
from bench.records.runs import CellRecord
from tests.studies.error_rates.rate import Rate
from tests.studies.simulated_texts import Array, make_target, simulate
from tests.support.record_builder import make_cell

TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
FAULTY = 3  # place of the faulty temperature
CELL_TOKENS = 768  # 12 prompts of 64
Verdicts = list[str]


def rows(num: int) -> Iterator[Rate]:
    for distance in (0.1, 0.15):
        rng = np.random.default_rng(round(100 * distance))
        before, after = _shares(rng, num, (2,), (FAULTY,), distance)
        yield Rate(
            "a faulty cell is LOSSLESS", f"D = {distance:g} at 1 of 6 temperatures", "1 %", before[FAULTY], after[FAULTY]
        )
    rng = np.random.default_rng(7)
    faulty = range(6, 12)
    before, after = _shares(rng, num // 3, (1, 2, 3), faulty, 0.1)
    case = "D = 0.1 at 1 of 3 draft lengths, 6 temperatures each"
    yield Rate("a faulty cell is LOSSLESS", case, "1 %", before[list(faulty)].mean(), after[list(faulty)].mean())
    for lengths in ((2,), (1, 2, 3)):
        rng = np.random.default_rng(8)
        before, after = _shares(rng, num // len(lengths), lengths, (), 0.0)
        case = f"6 temperatures, {len(lengths)} draft length{'s' if len(lengths) > 1 else ''}"
        yield Rate("a sound cell is not LOSSLESS", case, "", 1 - before.mean(), 1 - after.mean())


def _shares(
    rng: np.random.Generator, num: int, lengths: Sequence[int], faulty: Sequence[int], distance: float
) -> tuple[Array, Array]:
    """Return for each cell how often it is LOSSLESS, by the old rule and by the new one."""
    found = np.zeros((2, len(lengths) * len(TEMPERATURES)))
    for _ in range(num):
        records = []
        for place, (length, temperature) in enumerate((k, t) for k in lengths for t in TEMPERATURES):
            records.append(_record(rng, length, temperature, distance if place in faulty else 0.0))
        new = [judged.verdict for judged in certificates_of(records) if judged is not None]
        found += [[verdict == "LOSSLESS" for verdict in verdicts] for verdicts in (_old(records), new)]
    return found[0] / num, found[1] / num


def _record(rng: np.random.Generator, length: int, temperature: float, distance: float) -> CellRecord:
    """Return a cell whose transforms have the true distance D `distance`; its surprisal is sound."""
    evidence = simulate(_sound(temperature), CELL_TOKENS, rng).evidence
    (text,) = evidence.texts
    pit = np.array(text.pit)
    # Mass `distance` moves from the upper half of the transforms to the lower one, so that D is `distance`.
    moved = (pit > 0.5) & (rng.random(len(pit)) < 2 * distance)
    evidence = replace(evidence, texts=(replace(text, pit=tuple(np.where(moved, pit - 0.5, pit).tolist())),))
    return CellRecord(make_cell(temperature=temperature, num_draft_tokens=length), "", (), True, (), evidence)


_sound = cache(make_target)


def _old(records: Sequence[CellRecord]) -> Verdicts:
    """Judge all cells together that are not LOSSY alone."""
    samples = [Sample(record.evidence, record.cell.temperature) for record in records if record.evidence is not None]
    level = FALSE_ALARM / (len(samples) + 1)
    lossy = [certify([sample], false_alarm=level).verdict == "LOSSY" for sample in samples]
    kept = [sample for sample, one in zip(samples, lossy, strict=True) if not one]
    together = certify(kept, false_alarm=level).verdict
    return ["LOSSY" if one else together for one in lossy]
