"""A suite on a fake engine: every pair is journalled, and what an interruption cut is measured again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.measurement.recording import NotMeasured
from bench.measurement.suite_run import SuiteRun, whole_groups
from bench.records.runs import TimedPair
from tests.support.record_builder import make_record


@pytest.mark.parametrize("method", ["measure", "measure_baseline"])
def test_nothing_is_recorded_where_pytest_benchmark_is_disabled(method: str) -> None:
    """It would call what is timed once and never the teardown, in which a pair is kept."""
    run: Any = SimpleNamespace()
    options = {} if method == "measure_baseline" else {"temperature": 1.0, "rule": "rejection", "num_draft_tokens": 2}
    with pytest.raises(NotMeasured, match="run with --benchmark-only, and without -n"):
        getattr(SuiteRun, method)(run, SimpleNamespace(disabled=True), **options)


def test_a_group_that_an_interruption_cut_is_measured_again() -> None:
    pair = make_record().pairs[0]

    def member(group: int | None, repeat: int) -> TimedPair:
        return TimedPair(0, repeat, pair.order, pair.ar, pair.sd, group=group)

    whole, cut = [member(0, 0), member(0, 1)], [member(1, 2)]
    assert whole_groups([*whole, *cut], 2) == whole
    assert whole_groups([member(None, 0)], 1) == [member(None, 0)]
