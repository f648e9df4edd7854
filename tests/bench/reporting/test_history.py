"""Histories: the same cell over its records, never over unlike machines or models, and what changed in between."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bench.analysis import metrics
from bench.commands import main
from bench.records.runs import CellRecord, RunRecord
from bench.reporting import captions, history, numbers
from bench.reporting.table import MISSING, Table
from tests.bench.reporting.export.test_frame import written
from tests.support.record_builder import make_cell, make_record, make_run

ENVIRONMENT = make_run().environment


def run_on(day: int, cells: Iterable[CellRecord] = (), *, env: dict[str, Any] | None = None, **changes: Any) -> RunRecord:
    """A run of that day of November, of a commit of its own."""
    own = {"harness_commit": f"commit{day:04}", **(env or {})}
    cells = tuple(cells) or (make_record(),)
    return make_run(cells, created=f"2026-11-{day:02}T10:00:00+00:00", environment=ENVIRONMENT | own, **changes)


def runs_of(*runs: RunRecord) -> dict[str, RunRecord]:
    return {f"{number}.json": run for number, run in enumerate(runs)}


def texts(table: Table) -> dict[str, list[str]]:
    bodies = zip(*table.body, strict=True)
    return {
        header.replace("\n", " "): [entry.text for entry in entries]
        for header, entries in zip(table.headers, bodies, strict=True)
    }


def test_records_of_one_cell_are_one_history_oldest_first() -> None:
    fast, slow = make_record(gamma=1.3), make_record(gamma=1.1)
    (found,) = history.histories(runs_of(run_on(22, [slow]), run_on(20, [fast])))
    shown = texts(history.tables([found])[0])
    assert shown["date, UTC"] == ["2026-11-20 10:00", "2026-11-22 10:00"]
    assert shown["commit"] == ["commit0020", "commit0022"]
    assert shown["gamma"] == [numbers.interval_text(metrics.gamma(record)) for record in (fast, slow)]
    assert shown["alpha counted"] == [numbers.interval_text(metrics.counted_alpha(record)) for record in (fast, slow)]
    assert shown["verdict"] == ["FASTER", "FASTER"]
    ar, sd = (metrics.seconds_per_token(fast, arm) for arm in ("ar", "sd"))
    assert float(shown["AR ms/token"][0]) == pytest.approx(1000 * ar.estimate, rel=0.02)  # type: ignore[union-attr]
    assert float(shown["SD ms/token"][0]) == pytest.approx(1000 * sd.estimate, rel=0.02)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "other",
    [
        run_on(21, [make_record(make_cell(seed=1))]),
        run_on(21, [make_record(make_cell(concurrency=4))]),
        run_on(21, model_hashes={"target": "aaaaaaaa11112222", "draft": "another draft"}),
        run_on(21, env={"cpu_model": "Another CPU"}),
        run_on(21, env={"ram_gib": 32}),
        run_on(21, env={"OMP_NUM_THREADS": "1"}),
    ],
    ids=["seed", "option", "draft", "CPU", "memory", "threads"],
)
def test_another_cell_model_or_machine_is_another_history(other: RunRecord) -> None:
    found = history.histories(runs_of(run_on(20), other, run_on(22)))
    assert [len(one) for one in found] == [2, 1]


def test_drafts_that_a_cell_does_not_use_are_not_its_models() -> None:
    own = make_run().model_hashes
    found = history.histories(runs_of(run_on(20), run_on(21, model_hashes=own | {"draft drafts/other": "another draft"})))
    assert [len(one) for one in found] == [2]


def test_cells_of_several_records_come_first() -> None:
    alone, twice = make_record(make_cell(temperature=0.0)), make_record(make_cell(temperature=1.0))
    found = history.histories(runs_of(run_on(20, [alone, twice]), run_on(21, [twice])))
    assert [(one[0].record.cell.temperature, len(one)) for one in found] == [(1.0, 2), (0.0, 1)]


def test_only_versions_and_settings_that_changed_are_named() -> None:
    settings = {"attention": "sdpa", "threads": 2}
    before = run_on(20, env={"torch": "2.13.0"}, backend_settings=settings | {"torch": "2.13.0"})
    after = run_on(21, env={"torch": "2.14.0"}, backend_settings=settings | {"torch": "2.14.0", "threads": 4, "compiled": True})
    (found,) = history.histories(runs_of(before, after))
    changed = texts(history.tables([found])[0])["changed since the row before"]
    assert changed == ["", f"threads 2 → 4, torch 2.13.0 → 2.14.0, compiled {MISSING} → True"]


def test_uncommitted_changes_and_foreign_backends_are_marked() -> None:
    assert captions.commit_text(run_on(20, env={"harness_dirty": True})) == "commit0020+"
    foreign = {"backends_commit": "1234567890", "backends_dirty": False}
    assert captions.commit_text(run_on(20, env=foreign)) == "commit0020 (backends 1234567890)"


def test_an_invalid_record_shows_no_gamma_but_its_reason() -> None:
    (found,) = history.histories(runs_of(run_on(20), run_on(21, [make_record(warmup_settled=False)])))
    table = history.tables([found])[0]
    shown = texts(table)
    assert shown["gamma"][1] == shown["SD ms/token"][1] == MISSING
    assert shown["gamma"][0] != MISSING
    assert table.notes == ("warm-up never settled",)
    assert [entry.note for entry in table.body[1]] == [None, None, 1, None, None, None, None, None]


def test_a_rule_that_is_lossy_by_design_is_marked() -> None:
    (found,) = history.histories(runs_of(run_on(20, [make_record(make_cell(rule="typical"))])))
    assert texts(history.tables([found])[0])["gamma"][0].endswith("] LOSSY")


# Figure
def test_both_formats_are_drawn_and_the_same_records_give_the_same_bytes() -> None:
    cells = [make_record(make_cell(temperature=t)) for t in (0.0, 1.0)]
    found = history.histories(runs_of(run_on(20, cells), run_on(21, cells), run_on(22, cells, env={"ram_gib": 32})))
    svg, png = history.images(found, ("svg", "png"))
    assert b"<svg" in svg
    assert png.startswith(b"\x89PNG")
    assert history.images(found, ("svg", "png")) == (svg, png)


def test_a_figure_leaves_out_invalid_gammas_and_cells_of_one_record() -> None:
    cells = [make_record(), make_record(make_cell(temperature=0.0))]
    invalid = make_record(warmup_settled=False)
    found = history.histories(runs_of(run_on(20, cells), run_on(21, [invalid]), run_on(22)))
    gamma_axes, alpha_axes = history.figure(found).subfigs[0].axes
    (gamma,), (alpha,) = gamma_axes.containers, alpha_axes.containers
    assert gamma.lines[0].get_xdata().tolist() == [0, 2]
    assert alpha.lines[0].get_xdata().tolist() == [0, 1, 2]
    assert [tick.get_text() for tick in gamma_axes.get_xticklabels()][1] == "2026-11-21\ncommit0021"


def test_machines_have_panels_of_their_own() -> None:
    other = {"cpu_model": "Another CPU"}
    found = history.histories(runs_of(run_on(20), run_on(21), run_on(22, env=other), run_on(23, env=other)))
    parts = history.figure(found).subfigs
    assert [part.get_suptitle().splitlines()[0] for part in parts] == [
        "temperature_grid on example-2c",
        "temperature_grid on another-2c",
    ]
    assert [len(part.axes[0].get_xticks()) for part in parts] == [2, 2]


# The command
@pytest.fixture
def results(tmp_path: Path) -> Path:
    cells = [make_record(make_cell(temperature=t)) for t in (0.0, 1.0)]
    other = make_record(make_cell(backend="other", rule="one_hot", num_draft_tokens=2))
    written(tmp_path / "results", run_on(20, cells))
    written(tmp_path / "results", run_on(21, [cells[1], other], env={"harness_dirty": True}))
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ((), ["reference tiny rejection T=1 k=4", "other tiny one_hot T=1 k=2", "reference tiny rejection T=0 k=4"]),
        (("--temperature", "0"), ["reference tiny rejection T=0 k=4"]),
        (("--backend", "other"), ["other tiny one_hot T=1 k=2"]),
        (("--rule", "one_hot"), ["other tiny one_hot T=1 k=2"]),
        (("--num-draft-tokens", "2"), ["other tiny one_hot T=1 k=2"]),
    ],
)
def test_a_table_a_cell_and_options_choose_cells(
    options: tuple[str, ...], labels: list[str], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["history", str(results), *options]) == 0
    shown = capsys.readouterr().out
    titles = [line for line in shown.splitlines() if line.startswith("temperature_grid on")]
    assert titles == [f"temperature_grid on example-2c: {label}" for label in labels]
    assert captions.FORMULA in " ".join(shown.split())


def test_markdown_links_to_the_raw_records_and_a_figure_is_written(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = results.parent / "history"
    assert main.main(["history", str(results), "--markdown", "--figure", str(drawn)]) == 0
    assert {path.name for path in results.parent.glob("history.*")} == {"history.svg", "history.png"}
    shown = capsys.readouterr().out
    first, *_ = shown.split("\n## ")
    assert first.startswith("## temperature_grid on example-2c: reference tiny rejection T=1 k=4")
    assert "commit0021+" in first
    assert shown.count("**formula**") == 1
    for path in results.rglob("*.json"):
        assert f"({path.as_posix()})" in first


def test_an_ending_selects_one_format(results: Path) -> None:
    assert main.main(["history", str(results), "--figure", str(results.parent / "history.svg")]) == 0
    assert [path.name for path in results.parent.glob("history.*")] == ["history.svg"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--temperature", "0.3"), "expected a cell with these options, found other tiny one_hot"),
        (("--temperature", "0", "--figure", "f.svg"), "at least two records to draw"),
        (("--suite", "nothing"), "expected records of nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    options: tuple[str, ...], said: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["history", str(results), *options]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not shown.out
