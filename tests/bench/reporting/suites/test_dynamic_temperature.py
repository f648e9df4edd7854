"""The table of the suite `dynamic_temperature`."""

from __future__ import annotations

import pytest

from bench.analysis.rows import newest_rows
from bench.reporting.suites.dynamic_temperature import halves_table
from tests.support.record_builder import make_cell, make_record, make_run


def test_rows_of_other_draft_lengths_have_constants_of_their_own() -> None:
    cells = [
        make_cell(temperature=1.5, schedule=each, num_draft_tokens=k)
        for each in (((0, 1.5), (20, 0.3)), ((0, 1.5),))
        for k in (2, 4)
    ]
    alphas = {2: 0.5, 4: 0.9}
    run_ = make_run([make_record(cell, alpha=alphas[cell.num_draft_tokens]) for cell in cells])
    table = halves_table(newest_rows({"m/dynamic_temperature/1-a-reference.json": run_}))
    assert table.headers[:2] == ("schedule", "num_draft_tokens")
    for row in table.body:
        texts = dict(zip(table.headers, (entry.text for entry in row), strict=True))
        expected = alphas[int(texts["num_draft_tokens"])]
        constant = texts["constant hot,\nsame tokens"]
        assert texts["alpha while hot\nexpected"].startswith(f"{expected:g}")
        if "," in texts["schedule"]:
            assert float(constant.split()[0]) == pytest.approx(expected, abs=0.1)
            assert texts["constant cold,\nsame tokens"] == "–"
