"""`specheat compare`: what BASE and HEAD may be, what is printed, and the exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.analysis import comparison
from bench.commands import main
from bench.commands.compare import find_side, load_file
from bench.measurement.suite_run import alone
from bench.records import files
from bench.records.runs import CellRecord, RunRecord
from tests.support.children import run_suites
from tests.support.record_builder import failed_record, make_cell, make_record, make_run
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

TEMPERATURES = (0.0, 0.5, 1.0)


def records(**changes: Any) -> list[CellRecord]:
    return [make_record(make_cell(temperature=temperature), **changes) for temperature in TEMPERATURES]


def write(path: Path, run: RunRecord) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(run))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base" / "m" / "temperature_grid" / "a.json", make_run(records()))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main.main(["compare", *map(str, arguments)])
    return status, *capsys.readouterr()


# What is printed, and the exit codes
def test_a_slow_down_of_gamma_is_a_regression(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = write(tmp_path / "head.json", make_run(records(gamma=0.9)))
    status, text, _ = run(capsys, base, head)
    assert status == 1
    assert max(map(len, text.splitlines())) <= 130
    assert text.splitlines()[-1].startswith("REGRESSION: gamma SLOWER in 3 cells; 3 cells compared, ")
    assert "one run of each side does not show how far" in " ".join(text.split())
    of_gamma = [line.split() for line in text.splitlines() if re.search(r" gamma +[0-9]", line)]
    assert ["SLOWER" in words for words in of_gamma] == [True] * 3


def test_without_a_regression_only_strict_minds_what_is_inconclusive(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = write(tmp_path / "head.json", make_run(records(gamma=1.5)))
    for options, expected in (((), 0), (("--strict",), 3)):
        status, text, _ = run(capsys, base, head, *options)
        assert (status, text.splitlines()[-1].split(";")[0]) == (expected, "No regression")
    assert run(capsys, base, base, "--strict")[0] == 0


def test_missing_invalid_and_new_cells_say_why(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = records()
    renamed = replace(third, cell=replace(third.cell, prompts_hash="ffff"))
    head = write(tmp_path / "head.json", make_run([first, failed_record(second.cell, error="boom\nhere"), renamed]))
    status, text, _ = run(capsys, base, head)
    assert status == 1
    assert "REGRESSION: 1 cell INVALID, 1 cell MISSING; 1 cell compared, 1 cell NEW, 4 SAME" in text
    assert "HEAD: error: boom here" in text
    assert "the nearest differs in prompts_hash (01234567 against ffff)" in text


def test_markdown_is_a_table_with_what_it_rests_on(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = make_run().environment | {
        "torch": "2.14.0", "harness_commit": "1234567890", "harness_dirty": True
    }  # fmt: skip
    head = write(tmp_path / "head.json", make_run(records(gamma=0.9), environment=environment))
    status, text, _ = run(capsys, base, head, "--markdown", "--margin", "0.05")
    assert status == 1
    lines = text.splitlines()
    assert lines[0].startswith("### specheat: ")
    assert lines[2].startswith("**REGRESSION: gamma SLOWER in 3 cells")
    assert "| **SLOWER**" in text
    facts = dict(line[4:].split("**: ", 1) for line in lines if line.startswith("- **"))
    assert facts["gamma"].startswith("autoregressive seconds per token / speculative seconds per token")
    assert facts["versions"] == "torch 2.13.0 (BASE), 2.14.0 (HEAD); transformers 5.19.0"
    assert "within 5.0% or 2 points of alpha" in facts["verdict"]
    assert "Holm's method over 3 numbers" in facts["verdict"]
    assert "num_prompts 12" in facts["every cell"]
    assert facts["machine"] == "Example CPU, 2 usable cores, 16 GiB"
    assert facts["HEAD"] == f"{head}: commit 1234567890+, head.json"


def test_suites_have_tables_of_their_own_and_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [*records(), *(replace(r, cell=replace(r.cell, suite="draft_length")) for r in records())]
    path = write(tmp_path / "both.json", make_run(both))
    status, text, _ = run(capsys, path, path)
    assert status == 0
    assert [line for line in text.splitlines() if line in ("temperature_grid", "draft_length")] == [
        "temperature_grid",
        "draft_length",
    ]
    _, text, _ = run(capsys, path, path, "--suite", "draft_length")
    assert "temperature_grid" not in text


def test_help_says_what_the_sides_and_the_exit_codes_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["compare", "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "commit, folder of results, record, or file of pytest-" in said
    assert "Exit codes: 0 no regression, 1 regression" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda base, empty: [base, "no such thing"], "expected a folder of results, a record (.json), a file of"),
        (lambda base, empty: [base, empty], "expected records in"),
        (lambda base, empty: [base, base, "--suite", "other"], "expected cells of suite other, got temperature_grid"),
        (lambda base, empty: [base, base, "--margin", "0"], "expected --margin > 0, got '0'"),
        (lambda base, empty: [base, "abcdef0123", "--results", empty / "none"], "name another by --results"),
        (lambda base, empty: [base, "abcdef0123", "--results", empty.parent / "base"], ""),
        (lambda base, empty: [base, "fedcba9876", "--results", empty.parent / "base"], "(fedcba9876) in"),
    ],
)
def test_bad_input_ends_in_one_line(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path, Path], list[object]],
    said: str,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    status, text, error = run(capsys, *arguments(base, empty))
    if not said:
        assert status == 0  # a commit that this repository does not have, by its digits
        return
    assert (status, text) == (2, "")
    assert said in error
    assert error.count("\n") == 1


def test_unlike_machines_end_in_the_keys_that_differ(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = make_run().environment | {"ram_gib": 32}
    head = write(tmp_path / "head.json", make_run(records(), environment=environment))
    status, _, error = run(capsys, base, head)
    assert status == 2
    assert "ram_gib (16 against 32)" in error


# What a side may be
@pytest.mark.parametrize("content", ["{", '{"benchmarks": [{"extra_info": {}}]}', '{"schema": 99}', '{"a": 1}'])
def test_a_file_that_is_neither_names_itself(tmp_path: Path, content: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(ValueError, match=r"odd\.json: "):
        find_side(str(tmp_path / "odd.json"), results=tmp_path)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_commit_stands_for_the_records_that_were_measured_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # of a hook that runs the tests
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    commits = []
    for message in ("one", "two"):
        git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", message)
        commits.append(git(tmp_path, "rev-parse", "HEAD"))
    git(tmp_path, "tag", "v1", commits[0])
    monkeypatch.chdir(tmp_path)
    for number, (commit, dirty) in enumerate([(commits[0], False), (commits[0], True), (commits[1], True)]):
        environment = make_run().environment | {"harness_commit": commit[:10], "harness_dirty": dirty}
        write(tmp_path / "results" / "m" / "s" / f"{number}.json", make_run(records(), environment=environment))
    found = {name: sorted(find_side(name, results=Path("results")).runs) for name in ("v1", "HEAD~1", "trunk")}
    clean = ["m/s/0.json"]
    assert found == {"v1": clean, "HEAD~1": clean, "trunk": ["m/s/2.json"]}
    with pytest.raises(ValueError, match="expected a folder of results, a record"):
        find_side("v2", results=Path("results"))


def benchmark_file(path: Path, *runs: RunRecord) -> Path:
    """As the suites leave it, without what pytest-benchmark says itself."""
    of_cells = [msgspec.to_builtins(alone(record, run)) for run in runs for record in run.cells]
    others = [{"name": "somebody else's", "extra_info": {"rows": 3}}]
    benchmarks = [{"extra_info": {"backend": "reference", "specheat": one}} for one in of_cells]
    path.write_text(json.dumps({"machine_info": {}, "benchmarks": others + benchmarks}))
    return path


def test_a_file_of_pytest_benchmark_compares_like_the_record_of_the_same_run(base: Path, tmp_path: Path) -> None:
    run_of_base = files.load_run(base)
    found = comparison.compare(
        find_side(str(base), results=tmp_path),
        find_side(str(benchmark_file(tmp_path / "b.json", run_of_base)), results=tmp_path),
    )
    assert [cell.status for cell in found.cells] == ["COMPARED"] * 3
    told = [outcome.reason for cell in found.cells for outcome in cell.outcomes]
    assert len(told) == 12
    assert all(reason.endswith("is the same on every prompt") for reason in told)


def test_a_cell_that_is_invalid_is_so_in_the_file_of_pytest_benchmark(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = records()
    broken = make_run([replace(first, throttle=("thermal",)), *others])
    status, text, _ = run(capsys, base, benchmark_file(tmp_path / "b.json", broken))
    assert status == 1
    assert "HEAD: error: throttled: thermal" in text


def test_a_suite_leaves_its_cells_in_the_file_of_pytest_benchmark(tmp_path: Path) -> None:
    target = tiny_llama(seed=1)
    checkpoints = [save_checkpoint(m, tmp_path / n) for n, m in (("t", target), ("d", nearby(target, seed=2)))]
    done = run_suites(
        *("suites/test_temperature_grid.py", "--target", checkpoints[0], "--draft", checkpoints[1]),
        *("--preset", "smoke", "--temperatures", "0.5", "--num-prompts", "2", "--max-new-tokens", "8"),
        *("--chat-template", "none", "--results", str(tmp_path / "results")),
        f"--benchmark-json={tmp_path / 'benchmark.json'}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").rglob("*.json")
    whole = files.load_run(path)
    assert list(load_file(tmp_path / "benchmark.json").values()) == [alone(whole.cells[0], whole)]
