"""`specheat publish`: what is copied, what is refused, and that nothing is copied if one record is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.commands import main
from bench.records.files import write_run
from tests.support.record_builder import make_cell, make_record, make_run


def stored(runs: Path, **changes: Any) -> Path:
    environment = make_run().environment | {"harness_dirty": False} | changes.pop("env", {})
    run = make_run([make_record(make_cell(num_prompts=2))], environment=environment, **changes)
    return write_run(runs, run, backend="reference")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def published(tmp_path: Path, *arguments: object) -> int:
    return main.main(["publish", *map(str, arguments), "--results", str(tmp_path / "results")])


def test_records_are_copied_and_their_machine_is_regenerated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = stored(tmp_path / "runs")
    (tmp_path / "runs" / "note.txt").write_text("mine")
    assert published(tmp_path, tmp_path / "runs") == 0
    copy = tmp_path / "results" / record.relative_to(tmp_path / "runs")
    assert copy.read_bytes() == record.read_bytes()
    assert record.exists()
    suite = copy.parents[1]
    assert {"README.md", "table.tex"} < {path.name for path in suite.iterdir()}
    first, *others = capsys.readouterr().out.splitlines()
    assert first == f"{copy} is new"
    assert str(suite / "README.md") in others
    assert str(tmp_path / "results" / "README.md") in others
    assert main.main(["tables", str(tmp_path / "results"), "--check"]) == 0


def test_a_record_that_is_published_already_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = stored(tmp_path / "runs")
    assert published(tmp_path, record) == 0
    before = files(tmp_path)
    capsys.readouterr()
    assert published(tmp_path, record) == 0
    assert "is already published" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_a_record_of_uncommitted_code_takes_an_option(tmp_path: Path) -> None:
    record = stored(tmp_path / "runs", env={"harness_dirty": True})
    assert published(tmp_path, record) == 2
    assert published(tmp_path, record, "--allow-dirty") == 0


def unfinished(runs: Path) -> list[Path]:
    record = stored(runs)
    return [record.rename(record.with_suffix(".partial.jsonl"))]


def only_unfinished(runs: Path) -> list[Path]:
    unfinished(runs)
    return [runs]


def dirty_second(runs: Path) -> list[Path]:
    return [stored(runs), stored(runs, suite="draft_length", env={"backends_dirty": True})]


def same_name_other_content(runs: Path) -> list[Path]:
    return [stored(runs), stored(runs.with_name("others"), preset="smoke")]


def broken(runs: Path) -> list[Path]:
    record = stored(runs)
    record.write_text("{")
    return [record]


def lines_of_no_suite(runs: Path) -> list[Path]:
    record = stored(runs).with_suffix(".jsonl")
    header = {"command": "specheat own", "created": "2026-11-20T10:00:00+00:00", "environment": {}}
    record.write_text(json.dumps(header) + "\n")
    return [record]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unfinished, "is unfinished: end the run with --resume"),
        (only_unfinished, "expected finished records in"),
        (dirty_second, "was measured with uncommitted changes"),
        (same_name_other_content, "already there with other content"),
        (broken, "Input data was truncated"),
        (lines_of_no_suite, "because it does not name its suite"),
        (lambda runs: [runs / "none.json"], "No such file"),
    ],
)
def test_one_record_that_cannot_be_published_stops_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], list[Path]], message: str
) -> None:
    assert published(tmp_path, *make(tmp_path / "runs")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
