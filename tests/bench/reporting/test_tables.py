"""Tables say what the records say, no more digits than the intervals allow, and no gamma that is not believed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bench.analysis import metrics
from bench.analysis.rows import newest_rows
from bench.records.runs import RunRecord
from bench.reporting import captions, closing, custom_tables, formats, suite_page, tables
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Table
from bench.statistics.intervals import Interval
from tests.support.record_builder import failed_record, make_baseline, make_cell, make_record, make_run

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
FILE = "example-2c/temperature_grid/records/20261120T100000Z-abcdef0123-reference.json"
LATEST = "example-2c/temperature_grid/records/20261121T100000Z-fedcba3210-reference.json"
BASELINE_FILE = "example-2c/baseline_strength/records/20261120T110000Z-abcdef0123-reference.json"


def grid() -> RunRecord:
    """Gamma falls from 1.4 at T = 0 to 1.0 at T = 1."""
    return make_run([make_record(make_cell(temperature=t), gamma=1.4 - 0.4 * t) for t in TEMPERATURES])


def tables_of(runs: Mapping[str, RunRecord]) -> tuple[Table, ...]:
    return suite_page.suite_tables(runs, newest_rows(runs))


def markdown_of(runs: Mapping[str, RunRecord]) -> str:
    return formats.markdown_page("grid", tables_of(runs))


def latex_of(runs: Mapping[str, RunRecord]) -> str:
    return formats.latex_page(tables_of(runs))


def terminal_of(run: RunRecord) -> str:
    ((_, text),) = closing.texts_of({FILE: run})
    return text


def row_of(table: tables.Table, **wanted: str) -> dict[str, tables.Entry]:
    """The one row with these texts, by header."""
    rows = [dict(zip(table.headers, body, strict=True)) for body in table.body]
    (found,) = (row for row in rows if all(row[name].text == text for name, text in wanted.items()))
    return found


def main_table(run: RunRecord) -> tables.Table:
    return tables.cell_table(newest_rows({FILE: run}))


def bold_rows(table: tables.Table) -> list[str]:
    return [body[0].text for body in table.body if any(entry.bold for entry in body)]


def on_backends(*, alphas: tuple[float, float] = (0.6, 0.6), **settings: str) -> dict[str, RunRecord]:
    """The same cell on the reference, and on another engine whose speculation takes 1.5 times as long."""
    reference = make_record(make_cell(suite="backends"), alpha=alphas[0], noise=0.001)
    slow = [
        replace(pair, sd=replace(pair.sd, seconds=pair.sd.first_token_s + 1.5 * (pair.sd.seconds - 0.05)))
        for pair in make_record(make_cell(suite="backends"), alpha=alphas[1], noise=0.001).pairs
    ]
    other = replace(reference, cell=replace(reference.cell, backend="other"), pairs=tuple(slow))
    run = make_run([reference], suite="backends")
    of_other = replace(run, cells=(other,), backend_settings={**run.backend_settings, **settings})
    return {"m/backends/1-a-reference.json": run, "m/backends/2-a-other.json": of_other}


def test_backends_stand_side_by_side_against_the_reference():
    (table, *_) = tables_of(on_backends())
    other = row_of(table, backend="other")
    assert other["SD tokens/s /\nreference's"].text.startswith("0.667 [")
    assert other["alpha against\nthe reference"].text == "same"
    assert other["first token\nSD ms"].text.startswith("50")
    assert row_of(table, backend="reference")["SD tokens/s /\nreference's"].text == "1"


def test_another_alpha_is_said_with_the_reason_the_backend_declares():
    alphas = (0.8, 0.3)
    for settings, text in (({}, "differs"), ({"gap_acceptance": "drafts less"}, "differs: drafts less")):
        (table, *_) = tables_of(on_backends(alphas=alphas, **settings))
        assert row_of(table, backend="other")["alpha against\nthe reference"].text == text


def test_of_several_references_the_one_as_it_comes_is_the_reference():
    plain = make_record(make_cell(), gamma=1.2)
    compiled = make_record(make_cell(options=(("compile", "true"),)), gamma=1.5)
    other = make_record(make_cell(backend="other"), gamma=1.2)
    run = make_run([plain, compiled, other], suite="backends")
    (table, *_) = tables_of({FILE: run})
    header = "SD tokens/s /\nreference's"
    told = {(row[0].text, row_text(table, row, "compile")): row_text(table, row, header) for row in table.body}
    assert told["reference", "none"] == "1"
    assert float(told["reference", "true"].split()[0]) == pytest.approx(1.25, abs=0.1)
    assert float(told["other", "none"].split()[0]) == pytest.approx(1.0, abs=0.1)


def row_text(table, row, header: str) -> str:
    return row[table.headers.index(header)].text


def under_load(gammas: dict[int, float]) -> RunRecord:
    cells = [make_cell(suite="concurrency", concurrency=load) for load in gammas]
    records = [make_record(cell, gamma=gammas[load], noise=1e-6) for cell, load in zip(cells, gammas, strict=True)]
    return make_run(records, suite="concurrency")


def test_where_gamma_falls_through_1_under_load():
    found = main_table(under_load({1: 1.2, 4: 1.1, 16: 1 / 1.1})).facts["gamma falls through 1"]
    assert found.endswith("between 4 and 16 requests at once, at about 8.0")
    found = main_table(under_load({1: 0.9, 4: 0.8})).facts["gamma falls through 1"]
    assert found.endswith("nowhere between 1 (0.90) and 4 (0.80)")
    assert "gamma falls through 1" not in main_table(grid()).facts


# Digits
@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((1.083, 1.05, 1.12), "1.08 [1.05, 1.12]"),
        ((1.083, 1.071, 1.095), "1.083 [1.071, 1.095]"),
        ((0.6, 0.2, 0.9), "0.6 [0.2, 0.9]"),
        ((35.4321, 33.0, 39.0), "35 [33, 39]"),
        ((412.0, 300.0, 500.0), "412 [300, 500]"),
        ((1.2, 0.0, float("inf")), "1.20 [0.00, ∞]"),
        ((1.0, 1.0, 1.0), "1.00 [1.00, 1.00]"),
    ],
)
def test_digits_end_where_the_interval_makes_them_meaningless(numbers, text):
    assert interval_text(Interval(*numbers, num_clusters=12, confidence=0.95)) == text


# What is shown
def test_the_main_table_prints_what_the_metrics_say():
    run = grid()
    row = row_of(main_table(run), temperature="0.5")
    record = run.cells[2]
    assert row["gamma"].text == interval_text(metrics.gamma(record))
    assert row["alpha\ncounted"].text == interval_text(metrics.counted_alpha(record))
    assert float(row["AR\nms/token"].text) == pytest.approx(35, rel=0.05)  # 4 % noise an arm, 12 prompts
    measured_over_predicted = metrics.gamma(record).estimate / metrics.predicted_gamma(record)
    assert float(row["measured /\npredicted"].text) == pytest.approx(measured_over_predicted, abs=0.005)  # 2 decimals
    assert row["A/A\nfloor"].text == f"{metrics.aa_floor(run):.1%}"
    assert (row["certificate"].text, row["verdict"].text) == ("none yet", "FASTER")


def test_rows_are_sorted_by_everything_else_and_then_by_temperature():
    cells = [make_cell(temperature=t, num_draft_tokens=k) for t in (1.0, 0.0) for k in (4, 2)]
    rows = newest_rows({FILE: make_run(map(make_record, cells))})
    assert [(row.record.cell.num_draft_tokens, row.record.cell.temperature) for row in rows] == [
        (2, 0.0), (2, 1.0), (4, 0.0), (4, 1.0)
    ]  # fmt: skip


def test_what_varies_is_a_column_and_what_does_not_is_in_the_caption():
    cells = [
        make_cell(rule=rule, options=(("draft_layers", layers),)) for rule in ("rejection", "one_hot") for layers in (2, 4)
    ]
    table = main_table(make_run(map(make_record, cells)))
    assert table.headers[:3] == ("rule", "temperature", "draft_layers")
    assert "num_draft_tokens 4" in table.facts["every cell"]
    assert "rule" not in table.facts["every cell"]


def test_a_draft_temperature_that_follows_is_no_column_and_one_that_is_swept_is():
    assert "draft_temperature" not in main_table(grid()).headers
    swept = [make_cell(temperature=1.0, draft_temperature=t) for t in (0.5, 1.0, 1.5)]
    table = main_table(make_run(map(make_record, swept)))
    place = table.headers.index("draft_temperature")
    assert [body[place].text for body in table.body] == ["0.5", "1", "1.5"]


@pytest.mark.parametrize("render", [markdown_of, latex_of])
def test_captions_name_formula_machine_versions_commit_and_settings(render):
    text = render({FILE: grid()}).replace("\\_", "_").replace("$\\gamma$", "gamma").replace("\\allowbreak ", "")
    for fact in (
        "gamma = autoregressive seconds per token / speculative seconds per token",
        "gamma is not the draft length here",
        "Example CPU, 2 usable cores",
        "torch 2.13.0, transformers 5.19.0",
        "attention sdpa",
        "abcdef0123",
        "num_prompts 12",
        "prompt_set instructions",
        "num_draft_tokens 4",
        "rule rejection",
        "dtype bfloat16",
        FILE,
    ):
        assert fact in text


# What is not shown
def test_an_invalid_gamma_is_a_dash_with_its_reason_and_so_is_all_it_could_be_computed_from():
    run = grid()
    run = replace(run, cells=(replace(run.cells[0], warmup_settled=False), *run.cells[1:]))
    table = main_table(run)
    row = row_of(table, temperature="0")
    hidden = ("SD\nms/token", "gamma", "gamma_e2e", "predicted\ngamma", "measured /\npredicted")
    assert {row[name].text for name in hidden} == {MISSING}
    assert table.notes[row["gamma"].note - 1] == "warm-up never settled"
    gamma = interval_text(metrics.gamma(run.cells[0]))
    for text in (
        terminal_of(run),
        markdown_of({FILE: run}),
        latex_of({FILE: run}),
    ):
        assert gamma not in text
        assert "warm-up never settled" in text


def test_the_same_reason_is_one_footnote_on_one_line():
    errors = [failed_record(make_cell(temperature=t), error="RuntimeError: out\nof memory") for t in (0.0, 0.5)]
    table = main_table(make_run([*errors, make_record()]))
    assert table.notes == ("error: RuntimeError: out of memory",)
    assert [row_of(table, temperature=t)["gamma"].note for t in ("0", "0.5", "1")] == [1, 1, None]


def test_only_the_best_gamma_is_bold():
    assert bold_rows(main_table(grid())) == ["0"]
    assert markdown_of({FILE: grid()}).count("**1.") == 1
    assert latex_of({FILE: grid()}).count(r"\textbf") == 1
    assert re.findall(r"\] \*|\* the best", formats.terminal(main_table(grid()))) == ["] *", "* the best"]


def test_an_invalid_gamma_is_not_the_best_one():
    invalid = make_record(make_cell(temperature=0.0), gamma=3.0, warmup_settled=False)
    assert bold_rows(main_table(make_run([invalid, make_record(gamma=1.2)]))) == ["1"]


def test_a_lossy_gamma_is_shown_marked_and_never_bold():
    typical = make_record(make_cell(rule="typical"), gamma=3.0)
    table = main_table(make_run([typical, make_record(gamma=1.2)]))
    assert row_of(table, rule="typical")["gamma"].text.endswith("] LOSSY")
    assert bold_rows(table) == ["rejection"]


def test_a_gamma_of_too_few_prompts_is_inconclusive_with_a_reason_and_never_bold():
    few = make_record(make_cell(num_prompts=3), gamma=3.0)
    table = main_table(make_run([few]))
    row = row_of(table, temperature="1")
    assert row["verdict"].text == "INCONCLUSIVE"
    assert table.notes[row["verdict"].note - 1].startswith("3 prompts")
    assert bold_rows(table) == []


def test_a_run_without_a_baseline_is_marked():
    row = row_of(main_table(make_run([make_record()], baseline=())), temperature="1")
    assert row["A/A\nfloor"].text == MISSING
    assert "no A/A floor was measured" in terminal_of(make_run([make_record()], baseline=()))


def test_a_rule_judged_jointly_has_no_alpha():
    row = row_of(main_table(make_run([make_record(make_cell(rule="block"))])), temperature="1")
    assert {row[name].text for name in ("alpha\ncounted", "replays:\ncounted", "replays:\nexpected")} == {MISSING}


# Chosen columns
def test_columns_are_in_the_requested_order():
    table = custom_tables.chosen_table(newest_rows({FILE: grid()}), ["gamma", "T", "alpha", "c"])
    assert table.headers == ("gamma", "temperature", "alpha\ncounted", "c")
    assert [body[1].text for body in table.body] == ["0", "0.25", "0.5", "0.75", "1"]
    assert [entries[0].bold for entries in table.body] == [True, False, False, False, False]
    assert table.facts["formula"] == captions.FORMULA
    assert "draft forward" in table.facts["c"]
    assert "num_prompts 12" in table.facts["every cell"]


def test_what_differs_and_is_not_among_the_columns_is_named():
    cells = [make_cell(rule=rule) for rule in ("rejection", "one_hot")]
    table = custom_tables.chosen_table(newest_rows({FILE: make_run(map(make_record, cells))}), ["k", "gamma"])
    assert table.facts["differ between rows, not shown"] == "rule"
    assert "temperature 1" in table.facts["every cell"]


def test_an_invalid_row_of_chosen_columns_has_its_reason_at_a_dash():
    run = make_run([make_record(warmup_settled=False)])
    for names, place in ((["gamma_e2e", "gamma"], 1), (["T", "sd_ms"], 1), (["verdict", "T"], 0)):
        table = custom_tables.chosen_table(newest_rows({FILE: run}), names)
        assert [entry.note for entry in table.body[0]] == [1 if index == place else None for index in range(2)]
        assert table.notes == ("warm-up never settled",)
        assert table.body[0][place].text == ("INVALID" if "verdict" in names else MISSING)


def test_the_record_of_a_row_can_be_a_column():
    rows = newest_rows({FILE: grid(), LATEST: replace(grid(), created="2026-11-21T10:00:00+00:00")})
    assert custom_tables.chosen_table(rows, ["record"]).body[0][0].text == "R1"


# Several runs
def test_the_newest_record_of_each_cell_is_shown_whatever_the_order_of_files():
    later = make_run([make_record(gamma=2.0)], created="2026-11-21T10:00:00+00:00")
    later = replace(later, environment=later.environment | {"harness_commit": "fedcba3210"})
    for runs in ({FILE: grid(), LATEST: later}, {LATEST: later, FILE: grid()}):
        table = tables_of(runs)[0]
        assert len(table.body) == len(TEMPERATURES)
        assert row_of(table, temperature="1")["record"].text == "R2"
        assert row_of(table, temperature="0")["record"].text == "R1"
        assert row_of(table, temperature="1")["gamma"].text.startswith(("1.9", "2."))
        assert table.records == {
            FILE: "commit abcdef0123; date 2026-11-20",
            LATEST: "commit fedcba3210; date 2026-11-21",
        }


def test_a_record_that_no_row_comes_from_is_not_named():
    later = replace(grid(), created="2026-11-21T10:00:00+00:00")
    assert tuple(tables_of({FILE: grid(), LATEST: later})[0].records) == (LATEST,)


# Baseline strength
def test_a_run_without_cells_shows_its_baseline():
    run = make_run(suite="baseline_strength", baseline=make_baseline(strength=0.95))
    (table,) = tables_of({BASELINE_FILE: run})
    row = row_of(table, pair="tiny")
    ratio = float(row["AR tokens/s /\nengine's own tokens/s"].text.split()[0])
    assert ratio == pytest.approx(0.95, abs=0.01)  # noise of 1 % an arm, 12 prompts: standard error 0.35 %
    assert ratio == pytest.approx(float(row["engine's own\nms/token"].text) / float(row["AR\nms/token"].text), abs=0.02)
    assert (row["prompts"].text, row["backend"].text) == ("12", "reference")
    assert row["A/A\nfloor"].text == f"{metrics.aa_floor(run):.1%}"
    assert "engine's own" in terminal_of(run)


def test_an_arm_that_is_the_engines_own_decode_has_no_ratio():
    run = make_run(suite="baseline_strength", baseline=make_baseline(native=False))
    row = row_of(tables_of({BASELINE_FILE: run})[0], pair="tiny")
    assert row["engine's own\nms/token"].text == row["AR tokens/s /\nengine's own tokens/s"].text == MISSING


def test_a_run_without_cells_and_baseline_prints_that_nothing_was_measured():
    assert terminal_of(make_run(baseline=())) == "nothing was measured"


# LaTeX and markdown
def hostile() -> RunRecord:
    return make_run([make_record(), failed_record(make_cell(temperature=0.0), error=r"E: 5% of a_b & c|d {x} \y #1 ~^ <z>$")])


def test_latex_escapes_every_special_character():
    text = latex_of({FILE: hostile()})
    assert r"5\% of a\_b \& c\textbar{}d \{x\} \textbackslash{}y \#1 " in text
    assert r"\textasciitilde{}\textasciicircum{} \textless{}z\textgreater{}\$" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_every_latex_row_has_as_many_entries_as_there_are_columns():
    for tabular in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", latex_of({FILE: grid()}), re.DOTALL):
        num_columns = len(re.search(r"\{([lr]+)\}", tabular)[1])
        rows = [line for line in tabular.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {num_columns}


def test_a_reason_cannot_break_a_markdown_table():
    lines = [line for line in markdown_of({FILE: hostile()}).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}) == 1


def two_amounts() -> dict[str, RunRecord]:
    """Of one suite, in tables of their own."""
    longer = make_run([make_record(make_cell(max_new_tokens=128))], created="2026-11-21T10:00:00+00:00")
    return {FILE: grid(), LATEST: longer}


def test_every_latex_table_names_machine_and_settings_or_refers_to_the_table_that_does():
    floats = latex_of(two_amounts()).split(r"\end{sidewaystable}")[:-1]
    labels = [re.search(r"\\label\{(.*)\}", text)[1] for text in floats]
    assert len(set(labels)) == len(labels) == 4
    for number in (0, 2):
        assert "Example CPU" in floats[number]
        assert rf"settings are those of Table~\ref{{{labels[number]}}}" in floats[number + 1]


def test_a_narrow_latex_table_needs_nothing_but_booktabs_and_a_wide_one_is_turned():
    rows = newest_rows({FILE: grid()})
    narrow, wide = custom_tables.chosen_table(rows, ["T", "gamma"]), tables.cell_table(rows)
    assert formats.latex_page([narrow]).startswith("% Needs \\usepackage{booktabs}.\n")
    assert "sidewaystable" not in formats.latex_float(narrow, label="a")
    assert formats.latex_page([narrow, wide]).startswith("% Needs \\usepackage{booktabs,graphicx,rotating}.\n")
    assert formats.latex_float(wide, label="a").startswith(r"\begin{sidewaystable}")


def compiled(folder: Path, latex: str) -> str:
    """The log of pdflatex, run twice as references need."""
    packages = "% Needs ", r"\usepackage{", "}."
    (needs,) = (line for line in latex.splitlines() if line.startswith(packages[0]))
    document = rf"\documentclass{{article}}\usepackage[utf8]{{inputenc}}{needs[len(packages[0]) : -1]}"
    (folder / "t.tex").write_text(f"{document}\n\\begin{{document}}\n{latex}\n\\end{{document}}\n")
    for _ in range(2):
        subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=folder, check=True, capture_output=True, timeout=60)
    return (folder / "t.log").read_text(errors="replace")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
@pytest.mark.parametrize("runs", [{FILE: hostile()}, two_amounts(), on_backends()], ids=["hostile", "two", "backends"])
def test_latex_compiles_and_fits(tmp_path: Path, runs: dict[str, RunRecord]):
    rows = newest_rows(runs)
    printed = custom_tables.pivot_tables(rows, down="T", across="backend")
    latex = formats.latex_page([*suite_page.suite_tables(runs, rows), *printed])
    log = compiled(tmp_path, latex)
    assert not re.search(r"Overfull \\hbox|Float too large|multiply|undefined", log)


def test_outputs_of_fixed_length_show_what_was_decoded_after_their_end():
    cell = make_cell(end_token="ignored")
    record = make_record(cell)
    last = record.pairs[0].ar.token_ids[-1]
    run = make_run([record], prompt_format={"end_token_ids": f"{last}"})
    shares = [metrics.share_after_end_token(record, arm, end_token_ids={last}) for arm in ("ar", "sd")]
    (text,) = [row[-1].text for row in tables.cell_table(newest_rows({FILE: run})).body]
    assert text == ", ".join(f"{share:.1%}" for share in shares)
    assert "after the end" not in " ".join(tables.cell_table(newest_rows({FILE: make_run([make_record()])})).headers)


def test_the_caption_says_how_arms_were_timed_if_they_were_interleaved():
    run = grid()
    assert "timing" not in captions.caption_facts(run)
    pairs = tuple(replace(pair, interleaved=True) for pair in run.cells[0].pairs)
    some = replace(run, cells=(replace(run.cells[0], pairs=pairs), *run.cells[1:]))
    assert captions.caption_facts(some)["timing"].startswith("12 of 60 pairs: both arms advanced in turns")
    every = replace(run, cells=some.cells[:1])
    assert captions.caption_facts(every)["timing"] == "both arms advanced in turns"
