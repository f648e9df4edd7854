"""The export is read by pyperf's real command line, and its numbers are ours."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyperf
import pytest

import bench
from bench.analysis import metrics
from bench.commands import main
from bench.records.runs import RunRecord
from bench.reporting.export.pyperf import benchmark_suite, exportable
from tests.bench.reporting.export.test_frame import written
from tests.support.record_builder import failed_record, make_cell, make_record, make_run

ROOT = Path(__file__).parents[4]
DOCUMENT = ROOT / "docs" / "results.md"
RECORD = ROOT / "results/amd-epyc-2c/temperature_grid/records/20261123T004149Z-a5295b099d-reference.json"  # the document's
GRID = make_run([make_record(make_cell(temperature=t), gamma=1.25) for t in (0.0, 1.0)])


def pyperf_says(*arguments: str | Path) -> str:
    """What pyperf prints. It must end well and have nothing to say on standard error."""
    command = [sys.executable, "-m", "pyperf", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def exported(folder: Path, *asked: str) -> tuple[Path, Path]:
    assert main.main(["pyperf", *asked, "--out", str(folder)]) == 0
    return folder / "ar.json", folder / "sd.json"


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return exported(tmp_path_factory.mktemp("pyperf"), str(RECORD))


def speedups(first: Path, second: Path) -> dict[str, float]:
    """Benchmark -> how many times as fast the second file is, as `compare_to` prints it: two digits."""
    shown = pyperf_says("compare_to", "--verbose", first, second)  # else what is not significant is hidden
    rows = re.findall(r"^(.+)\n=+\n+Mean .*: ([\d.]+)x (faster|slower)$", shown, flags=re.MULTILINE)
    return {name: float(ratio) if word == "faster" else 1 / float(ratio) for name, ratio, word in rows}


def test_where_texts_are_equally_fast_pyperfs_ratio_is_gamma(tmp_path: Path) -> None:
    cells = [make_record(make_cell(temperature=t), gamma=gamma, noise=0) for t, gamma in ((0.0, 1.31), (1.0, 1.12))]
    written(tmp_path / "results", make_run(cells))
    ar, sd = exported(tmp_path / "out", str(tmp_path / "results"))
    gammas = {record.cell.label: metrics.gamma(record).estimate for record in cells}  # type: ignore[union-attr]
    assert speedups(ar, sd) == pytest.approx(gammas, abs=0.0051)


def test_pyperfs_ratio_of_a_committed_record_is_that_of_the_plain_means_of_its_texts(
    committed: tuple[Path, Path],
) -> None:
    rows = bench.frame(RECORD)
    rows = rows[(rows["ar_decode_tokens"] > 0) & (rows["sd_decode_tokens"] > 0)]
    rows = rows.assign(ar=rows["ar_decode_s"] / rows["ar_decode_tokens"], sd=rows["sd_decode_s"] / rows["sd_decode_tokens"])
    found = speedups(*committed)
    for made in pyperf.BenchmarkSuite.load(str(committed[0])):
        cell = made.get_metadata()
        own = rows[(rows["temperature"] == cell["temperature"]) & (rows["num_draft_tokens"] == cell["num_draft_tokens"])]
        assert len(own) == made.get_nvalue()
        assert found[made.get_name()] == pytest.approx(own["ar"].mean() / own["sd"].mean(), abs=0.0051)


def test_the_documents_table_is_what_pyperf_and_our_record_say(committed: tuple[Path, Path]) -> None:
    assert RECORD.name in DOCUMENT.read_text()
    table = re.findall(r"^  \| ([\d.]+) \| (\S+ \w+), .*? \| (.+) \|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    shown = pyperf_says("compare_to", "--verbose", *committed)
    said = re.findall(r"T=([\d.]+) k=\d+\n=+\n+Mean .*: (\S+ \w+)$", shown, flags=re.MULTILINE)
    ours = {made.get_metadata()["temperature"]: made.get_metadata() for made in pyperf.BenchmarkSuite.load(str(committed[0]))}
    assert table == [(temperature, ratio, ours[float(temperature)]["gamma"]) for temperature, ratio in said]


@pytest.mark.parametrize("command", ["hist", "stats", "check", "show", "metadata", "dump", "slowest"])
def test_pyperfs_viewers_read_the_export_of_a_committed_record(command: str, committed: tuple[Path, Path]) -> None:
    for file in committed:
        assert pyperf_says(command, file).strip()


def test_raw_values_are_seconds_and_loops_are_tokens() -> None:
    rows = exportable({"a.json": GRID}).rows
    for arm in ("ar", "sd"):
        for made, record in zip(benchmark_suite(rows, arm), GRID.cells, strict=True):  # type: ignore[arg-type]
            texts = [getattr(pair, arm) for pair in record.pairs]
            runs = made.get_runs()
            assert [run.get_loops() for run in runs] == [len(text.token_ids) - 1 for text in texts]
            seconds = [value * run.get_loops() for run in runs for value in run.values]
            assert seconds == pytest.approx([text.seconds - text.first_token_s for text in texts], rel=1e-12)
            assert made.mean() == statistics.mean(run.values[0] for run in runs)
            assert made.get_unit() == "second"


def test_a_pair_without_decoding_is_left_out_of_both_arms() -> None:
    record = make_record()
    short = replace(record.pairs[3], sd=replace(record.pairs[3].sd, token_ids=(1,), rounds=()), replay=None)
    record = replace(record, pairs=(*record.pairs[:3], short, *record.pairs[4:]))
    rows = exportable({"a.json": make_run([record])}).rows
    for arm in ("ar", "sd"):
        (made,) = benchmark_suite(rows, arm)  # type: ignore[arg-type]
        assert [run.get_metadata()["prompt"] for run in made.get_runs()] == [0, 1, 2, *range(4, 12)]


def test_metadata_has_pyperfs_names_and_no_host() -> None:
    env = GRID.environment | {
        "python": "3.11.9",
        "num_logical_cores": 4,
        "cpu_config": "0-3=performance",
        "ld_preload": "",
    }
    rows = exportable({"a.json": replace(GRID, environment=env)}).rows
    (first, _) = benchmark_suite(rows, "sd")
    found = first.get_metadata()
    expected = {
        "cpu_model_name": "Example CPU",
        "cpu_count": 4,
        "cpu_config": "0-3=performance",
        "python_version": "3.11.9",
        "commit_id": "abcdef0123",
        "torch": "2.13.0",
        "date": "2026-11-20 10:00:00",
        "temperature": 0.0,
        "verdict": "FASTER",
        "record": "a.json",
    }
    assert found.items() >= expected.items()
    assert not {"hostname", "cpu_model", "ld_preload"} & set(found)
    assert found["gamma"].startswith("1.2")


def test_names_tell_cells_apart_and_tags_say_what_there_are_several_of() -> None:
    cells = [
        make_cell(),
        make_cell(draft_temperature=0.5),
        make_cell(rule="one_hot"),
        make_cell(suite="other"),
    ]
    runs = {f"{number}.json": make_run([make_record(cell)], suite=cell.suite) for number, cell in enumerate(cells)}
    suites = [benchmark_suite(exportable(runs).rows, arm) for arm in ("ar", "sd")]
    assert suites[0].get_benchmark_names() == suites[1].get_benchmark_names()
    tags = {made.get_name(): made.get_metadata()["tags"] for made in suites[0]}
    assert tags == {
        "temperature_grid: reference tiny rejection T=1 k=4 draft_temperature=1": ["temperature_grid", "rejection"],
        "temperature_grid: reference tiny rejection T=1 k=4 draft_temperature=0.5": ["temperature_grid", "rejection"],
        "temperature_grid: reference tiny one_hot T=1 k=4 draft_temperature=1": ["temperature_grid", "one_hot"],
        "other: reference tiny rejection T=1 k=4 draft_temperature=1": ["other", "rejection"],
    }


def test_a_rule_that_is_lossy_by_design_is_marked_in_the_name() -> None:
    rows = exportable({"a.json": make_run([make_record(make_cell(rule="typical"))])}).rows
    assert benchmark_suite(rows, "sd").get_benchmark_names() == ["reference tiny typical T=1 k=4 LOSSY"]


def test_of_each_cell_the_newest_record_counts() -> None:
    newer = make_run([make_record(gamma=0.8)], created="2026-11-25T10:00:00+00:00")
    rows = exportable({"b.json": newer, "a.json": make_run([make_record()])}).rows
    assert [row.file for row in rows] == ["b.json"]


# What the document says of pytest-benchmark
TESTS = """
def test_kept(benchmark):
    benchmark.pedantic(sum, ([],), rounds=2)

