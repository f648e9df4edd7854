"""What a run can decide: half-widths from a measured spread, and the prompts that others take."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bench.analysis import metrics
from bench.analysis.rows import rows_of
from bench.measurement.power import Contrast, contrasts, describe, series_of
from bench.measurement.stopping import half_width
from tests.bench.measurement.test_recording import WORKLOAD
from tests.support.record_builder import make_cell, make_record, make_run

HERE = replace(WORKLOAD, prompt_ids=((1,),) * 32)
GRID = [make_record(make_cell(temperature=t), gamma=1.4 - 0.4 * t, noise=0.08) for t in (0.0, 0.5, 1.0)]
RUN = make_run(GRID, model_hashes=dict(HERE.model_hashes))


def test_as_many_prompts_as_were_measured_give_the_half_width_that_was_measured() -> None:
    found = {each.name: each for each in contrasts(list(rows_of("", RUN)), (0.0, 1.0))}
    measured = metrics.gamma(GRID[0])
    assert measured is not None
    # Kish's number of prompts is a little below 12, so the measured interval is a little wider.
    assert found["gamma at T = 0"].half_width(12) == pytest.approx(half_width(measured), rel=0.05)
    assert set(found) == {
        "gamma at T = 0",
        "gamma at T = 1",
        "trend of gamma for each 1.0 of T",
        "alpha at T = 1 less at T = 0",
    }


def test_the_prompts_for_a_half_width_are_the_fewest_that_give_it() -> None:
    contrast = Contrast("gamma", "gamma", spread=0.1)
    number = contrast.prompts_for(0.05)
    assert contrast.half_width(number) <= 0.05 < contrast.half_width(number - 1)
    assert 16 <= number <= 20  # (1.96 * 0.1 / 0.05)^2 = 15.4, and t is wider
    assert contrast.prompts_for(1.0) == 6  # intervals are believed from 6 prompts on
    assert contrast.half_width(1) == math.inf


def test_the_plan_names_the_source_or_says_how_to_get_one() -> None:
    text = describe([RUN], HERE, (0.0, 0.5, 1.0))
    assert "from 12 prompts of temperature_grid, measured here on 2026-" in text
    assert "with 32 prompts" in text
    assert "trend of gamma" in text
    for runs in ([], [replace(RUN, model_hashes={"target": "another"})]):
        assert "--plan --pilot measures for a minute" in describe(runs, HERE, (0.0, 1.0))


def test_cells_under_load_or_without_a_gamma_are_no_source() -> None:
    loaded = replace(GRID[0], cell=replace(GRID[0].cell, concurrency=4))
    few = replace(GRID[1], pairs=GRID[1].pairs[:3])
    assert series_of([replace(RUN, cells=(loaded, few))], HERE) is None
