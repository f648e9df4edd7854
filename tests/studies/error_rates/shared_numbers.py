"""Cells on several prompt sets that are certified together: how often is the verdict wrong if they share random numbers?

The transform of a token that is nearly certain is the uniform number that randomises it. So cells with the same seed repeat
each other's transforms there. The old seeds depended on temperatures, rule, draft, draft lengths and concurrency only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.analysis.certificate import FALSE_ALARM, MARGIN, Sample, certificates_of, certify
from bench.records.decoding import derive_seed
from bench.records.runs import Cell, CellRecord, Evidence, TextEvidence
from tests.studies.error_rates.rate import Rate
from tests.support.record_builder import make_cell

PROMPT_SETS = 6
CELL_TOKENS = 768
CERTAIN = 0.8  # share of the tokens, as at low temperatures


def rows(num: int) -> Iterator[Rate]:
    case = f"{PROMPT_SETS} prompt sets, {CERTAIN:.0%} of the tokens nearly certain"
    for what, distance, verdict in (
        ("a sound decoder is LOSSY", 0.0, "LOSSY"),
        ("a decoder whose D is the margin is LOSSLESS", MARGIN, "LOSSLESS"),
    ):
        wrong = np.zeros(2)
        for number in range(num):
            cells = [make_cell(temperature=0.3, prompt_set=f"set {place}", seed=number) for place in range(PROMPT_SETS)]
            old, new = (
                [_record(cell, draws(cell), distance) for cell in cells] for draws in (_old_draws, lambda cell: cell.draws)
            )
            samples = [Sample(record.evidence, 0.3) for record in old if record.evidence is not None]
            before = certify(samples, false_alarm=FALSE_ALARM / (PROMPT_SETS + 1)).verdict
            wrong += (
                before == verdict,
                any(judged is not None and judged.verdict == verdict for judged in certificates_of(new)),
            )
        yield Rate(what, case, "1 %", *(wrong / num))


def _record(cell: Cell, draws: tuple[object, ...], distance: float) -> CellRecord:
    """Return a cell whose certain tokens have the random numbers of these draws, and whose D is `distance`."""
    drawn = np.random.default_rng(derive_seed(cell.seed, *draws)).random((2, CELL_TOKENS))
    own = np.random.default_rng(derive_seed(cell.seed, "own", cell.prompt_set)).random((2, CELL_TOKENS))
    uniform, moves = np.where(np.arange(CELL_TOKENS) < CERTAIN * CELL_TOKENS, drawn, own)
    pit = np.where((uniform > 0.5) & (moves < 2 * distance), uniform - 0.5, uniform)
    text = TextEvidence(0, 0, (0,) * CELL_TOKENS, tuple(pit.tolist()), (0.0,) * CELL_TOKENS, (1.0,) * CELL_TOKENS)
    return CellRecord(cell, "", (), True, (), Evidence("float32", 0.0, (text,)))


def _old_draws(cell: Cell) -> tuple[object, ...]:
    varied = (cell.temperature, cell.draft_temperature, cell.rule, cell.num_draft_tokens, cell.draft)
    return (*varied, cell.concurrency, cell.draft_length, *cell.schedule)
