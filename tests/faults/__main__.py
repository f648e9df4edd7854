"""Measures every planted fault anew: `python -m tests.faults > docs/faults.md`. Ten minutes on one core."""

from __future__ import annotations

import math

from backends.conformance.kit import ALLOWED_P
from backends.engines.reference import ReferenceBackend
from bench.analysis.certificate import ALLOWANCE, FALSE_ALARM
from tests.faults.catalogue import BELOW_RESOLUTION, ENDING, FAULTS, Fault
from tests.faults.checks import CHECKS, LOOKS, decoded, first_alarm, grown, models

MORE_LOOKS = (8000, 16000, 32000)
HEALTHY_RUNS = 100
HEALTHY_LOOKS = LOOKS[:4]
HEALTHY_CHECKS = ("certificate", "white box", "alpha, uncached forwards", "end tokens")

INTRODUCTION = f"""# Planted faults

Broken speculative decoders, each one small change to the reference that real code has made, and the check that sees
it. Derived: `python -m tests.faults > docs/faults.md` measures every row anew, and `tests/faults/test_faults.py` measures
the first table in every test run.

*Class* says what can see a fault. *distribution*: the output does not follow the target; acceptance need not show it.
*efficiency*: the output is lossless, but acceptance is not that of the two models. *accounting*: what is reported is
not what happened. *Tokens* is how many the check had seen when it first raised the alarm, looking at about
{", ".join(f"{look:,}" for look in LOOKS)}. The models are random and tiny (64 tokens), the draft disturbed and
overconfident, T = 0.8, k = 3 and texts of 60 tokens unless the fault needs something else. Counts of tokens are of this
pair; another pair needs more or fewer.
"""


def main() -> None:
    print(INTRODUCTION)
    print("| fault | what went wrong | class | caught by | tokens |\n|---|---|---|---|--:|")
    for fault in FAULTS:
        alarm = first_alarm(decoded(fault.decoder, fault.relation, fault.changes), fault.check, fault.relation)
        print(f"{_row(fault)} {fault.check} | {alarm.num_tokens if alarm else 'not caught'} |", flush=True)
    print(f"""
## Below resolution

Not caught by the certificate at {LOOKS[-1]:,} tokens. D, the distance of all tokens from the target, is a 99 % upper bound
from the largest sample; a departure within the numerical allowance ({ALLOWANCE["float32"]:g} in float32) is no fault to it.

| fault | what went wrong | class | tokens needed by the certificate |\n|---|---|---|---|""")
    for fault in BELOW_RESOLUTION:
        print(f"{_row(fault)} {_tokens_needed(fault)} |", flush=True)
    print(f"\n{_healthy()}")


def _row(fault: Fault) -> str:
    return f"| {fault.name} | {fault.story} | {fault.kind} |"


def _tokens_needed(fault: Fault) -> str:
    fresh = models(fault.relation)
    num_tokens, distance = 0, 1.0
    for samples, num_tokens in grown(decoded(fault.decoder, fault.relation, fault.changes), (*LOOKS, *MORE_LOOKS)):
        certificate = fresh.certificate([(sample.request, sample.generation) for sample in samples])
        if certificate.verdict == "LOSSY":
            return f"{num_tokens:,}"
        distance = certificate.slots[0].distance_high
    beyond = distance - ALLOWANCE["float32"]
    # Massart's inequality at the level that a dozen tests share.
    least = math.log(2 * 12 / FALSE_ALARM) / (2 * beyond**2)
    return f"more than {num_tokens:,}; D is at most {distance:.3f}, so by D alone at least {least:,.0f}"


def _healthy() -> str:
    raised = [check for run in range(1, HEALTHY_RUNS + 1) for check in _false_alarms(run)]
    rows = "\n".join(f"| {check} | {raised.count(check)} of {HEALTHY_RUNS} |" for check in HEALTHY_CHECKS)
    return f"""## The healthy decoder

The reference passes every check of the first table on the same requests, in every test run. Checks that count or
compare exactly cannot raise a false alarm. Those that test a sample are built for at most one in
{1 / FALSE_ALARM:.0f} a look (certificate) and one in {1 / ALLOWED_P:,.0f} a comparison (the others). Measured on the
reference, each run with seeds of its own, alarms at any of {len(HEALTHY_LOOKS)} looks at up to
{HEALTHY_LOOKS[-1]:,} tokens:

| check | runs with a false alarm |
|---|--:|
{rows}"""


def _false_alarms(run: int) -> set[str]:
    # Far apart, so that no two runs share a seed.
    stream = decoded(ReferenceBackend, "near", ENDING, seed=10_000 * run)
    fresh = models("near")
    return {
        check
        for samples, _ in grown(stream, HEALTHY_LOOKS)
        for check in HEALTHY_CHECKS
        if CHECKS[check](samples, fresh)
    }


if __name__ == "__main__":
    main()