def test_{name}(benchmark):
    import time
    benchmark.pedantic(time.sleep, ({seconds},), rounds=2)
"""


def benchmarked(folder: Path, *options: str, name: str, seconds: float) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(TESTS.format(name=name, seconds=seconds))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_benchmark.plugin", "--benchmark-only", *options]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=folder, env=alone)


def test_pytest_benchmarks_check_fails_for_a_slower_test_saves_it_and_passes_a_renamed_one(tmp_path: Path) -> None:
    check = ("--benchmark-compare=0001", "--benchmark-compare-fail=mean:900%", "-k", "not kept")
    assert benchmarked(tmp_path, "--benchmark-autosave", name="slow", seconds=0.001).returncode == 0
    slower = benchmarked(tmp_path, *check, "--benchmark-autosave", name="slow", seconds=0.1)
    assert slower.returncode != 0
    assert "Performance has regressed" in slower.stderr
    assert len(list(tmp_path.rglob("0002_*.json"))) == 1
    renamed = benchmarked(tmp_path, *check, name="renamed", seconds=0.1)
    assert renamed.returncode == 0, renamed.stdout + renamed.stderr


# The command
def test_invalid_cells_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [make_record(), make_record(make_cell(temperature=0.5), warmup_settled=False)]
    written(tmp_path / "results", make_run([*cells, failed_record(make_cell(temperature=0.0), error="out of memory")]))
    ar, sd = exported(tmp_path / "out", str(tmp_path / "results"))
    for file in (ar, sd):
        assert pyperf.BenchmarkSuite.load(str(file)).get_benchmark_names() == [cells[0].cell.label]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("INVALID, ")[2] for line in said] == ["error: out of memory", "warm-up never settled"]


def test_one_arm_may_be_asked_for_and_an_older_export_is_replaced(tmp_path: Path) -> None:
    written(tmp_path / "results", GRID)
    for _ in range(2):
        exported(tmp_path / "out", str(tmp_path / "results"), "--arm", "sd")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sd.json"]
    assert json.loads((tmp_path / "out" / "sd.json").read_text())["version"] == "1.0"


def other_machine() -> RunRecord:
    return replace(GRID, environment=GRID.environment | {"cpu_model": "Another CPU"})


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ((GRID, other_machine()), "expected records of one machine, got another-2c, example-2c"),
        ((make_run([make_record(warmup_settled=False)]),), "expected a valid cell to export, found"),
        ((make_run(),), "expected a valid cell to export, found no cells"),
    ],
    ids=["machines", "invalid", "empty"],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    runs: tuple[RunRecord, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in runs:
        written(tmp_path / "results", run)
    assert main.main(["pyperf", str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
