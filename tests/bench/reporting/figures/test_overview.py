"""Figures: the same bytes from the same records, and lines that tell cells apart without colour."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest

from bench.analysis.rows import newest_rows
from bench.errors import BackendUnavailable
from bench.records.runs import Cell, RunRecord
from bench.reporting import formats, suite_page, table
from bench.reporting.figures import canvas, overview
from tests.support.record_builder import failed_record, make_cell, make_record, make_run

FILE = "example-2c/temperature_grid/20261120T100000Z-abcdef0123-reference.json"


def run_of(cells: Iterable[Cell]) -> RunRecord:
    return make_run([make_record(cell) for cell in cells])


def series_of(cells: Iterable[Cell]) -> tuple[str, tuple[overview.Series, ...]]:
    return overview.series_of(newest_rows({FILE: run_of(cells)}))


def drawn(run: RunRecord) -> bytes | None:
    return overview.render(newest_rows({FILE: run}))


GRID = run_of(make_cell(temperature=t) for t in (0.0, 0.5, 1.0))


def test_the_same_records_give_the_same_bytes():
    assert drawn(GRID) == drawn(GRID)


def test_the_users_own_matplotlib_settings_change_nothing():
    import matplotlib

    plain = drawn(GRID)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "svg.hashsalt": "other", "savefig.dpi": 40}):
        assert drawn(GRID) == plain


def test_a_figure_states_that_it_is_derived_and_not_when():
    image = drawn(GRID)
    assert table.DERIVED.encode() in image
    assert not re.search(rb"<dc:date>|<text", image)  # text is drawn as paths, whatever fonts a reader has


def test_cells_over_temperature_are_one_line():
    axis, lines = series_of(make_cell(temperature=t) for t in (1.0, 0.0, 0.5))
    assert axis == "temperature"
    assert [(line.label, line.x) for line in lines] == [("", (0.0, 0.5, 1.0))]


def test_everything_else_that_varies_makes_another_line():
    cells = [make_cell(temperature=t, rule=rule) for t in (0.0, 1.0) for rule in ("rejection", "one_hot")]
    _, lines = series_of(cells)
    assert [(line.label, line.x) for line in lines] == [
        ("rule one_hot", (0.0, 1.0)),
        ("rule rejection", (0.0, 1.0)),
    ]


def test_at_one_temperature_the_axis_is_what_varies():
    axis, lines = series_of(make_cell(num_draft_tokens=k) for k in (1, 2, 4))
    assert (axis, lines[0].x) == ("num_draft_tokens", (1.0, 2.0, 4.0))
    axis, lines = series_of(make_cell(draft_temperature=t) for t in (0.5, 1.0, 1.5))
    assert (axis, lines[0].x) == ("draft_temperature", (0.5, 1.0, 1.5))


def test_a_lossy_rule_is_marked_in_the_legend():
    _, lines = series_of([make_cell(rule="typical"), make_cell()])
    assert [line.label for line in lines] == ["rule rejection", "rule typical LOSSY"]


def test_twenty_lines_look_different_from_each_other_and_seven_without_colour():
    looks = [canvas.look(number) for number in range(20)]
    assert len({tuple(look.values()) for look in looks}) == 20
    assert len({(look["marker"], look["linestyle"]) for look in looks[:7]}) == 7
    assert "--" not in {look["linestyle"] for look in looks}  # means predicted


def test_invalid_cells_are_left_out_and_a_run_of_them_has_no_figure():
    broken = failed_record(make_cell(temperature=0.0))
    assert drawn(make_run([broken])) is None
    assert drawn(make_run([broken, make_record()]))


def test_every_group_of_rows_has_a_figure_that_is_named_by_what_it_shows():
    older, newer = (run_of([make_cell(temperature=t, num_prompts=n) for t in (0.0, 1.0)]) for n in (4, 8))
    runs = {"old.json": replace(older, created="2026-01-01"), FILE: replace(newer, created="2026-02-01")}
    page = suite_page.page(runs, newest_rows(runs))
    new, old = "tiny-instructions-8-prompts", "tiny-instructions-4-prompts"
    assert list(page.figures) == [new, f"{new}-phases", old]
    assert (page.figures[new], page.figures[old]) == (drawn(newer), drawn(older))
    text = formats.markdown_page("grid", page.tables)
    assert text.count(f"](figure-{new}.svg)") == text.count(f"](figure-{old}.svg)") == 1
    assert text.index(f"](figure-{new}.svg)") < text.index(f"](figure-{old}.svg)")


def test_one_cell_of_one_prompt_without_a_baseline_can_be_drawn():
    run = make_run([make_record(make_cell(num_prompts=1))], baseline=())
    assert drawn(run)


def test_a_missing_matplotlib_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"pip install -e .\.\[figures\]"):
        drawn(GRID)
