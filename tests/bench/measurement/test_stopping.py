"""Cells that end before their last pair: when, and what is left of the coverage."""

from __future__ import annotations

import pytest

from bench.measurement.stopping import PRECISION, TIME, reason_to_stop
from bench.options.settings import Stopping
from tests.studies.simulated_stopping import simulate
from tests.support.record_builder import make_cell, make_record


def test_a_cell_ends_once_its_interval_is_narrow_or_its_time_is_over() -> None:
    cell = make_cell(num_prompts=24)
    pairs = make_record(cell).pairs
    assert len({pair.prompt_index for pair in pairs}) == 24
    assert reason_to_stop(Stopping(), cell, pairs, elapsed_s=1e9) == ""
    assert reason_to_stop(Stopping(precision=0.9), cell, pairs, elapsed_s=0.0) == PRECISION
    least = Stopping().least_prompts
    assert reason_to_stop(Stopping(precision=0.9), cell, pairs[: least - 1], elapsed_s=0.0) == ""
    assert reason_to_stop(Stopping(precision=0.9), cell, pairs[:least], elapsed_s=0.0) == PRECISION
    assert reason_to_stop(Stopping(precision=0.9, least_prompts=least + 1), cell, pairs[:least], elapsed_s=0.0) == ""
    assert reason_to_stop(Stopping(precision=1e-6), cell, pairs, elapsed_s=0.0) == ""
    assert reason_to_stop(Stopping(precision=1e-6, budget_s=5.0), cell, pairs, elapsed_s=5.0) == TIME
    assert reason_to_stop(Stopping(budget_s=5.0), cell, (), elapsed_s=9.0) == ""


@pytest.mark.parametrize("precision", [0.04, 0.05])
def test_the_interval_still_covers_where_pairs_are_saved(precision: float) -> None:
    found = simulate(400, precision=precision, between=0.08, within=0.03, seed=1)
    assert found.pairs < 40
    assert found.coverage > 0.92
