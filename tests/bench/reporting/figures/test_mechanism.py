"""Phase bars and predicted against measured gamma: the same bytes from the same records, and only what can be believed."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench.analysis import metrics
from bench.analysis.rows import Row, newest_rows
from bench.records.runs import CellRecord, RunRecord
from bench.reporting.figures.mechanism import predicted_points, render_phases, render_predicted
from tests.support.record_builder import failed_record, make_cell, make_record, make_run

FILE = "example-2c/temperature_grid/20261120T100000Z-abcdef0123-reference.json"
GRID = make_run(
    [make_record(make_cell(temperature=t, rule=rule)) for t in (0.0, 0.5, 1.0) for rule in ("rejection", "typical")]
)


def rows_of(run: RunRecord) -> tuple[Row, ...]:
    return newest_rows({FILE: run})


def without_replays(record: CellRecord) -> CellRecord:
    return replace(record, pairs=tuple(replace(pair, replay=None) for pair in record.pairs))


@pytest.mark.parametrize("render", [render_phases, render_predicted])
def test_the_same_records_give_the_same_bytes(render):
    image = render(rows_of(GRID))
    assert image.startswith(b"<?xml")
    assert image == render(rows_of(GRID))


def test_phases_of_a_round_are_stacked_bars_of_their_milliseconds():
    record = make_record(noise=0.001)
    drawn = ElementTree.fromstring(render_phases(rows_of(make_run([record]))))
    paths = [path.get("d") for path in drawn.iter("{http://www.w3.org/2000/svg}path")]
    clipped = [
        path
        for path in drawn.iter("{http://www.w3.org/2000/svg}path")
        if path.get("clip-path") and path.get("d", "").rstrip().endswith("z")
    ]
    tops = [[float(word) for word in path.get("d").split() if word[0].isdigit()][1::2] for path in clipped]
    heights = [max(places) - min(places) for places in tops]
    phases = record.pairs[0].replay.phase_s
    assert len(paths) > len(clipped) == 4
    assert heights[1] / heights[0] == pytest.approx(phases.verify / phases.draft, rel=1e-3)  # six digits in the file


def test_records_without_replays_have_no_phases():
    bare = make_run([without_replays(make_record())])
    assert render_phases(rows_of(bare)) is None


def test_many_lines_are_panels_below_each_other():
    cells = [make_cell(temperature=t, num_draft_tokens=k) for t in (0.0, 1.0) for k in (1, 2, 3, 4)]
    assert render_phases(rows_of(make_run(map(make_record, cells))))


def test_a_point_is_what_the_metrics_say_of_a_valid_cell():
    invalid = make_record(make_cell(temperature=0.0), warmup_settled=False)
    record = make_record()
    (point,) = predicted_points(rows_of(make_run([invalid, record, failed_record(make_cell(temperature=0.5))])))
    assert point == ("reference, rejection", metrics.predicted_gamma(record), metrics.gamma(record))


def test_a_lossy_rule_is_marked():
    assert {label for label, _, _ in predicted_points(rows_of(GRID))} == {
        "reference, rejection",
        "reference, typical LOSSY",
    }


def test_without_bare_forwards_nothing_is_predicted():
    record = make_record()
    bare = replace(record, pairs=tuple(replace(pair, forwards=()) for pair in record.pairs))
    assert render_predicted(rows_of(make_run([bare]))) is None


def test_one_cell_of_one_prompt_can_be_drawn():
    run = make_run([make_record(make_cell(num_prompts=1))], baseline=())
    assert render_phases(rows_of(run))
    assert render_predicted(rows_of(run))
