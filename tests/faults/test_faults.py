"""Every planted fault is caught by the check that docs/faults.md names, and no check stops the healthy decoder.

Seeds are fixed, so an outcome changes only with the code, or with how a platform rounds.
"""

from __future__ import annotations

import pytest

from backends.engines.reference import ReferenceBackend
from tests.faults.catalogue import BELOW_RESOLUTION, FAULTS, Fault
from tests.faults.checks import CHECKS, LOOKS, Changes, Relation, decoded, first_alarm, grown, models
from tests.support import ROOT

TABLE = ROOT / "docs" / "faults.md"
HEALTHY_TOKENS = 2000

# Requests to the healthy decoder, and the checks that it has to pass there: all that some fault fails.
HEALTHY: dict[str, tuple[Relation, tuple[Changes, ...], set[str]]] = {}
for fault in FAULTS:
    _, _, checks = HEALTHY.setdefault(f"{fault.relation} {fault.changes}", (fault.relation, fault.changes, set()))
    checks.add(fault.check)


def rows() -> dict[str, list[str]]:
    """Return the cells of the tables by the fault's name."""
    lines = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in lines}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught_with_as_many_tokens_as_the_table_says(fault: Fault) -> None:
    alarm = first_alarm(decoded(fault.decoder, fault.relation, fault.changes), fault.check, fault.relation)
    assert alarm is not None
    story, kind, check, tokens = rows()[fault.name]
    assert (story, kind, check) == (fault.story, fault.kind, fault.check)
    # On a platform that rounds differently the alarm may come one look sooner or later.
    assert int(tokens) / 2.6 < alarm.num_tokens < 2.6 * int(tokens)


@pytest.mark.parametrize("asked", HEALTHY)
def test_the_healthy_decoder_raises_no_alarm(asked: str) -> None:
    """False alarms, had the seeds been free: 1 in 100 by the certificate, 1 in 1,000 a comparison otherwise."""
    relation, changes, checks = HEALTHY[asked]
    samples, _ = next(grown(decoded(ReferenceBackend, relation, changes), (HEALTHY_TOKENS,)))
    for check in sorted(checks):
        assert CHECKS[check](samples, models(relation)) is None, check


def test_the_tables_list_every_fault_and_no_other() -> None:
    listed = rows().keys() - {"fault", "check", *CHECKS}
    assert listed == {fault.name for fault in (*FAULTS, *BELOW_RESOLUTION)}


def test_every_class_has_faults_and_enough_are_caught() -> None:
    assert {fault.kind for fault in FAULTS} == {"distribution", "efficiency", "accounting"}
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 24
    assert {fault.check for fault in FAULTS} == set(CHECKS)
    assert LOOKS[-1] == 4000
