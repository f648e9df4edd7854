"""Measure every planted fault again: `python -m tests.faults > docs/faults.md`. It takes ten minutes on one core."""

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
_LOOKS, _COMPARISONS = f"{1 / FALSE_ALARM:.0f}", f"{1 / ALLOWED_P:,.0f}"
HEALTHY_CHECKS = ("certificate", "white box", "alpha, uncached forwards", "end tokens")

INTRODUCTION = f"""# Planted faults

To see which broken decoders the checks find, read the tables. To measure every row again (ten minutes on one core):

    python -m tests.faults > docs/faults.md

Each row is a broken speculative decoder: one small change to the reference that real code has made.
The column "caught by" names the check that finds it. `tests/faults/test_faults.py` measures the first table in every test run.
To run the checks on your own engine, use the [conformance kit](backends.md#prove-that-a-backend-conforms).

The column "class" gives what can find a fault:

- *distribution*: the output does not follow the target. Acceptance need not show it.
- *efficiency*: the output is lossless, but acceptance is not that of the two models.
- *accounting*: what is reported is not what happened.

The column "tokens" gives how many tokens the check had seen when it first raised the alarm.
It looks at about {", ".join(f"{look:,}" for look in LOOKS)} tokens.
The models are random and tiny (64 tokens in the vocabulary). The draft is disturbed and overconfident.
T = 0.8, k = 3 and outputs have 60 tokens, unless the fault needs something else.
The counts of tokens belong to this pair. Another pair needs more or fewer.
"""


def main() -> None:
    print(INTRODUCTION)
    print("| fault | what went wrong | class | caught by | tokens |\n|---|---|---|---|--:|")
    for fault in FAULTS:
        alarm = first_alarm(decoded(fault.decoder, fault.relation, fault.changes), fault.check, fault.relation)
        print(f"{_row(fault)} {fault.check} | {alarm.num_tokens if alarm else 'not caught'} |", flush=True)
    print(f"""
## Below resolution

The certificate does not catch these at {LOOKS[-1]:,} tokens. D is the distance of all tokens from the target:
a 99 % upper bound from the largest sample. A departure within the numerical allowance ({ALLOWANCE["float32"]:g} in float32)
is no fault for the certificate.

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

The reference passes every check of the first table on the same requests, in every test run.
Checks that count or compare exactly cannot raise a false alarm.
Those that test a sample allow at most one false alarm in {_LOOKS} looks (certificate), or in {_COMPARISONS} comparisons
(the others).
Measured on the reference, with other seeds in each run; alarms at any of {len(HEALTHY_LOOKS)} looks, at up to
{HEALTHY_LOOKS[-1]:,} tokens, count:

| check | runs with a false alarm |
|---|--:|
{rows}"""


def _false_alarms(run: int) -> set[str]:
    # Far apart, so that no two runs share a seed.
    stream = decoded(ReferenceBackend, "near", ENDING, seed=10_000 * run)
    fresh = models("near")
    return {check for samples, _ in grown(stream, HEALTHY_LOOKS) for check in HEALTHY_CHECKS if CHECKS[check](samples, fresh)}


if __name__ == "__main__":
    main()
