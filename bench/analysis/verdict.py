"""The verdict on a cell: whether its record can be believed, and what its gamma shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.analysis.certificate import LOSSY_RULES, Certificate, certificates_of
from bench.analysis.conditions import throttling_faults
from bench.analysis.metrics import JOINT_RULES, aa_floor, acceptance_agreement, gamma, native_ratio, replays_of
from bench.records.decoding import Replay, num_tested
from bench.records.runs import SHARED_BY, CellRecord, RunRecord
from bench.statistics.effects import is_same
from bench.statistics.intervals import MIN_CLUSTERS, Interval

Label = Literal["SAME", "FASTER", "SLOWER", "INCONCLUSIVE", "INVALID"]
TOLERANCE = 0.03  # largest A/A floor, and largest lag of the baseline, with which a gamma is judged
AGREEMENT_P = 0.001  # over all cells of a run; below it, counted and expected acceptance disagree
UNCERTIFIED = "uncertified"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a record can be believed, what its gamma shows, and why."""

    valid: bool
    label: Label
    reasons: tuple[str, ...]
    certificate: str  # LOSSLESS, LOSSY, INCONCLUSIVE, LOSSY-DECLARED or uncertified
    certified_cells: int = 0  # on which the certificate rests; 0: uncertified
    certified_tokens: int = 0  # of these cells


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
        verdict = _verdict(record, run, certificate, floor=floor, native=native)
        if record.scoring_error:
            verdict = replace(verdict, reasons=(*verdict.reasons, f"not certified: {record.scoring_error}"))
        if certificate is not None:
            verdict = replace(verdict, certified_cells=certificate.num_cells, certified_tokens=certificate.num_tokens)
        yield verdict


def _verdict(
    record: CellRecord, run: RunRecord, judged: Certificate | None, *, floor: float | None, native: Interval | None
) -> Verdict:
    certificate: str = UNCERTIFIED if judged is None else judged.verdict
    if record.cell.rule in LOSSY_RULES:
        certificate = "LOSSY-DECLARED"  # so that it is no fault
    faults = list(_faults(record, run, native))
    if judged is not None and certificate == "LOSSY":
        faults.append(f"certificate: LOSSY, {'; '.join(judged.words)}")
    ratio = gamma(record)
    if ratio is None and record.error is None:
        faults.append("no tokens were decoded in one of the arms")
    if faults or ratio is None:
        return Verdict(False, "INVALID", tuple(faults), certificate)
    return Verdict(True, *judged_gamma(ratio, floor=floor, native=native), certificate)


def judged_gamma(ratio: Interval, *, floor: float | None, native: Interval | None) -> tuple[Label, tuple[str, ...]]:
    """Return what the gamma of a valid cell shows and, if that is INCONCLUSIVE, the reasons.

    Args:    floor: |log gamma| up to which differences are noise; native: seconds of AR / of the engine's own plain decode
    """
    doubts = tuple(_doubts(ratio, floor, native))
    if doubts:
        return "INCONCLUSIVE", doubts
    if is_same(ratio):  # a difference within the margin does not matter, however sure it is
        return "SAME", ()
    if ratio.low <= 1 <= ratio.high:
        return "INCONCLUSIVE", ("1 is inside the interval",)
    # Its end, not its estimate: what is between 1 and the floor may be a difference between first and second arms.
    if floor is not None and min(abs(math.log(ratio.low)), abs(math.log(ratio.high))) <= floor:
        return "INCONCLUSIVE", (f"the interval reaches into the A/A floor of {floor:.1%}",)
    return ("FASTER" if ratio.estimate > 1 else "SLOWER"), ()


def _doubts(ratio: Interval, floor: float | None, native: Interval | None) -> Iterator[str]:
    """Yield why a gamma cannot be judged, whatever it is."""
    if not ratio.adequate:
        yield f"{ratio.num_clusters} prompts, at least {MIN_CLUSTERS} are needed"
    elif floor is None:
        yield "no A/A floor was measured"
    else:
        if floor > TOLERANCE:
            yield f"A/A floor {floor:.1%}, above {TOLERANCE:.0%}: run specheat doctor to see what disturbs this machine"
        if native is not None and native.high > 1 + TOLERANCE:
            yield (
                f"the baseline may be up to {native.high - 1:.1%} slower than the engine's own decode; "
                "more prompts or a quieter machine decide"
            )


def _faults(record: CellRecord, run: RunRecord, native: Interval | None) -> Iterator[str]:
    """Yield the reasons for which a record is INVALID."""
    if record.error is not None:
        yield f"error: {record.error}"
        return
    if sharing := run.environment.get(SHARED_BY):
        yield f"timed on a machine that {sharing} runs shared"
    if not record.warmup_settled:
        yield "warm-up never settled"
    yield from throttling_faults(record)
    if native is not None and is_weak(native):
        yield f"baseline at least {native.low - 1:.1%} slower than the engine's own decode"
    replay_faults = tuple(_replay_faults(record, run))
    yield from replay_faults
    agreement = None if replay_faults else acceptance_agreement(record)  # it needs balanced replays
    if agreement is not None and agreement.p < AGREEMENT_P / max(1, len(run.cells)):  # Bonferroni's correction
        yield f"counted and expected acceptance disagree: z = {agreement.z:.1f}, p = {agreement.p:.1g}"


def is_weak(native: Interval) -> bool:
    """Return whether the baseline is surely slower than the engine's own plain decode, by more than TOLERANCE."""
    return native.low > 1 + TOLERANCE


def _replay_faults(record: CellRecord, run: RunRecord) -> Iterator[str]:
    """Yield the faults of replays. Unseeded engines, whose settings have `seeded: false`, may replay another text."""
    replays = tuple(replays_of(record))
    if run.backend_settings.get("seeded", True):
        for name in ("token_ids", "rounds"):
            timed = ((getattr(pair.sd, name), getattr(replay, name)) for pair, replay in replays)
            if differing := sum(ours is not None and ours != again for ours, again in timed):
                yield f"{differing} of {len(replays)} replays gave other {name.replace('_', ' ')} than the timed run"
    if unbalanced := sum(not _balanced(replay, record.cell.rule) for _, replay in replays):
        yield f"{unbalanced} of {len(replays)} replays do not have one acceptance probability per tested position"


def _balanced(replay: Replay, rule: str) -> bool:
    if rule in JOINT_RULES:
        return replay.joint_length is not None and len(replay.joint_length) == len(replay.rounds)
    return [num_tested(round_) for round_ in replay.rounds] == [len(probs) for probs in replay.acceptance_probs]
