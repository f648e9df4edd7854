"""The verdict on a cell: whether its record can be believed, and what its gamma shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.analysis.certificate import LOSSY_RULES, Certificate, certificates_of
from bench.analysis.conditions import throttling_faults
from bench.analysis.metrics import JOINT_RULES, aa_floor, acceptance_agreement, gamma, native_ratio, replays_of
from bench.records.decoding import Replay, num_tested
from bench.records.runs import SHARED_BY, CellRecord, RunRecord
from bench.statistics import intervals
from bench.statistics.intervals import Interval

Label = Literal["FASTER", "SLOWER", "INDISTINGUISHABLE", "INCONCLUSIVE", "INVALID"]
AGREEMENT_P = 0.001  # over all cells of a run; below it, counted and expected acceptance disagree
UNCERTIFIED = "uncertified"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a record can be believed, what its gamma shows, and why."""

    valid: bool
    label: Label
    reasons: tuple[str, ...]
    certificate: str  # LOSSLESS, LOSSY, INCONCLUSIVE, LOSSY-DECLARED or uncertified


def verdict_of(record: CellRecord, run: RunRecord) -> Verdict:
    """Return the verdict on one cell of a run, or on one that is not stored in the run yet."""
    cells = run.cells if any(cell is record for cell in run.cells) else (*run.cells, record)
    return next(verdict for cell, verdict in zip(cells, verdicts_of(run, cells), strict=True) if cell is record)


def verdicts_of(run: RunRecord, cells: Sequence[CellRecord]) -> Iterator[Verdict]:
    """Yield the verdict on each cell of a run.

    INVALID records have no gamma in any table, only their reasons. The A/A floor, the baseline and the evidence of a
    certificate are shared by the cells of a run, so they are computed here once.
    """
    floor, native = aa_floor(run), native_ratio(run)
    for record, certificate in zip(cells, certificates_of(cells), strict=True):
        yield _verdict(record, run, certificate, floor=floor, native=native)


def _verdict(
    record: CellRecord, run: RunRecord, judged: Certificate | None, *, floor: float | None, native: Interval | None
) -> Verdict:
    certificate: str = UNCERTIFIED if judged is None else judged.verdict
    if record.cell.rule in LOSSY_RULES:
        certificate = "LOSSY-DECLARED"  # so that it is no fault
    faults = list(_faults(record, run, floor=floor, native=native))
    if judged is not None and certificate == "LOSSY":
        faults.append(f"certificate: LOSSY, {'; '.join(judged.words)}")
    ratio = gamma(record)
    if ratio is None and record.error is None:
        faults.append("no tokens were decoded in one of the arms")
    if faults or ratio is None:
        return Verdict(False, "INVALID", tuple(faults), certificate)
    if not ratio.adequate:
        reason = f"{ratio.num_clusters} prompts, at least {intervals.MIN_CLUSTERS} are needed"
        return Verdict(True, "INCONCLUSIVE", (reason,), certificate)
    if floor is None:
        return Verdict(True, "INCONCLUSIVE", ("no A/A floor was measured",), certificate)
    return Verdict(True, intervals.gamma_verdict(ratio, floor), (), certificate)


def _faults(record: CellRecord, run: RunRecord, *, floor: float | None, native: Interval | None) -> Iterator[str]:
    """Yield the reasons for which a record is INVALID."""
    if record.error is not None:
        yield f"error: {record.error}"
        return
    if sharing := run.environment.get(SHARED_BY):
        yield f"timed on a machine that {sharing} runs shared"
    if not record.warmup_settled:
        yield "warm-up never settled"
    yield from throttling_faults(record)
    if native is not None and floor is not None and math.log(native.estimate) > floor:
        yield f"baseline {native.estimate - 1:.1%} slower than the engine's own decode, A/A floor {floor:.1%}"
    replay_faults = tuple(_replay_faults(record, run))
    yield from replay_faults
    agreement = None if replay_faults else acceptance_agreement(record)  # it needs balanced replays
    if agreement is not None and agreement.p < AGREEMENT_P / max(1, len(run.cells)):  # Bonferroni's correction
        yield f"counted and expected acceptance disagree: z = {agreement.z:.1f}, p = {agreement.p:.1g}"


def _replay_faults(record: CellRecord, run: RunRecord) -> Iterator[str]:
    """Yield the faults of replays. Unseeded engines, whose settings have `seeded: false`, may replay another text."""
    replays = tuple(replays_of(record))
    differing = sum(replay.token_ids != pair.sd.token_ids for pair, replay in replays)
    if differing and run.backend_settings.get("seeded", True):
        yield f"{differing} of {len(replays)} replays gave other token ids than the timed run"
    if unbalanced := sum(not _balanced(replay, record.cell.rule) for _, replay in replays):
        yield f"{unbalanced} of {len(replays)} replays do not have one acceptance probability per tested position"


def _balanced(replay: Replay, rule: str) -> bool:
    if rule in JOINT_RULES:
        return replay.joint_length is not None and len(replay.joint_length) == len(replay.rounds)
    return [num_tested(round_) for round_ in replay.rounds] == [len(probs) for probs in replay.acceptance_probs]
