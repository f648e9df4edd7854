"""What else the machine did while arms were timed, and when that makes a record INVALID.

A GPU at its power cap is throttled all the time, and equally in both arms. So throttling alone is no fault. It is one where it
differs between the arms, or where the clock fell during the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median

from bench.records.runs import CellRecord, RunRecord

CLOCK_DIFFERENCE = 0.03  # of the mean clock of SD from that of AR
THROTTLED_P = 0.01  # two-sided sign test over the pairs of which one arm was throttled and the other was not
CLOCK_KEPT = 0.95  # the clock of the last quarter of the arms, as a share of that of the first


def throttling_faults(record: CellRecord) -> Iterator[str]:
    """Yield how throttling makes the record INVALID. Older records have only reasons, each of which does."""
    if record.throttle:
        yield f"throttled: {', '.join(record.throttle)}"
    read = [(pair.order, ar, sd) for pair in record.pairs if (ar := pair.ar.conditions) and (sd := pair.sd.conditions)]
    clocks = [(order, ar.clock_mhz, sd.clock_mhz) for order, ar, sd in read if ar.clock_mhz and sd.clock_mhz]
    if clocks:
        ar_mhz, sd_mhz = fmean(ar for _, ar, _ in clocks), fmean(sd for _, _, sd in clocks)
        if abs(sd_mhz / ar_mhz - 1) > CLOCK_DIFFERENCE:
            yield f"the GPU ran at {ar_mhz:.0f} MHz in AR and at {sd_mhz:.0f} MHz in SD"
        in_order = [mhz for order, ar, sd in clocks for mhz in ((ar, sd) if order == "ar_first" else (sd, ar))]
        quarter = max(1, len(in_order) // 4)
        first, last = median(in_order[:quarter]), median(in_order[-quarter:])
        if last < CLOCK_KEPT * first:
            yield f"the clock of the GPU fell from {first:.0f} to {last:.0f} MHz"
    throttled = [(bool(ar.throttle), bool(sd.throttle)) for _, ar, sd in read]
    one_arm = [sd for ar, sd in throttled if ar != sd]
    if one_arm and _equal_shares_p(sum(one_arm), len(one_arm)) < THROTTLED_P:
        ar, sd = (sum(column) for column in zip(*throttled, strict=True))
        yield f"the GPU was throttled in {ar} of {len(throttled)} calls of AR and in {sd} of SD"


def mean_load(run: RunRecord) -> dict[str, float]:
    """Return the shares of CPU time that other machines (steal) and other processes took while arms were timed."""
    arms = [arm for record in run.cells for pair in record.pairs for arm in (pair.ar, pair.sd)]
    arms += [arm for triple in run.baseline for arm in (triple.ar, triple.ar_again, triple.native) if arm is not None]
    read = [each for arm in arms if (each := arm.conditions) is not None and each.cpu_s]
    whole_s = sum(each.cpu_s or 0.0 for each in read)
    seconds = {"steal": [each.steal_s for each in read], "other processes": [each.others_s for each in read]}
    return {
        name: sum(part) / whole_s for name, found in seconds.items() if (part := [each for each in found if each is not None])
    }


def _equal_shares_p(count: int, of: int) -> float:
    from scipy.stats import binomtest  # not at the top: the doctor runs without it, to say what is missing

    return float(binomtest(count, of).pvalue)
