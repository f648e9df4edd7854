"""`specheat tables`: which files it writes, removes and leaves alone, and what it prints instead."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import msgspec
import pytest

from bench.commands import main
from bench.commands.tables import Tables
from tests.support.record_builder import make_cell, make_record, make_run

FILE = "example-2c/temperature_grid/records/20261120T100000Z-abcdef0123-reference.json"
LATEST = "example-2c/temperature_grid/records/20261121T100000Z-fedcba3210-reference.json"
BASELINE_FILE = "example-2c/baseline_strength/records/20261120T110000Z-abcdef0123-reference.json"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    grid = make_run([make_record(make_cell(temperature=t), gamma=1.4 - 0.4 * t) for t in (0.0, 0.5, 1.0)])
    baseline = make_run(suite="baseline_strength", created="2026-11-20T11:00:00+00:00")
    for file, run in {FILE: grid, BASELINE_FILE: baseline}.items():
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_bytes(msgspec.json.encode(run))
    return folder


def run_command(*arguments: str | Path) -> int:
    parser = ArgumentParser()
    Tables().configure(parser)
    return Tables().run(parser.parse_args(list(map(str, arguments))))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_tables_figures_and_an_index_and_leaves_records_alone(results: Path):
    before = contents(results)
    assert run_command(results) == 0
    after = contents(results)
    grid = "example-2c/temperature_grid"
    assert after.keys() - before.keys() == {
        "README.md",
        "example-2c/claims/README.md",
        "example-2c/figure-predicted.svg",
        *(f"example-2c/baseline_strength/{name}" for name in ("README.md", "table.tex")),
        *(f"{grid}/{name}" for name in ("README.md", "table.tex")),
        *(f"{grid}/figure-tiny-instructions{what}.svg" for what in ("", "-phases")),
    }
    assert all(after[file] == content for file, content in before.items())
    assert all(b"Derived from raw records" in after[file] for file in after.keys() - before.keys())


def test_links_are_relative_and_lead_to_files(results: Path):
    run_command(results)
    for page in results.rglob("README.md"):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        assert links
        assert all((page.parent / link).exists() for link in links)


def test_check_finds_what_regenerating_would_change_and_writes_nothing(results: Path, capsys):
    before = contents(results)
    assert run_command(results, "--check") == 1
    assert contents(results) == before
    run_command(results)
    assert run_command(results, "--check") == 0
    page = results / "example-2c" / "temperature_grid" / "README.md"
    page.write_text(page.read_text().replace("FASTER", "SLOWER"))
    capsys.readouterr()
    assert run_command(results, "--check") == 1
    assert "temperature_grid/README.md differs" in capsys.readouterr().out


def test_files_that_no_record_gives_any_more_are_found_and_removed(results: Path, capsys):
    run_command(results)
    suite = results / "example-2c" / "temperature_grid"
    left = suite / "figure-tiny-word-problems.svg"
    shutil.copy(suite / "figure-tiny-instructions.svg", left)
    own = suite / "figure-drawn-by-hand.svg"
    own.write_text("<svg/>")
    capsys.readouterr()
    assert run_command(results, "--suite", "baseline_strength", "--check") == 0
    assert run_command(results, "--check") == 1
    assert capsys.readouterr().out == f"{left} is left over: no record gives it\n"
    assert left.exists()
    assert run_command(results) == 0
    assert capsys.readouterr().out == f"removed {left}\n"
    assert own.exists()
    assert not left.exists()


def test_the_index_is_a_grid_of_suites_by_machines_with_studies_below(results: Path):
    study = results / "studies" / "example-2c" / "readme" / "20261120-commands.jsonl"
    study.parent.mkdir(parents=True)
    study.write_text("{}")
    run_command(results)
    index = (results / "README.md").read_text()
    assert "[2026-11-20, 1 record](example-2c/temperature_grid/README.md)" in index
    assert "[which hold](example-2c/claims/README.md)" in index
    assert "[files](studies/example-2c/readme)" in index
    assert not study.with_name("README.md").exists()


def test_files_that_would_not_change_are_not_touched(results: Path):
    run_command(results)
    times = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    run_command(results)
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == times


def test_two_processes_give_the_same_bytes(results: Path, tmp_path: Path):
    copies = []
    for hash_seed in ("1", "2"):
        copy = tmp_path / hash_seed
        shutil.copytree(results, copy)
        program = "import sys; from tests.bench.reporting.test_derived import run_command; sys.exit(run_command(sys.argv[1]))"
        subprocess.run(
            [sys.executable, "-c", program, copy],
            check=True,
            timeout=120,
            cwd=Path(__file__).parents[3],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            stdout=subprocess.DEVNULL,
        )
        copies.append(contents(copy))
    assert copies[0] == copies[1]
    assert "example-2c/temperature_grid/figure-tiny-instructions-phases.svg" in copies[0]


def test_one_machine_or_suite_can_be_regenerated_and_the_index_stays_whole(results: Path):
    assert run_command(results, "--machine", "example-2c", "--suite", "baseline_strength") == 0
    assert not list(results.rglob("*.svg"))
    assert "temperature_grid" in (results / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--machine", "abacus"], "expected records of abacus/* in"),
        (["--suite", "no_such"], "found example-2c/baseline_strength, example-2c/temperature_grid"),
    ],
)
def test_what_is_not_there_is_bad_input(results: Path, arguments: list[str], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_command(results, *arguments)


def test_with_columns_or_a_pivot_it_prints_tables_and_writes_nothing(results: Path, capsys):
    before = contents(results)
    assert run_command(results, "--columns", "T, gamma") == 0
    page = capsys.readouterr().out
    assert page.startswith("## temperature_grid on example-2c\n\n|   temperature |")
    assert f"[{FILE}]({results.as_posix()}/{FILE})" in page
    assert run_command(results, "--pivot", "T", "x", "backend", "--format", "terminal") == 0
    page = capsys.readouterr().out
    assert page.count("on example-2c: ") == page.count("temperature x backend") == 2
    assert run_command(results, "--pivot", "T", "x", "k", "--columns", "gamma_e2e", "--format", "latex") == 0
    page = capsys.readouterr().out
    assert page.startswith("% Needs \\usepackage{booktabs}.")
    assert page.count(r"\begin{table}") == 1
    assert run_command(results, "--format", "latex", "--suite", "temperature_grid") == 0
    assert "mechanism" in capsys.readouterr().out
    assert contents(results) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "T,nope"], "expected a column among T, k, backend, rule,"),
        (["--columns", "nope"], "gamma, gamma_e2e, gamma_predicted,"),
        (["--pivot", "T", "x", "nope"], "expected a name of cell identity among T, k, backend,"),
        (["--pivot", "T", "x", "temperature"], "expected two different names of cell identity, got temperature twice"),
        (["--pivot", "T", "by", "k"], "expected --pivot ROW x COLUMN, got T by k"),
        (["--columns", "T", "--check"], "expected --check alone"),
        (["--columns", "T", "--suite", "baseline_strength"], "found example-2c/temperature_grid"),
    ],
)
def test_what_cannot_be_printed_is_bad_input(results: Path, arguments: list[str], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_command(results, *arguments)


def test_a_broken_record_ends_in_one_line_and_exit_status_2(results: Path, capsys):
    (results / LATEST).write_text('{"schema": 1, "suite": ')
    assert main.main(["tables", str(results)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert LATEST in captured.err
    assert not list(results.rglob("README.md"))
