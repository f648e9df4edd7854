"""The measuring side keeps what was measured, whatever happens to a cell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.measurement import suite_run
from bench.measurement.recording import NotMeasured, Recording
from bench.records import files
from bench.records.journal import Journal
from tests.support.record_builder import make_cell, make_record, make_run


def test_a_cell_whose_test_ended_early_does_not_keep_the_record_from_being_written(tmp_path: Path) -> None:
    whole, cut = make_record(make_cell(temperature=0.0)), make_record(make_cell(temperature=1.0))
    nothing: Any = None
    recording = Recording("temperature_grid", "reference", settings=nothing, workloads=(), reporter=nothing)
    recording._journal = Journal.start(tmp_path, make_run(), backend="reference")
    recording._journal.finish_cell(whole)
    recording._journal.append_pair(cut.cell, cut.pairs[0])
    path = recording.finish()
    assert path is not None
    kept, failed = files.load_run(path).cells
    assert kept == whole
    assert (failed.cell, failed.pairs) == (cut.cell, ())
    assert failed.error == "its test ended before the cell was measured"
    assert not list(tmp_path.rglob(f"*{files.UNFINISHED}"))


def test_two_records_that_begin_within_a_second_have_names_of_their_own(tmp_path: Path) -> None:
    nothing: Any = SimpleNamespace(results=tmp_path)
    recording = Recording("temperature_grid", "reference", settings=nothing, workloads=(), reporter=nothing)
    first, second = (recording._started(make_run()) for _ in range(2))
    assert first.path != second.path
    assert first.header.suite == second.header.suite


@pytest.mark.parametrize("method", ["measure", "measure_baseline"])
def test_nothing_is_recorded_where_pytest_benchmark_is_disabled(method: str) -> None:
    """It would call what is timed once and never the teardown, in which a pair is kept."""
    run: Any = SimpleNamespace()
    options = {} if method == "measure_baseline" else {"temperature": 1.0, "rule": "rejection", "num_draft_tokens": 2}
    with pytest.raises(NotMeasured, match="run with --benchmark-only, and without -n"):
        getattr(suite_run.SuiteRun, method)(run, SimpleNamespace(disabled=True), **options)
