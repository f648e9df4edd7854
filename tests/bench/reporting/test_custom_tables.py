"""Pivots: each cell in one place of one table, none averaged, the best of each row bold, INVALID a dash with its reason."""

from __future__ import annotations

from dataclasses import replace

from bench.analysis import metrics
from bench.analysis.rows import newest_rows
from bench.records.runs import CellRecord
from bench.reporting.custom_tables import pivot_tables
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Entry, Table
from tests.support.record_builder import make_cell, make_record, make_run

FILE = "example-2c/temperature_grid/20261120T100000Z-abcdef0123-reference.json"


def pivot(records: list[CellRecord], down: str, across: str) -> tuple[Table, ...]:
    return pivot_tables(newest_rows({FILE: make_run(records)}), down=down, across=across)


def by_length() -> list[CellRecord]:
    """Gamma falls with k at T = 1 and rises at T = 0."""
    gammas = {(0.0, 1): 1.1, (0.0, 2): 1.3, (1.0, 1): 1.2, (1.0, 2): 0.9}
    return [
        make_record(make_cell(temperature=t, num_draft_tokens=k), gamma=gamma, alpha=0.7 - t / 5 - k / 50, noise=0.001)
        for (t, k), gamma in gammas.items()
    ]


def entry(table: Table, down: str, across: str) -> Entry:
    (line,) = (entries for entries in table.body if entries[0].text == down)
    return line[table.headers.index(across)]


def test_every_cell_stands_where_its_row_and_column_meet_with_its_interval():
    records = by_length()
    gamma, alpha = pivot(records, "T", "k")
    assert gamma.headers == ("temperature", "num_draft_tokens\n1", "num_draft_tokens\n2")
    for record in records:
        place = f"{record.cell.temperature:g}", f"num_draft_tokens\n{record.cell.num_draft_tokens}"
        assert entry(gamma, *place).text == interval_text(metrics.gamma(record))
        assert entry(alpha, *place).text == interval_text(metrics.counted_alpha(record))


def test_the_best_of_each_row_is_bold():
    gamma = pivot(by_length(), "T", "k")[0]
    assert [[entry.bold for entry in line] for line in gamma.body] == [[False, False, True], [False, True, False]]
    turned = pivot(by_length(), "k", "T")[0]
    assert [[entry.bold for entry in line] for line in turned.body] == [[False, False, True], [False, True, False]]


def test_one_value_alone_is_not_the_best():
    table = pivot([make_record()], "T", "backend")[0]
    assert table.headers == ("temperature", "backend\nreference")
    assert not any(entry.bold for line in table.body for entry in line)


def test_an_invalid_cell_is_a_dash_with_a_footnote_and_never_the_best():
    first, second, *rest = by_length()
    for table in pivot([first, replace(second, warmup_settled=False), *rest], "T", "k"):
        found = entry(table, "0", "num_draft_tokens\n2")
        assert (found.text, found.bold) == (MISSING, False)
        assert table.notes[found.note - 1] == "warm-up never settled"


def test_what_was_not_measured_is_empty_and_said_so():
    gamma = pivot(by_length()[:3], "T", "k")[0]
    assert entry(gamma, "1", "num_draft_tokens\n2") == Entry("")
    assert gamma.facts["empty"] == "not measured"
    assert not pivot(by_length(), "T", "k")[0].facts["empty"]


def test_a_lossy_rule_is_marked_and_never_bold():
    records = [make_record(make_cell(rule=rule), gamma=2.0) for rule in ("typical", "rejection", "one_hot")]
    gamma = pivot(records, "T", "rule")[0]
    assert entry(gamma, "1", "rule\ntypical").text.endswith(" LOSSY")
    assert not entry(gamma, "1", "rule\ntypical").bold


def test_cells_that_two_names_do_not_tell_apart_stand_in_tables_of_their_own():
    cells = [make_cell(temperature=t, rule=rule) for t in (0.0, 1.0) for rule in ("rejection", "one_hot")]
    found = pivot([make_record(cell) for cell in cells], "T", "k")
    assert [table.title.partition(": ")[2] for table in found] == [
        f"{value}, temperature x num_draft_tokens, rule {rule}"
        for rule in ("one_hot", "rejection")
        for value in ("gamma", "alpha")
    ]
    assert [len(table.body) for table in found] == [2, 2, 2, 2]


def test_what_the_column_decides_tells_nothing_apart():
    sets = {"a": "0" * 16, "b": "1" * 16}
    cells = [make_cell(prompt_set=name, prompts_hash=digest) for name, digest in sets.items()]
    gamma, _ = pivot([make_record(cell) for cell in cells], "T", "prompt_set")
    assert gamma.headers == ("temperature", "prompt_set\na", "prompt_set\nb")
    assert gamma.facts["differ with temperature or prompt_set, not shown"] == "prompts_hash"


def test_captions_name_formula_machine_versions_commit_and_settings():
    for table in pivot(by_length(), "T", "k"):
        for name, text in (
            ("formula", f"{'alpha' if ': alpha' in table.title else 'gamma'} = "),
            ("machine", "Example CPU"),
            ("versions", "torch 2.13.0"),
            ("commit", "abcdef0123"),
            ("every cell", "rule rejection"),
            ("every cell", "num_prompts 12"),
        ):
            assert text in table.facts[name]
        assert tuple(table.records) == (FILE,)
