"""Records of schema 1 are read as if they had been written now."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.options.settings import INFLATED
from bench.records.files import load_run
from bench.records.runs import Cell, RunRecord
from tests.support.record_builder import PAIR, make_cell, make_record, make_run

TYPED = ("concurrency", "draft_length", "schedule", "inflation")


def as_schema_1(run: RunRecord, options: list[list[Any]], command: str) -> dict[str, Any]:
    old = json.loads(json.dumps(asdict(run))) | {"schema": 1, "command": command}
    del old["model_pair"]["inflation"]
    for record in old["cells"]:
        for name in TYPED:
            del record["cell"][name]
        record["cell"]["options"] = options
    return old


def read_as_schema_1(tmp_path: Path, cell: Cell, options: list[list[Any]], command: str = "pytest") -> RunRecord:
    pair = replace(PAIR, name=cell.pair)
    run = make_run([make_record(replace(cell, inflation=""))], model_pair=pair)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(as_schema_1(run, options, command)))
    return load_run(path)


@pytest.mark.parametrize(
    ("options", "typed"),
    [
        ([], {}),
        ([["concurrency", 4]], {"concurrency": 4}),
        ([["concurrency", 1]], {}),
        ([["draft_length", "adaptive"], ["compile", "true"]], {"draft_length": "adaptive"}),
        ([["schedule", "1@0,0.25@24"]], {"schedule": ((0, 1.0), (24, 0.25))}),
    ],
)
def test_options_that_identify_a_cell_become_its_fields(
    options: list[list[Any]], typed: dict[str, Any], tmp_path: Path
) -> None:
    run = read_as_schema_1(tmp_path, make_cell(), options)
    kept = (("compile", "true"),) if len(options) == 2 else ()
    assert run.cells[0].cell == make_cell(**typed, options=kept)
    assert run.cells[0].pairs == make_record().pairs


def test_the_inflation_comes_from_the_name_of_the_pair(tmp_path: Path) -> None:
    name = f"tiny{INFLATED}layers=4,hidden=64"
    run = read_as_schema_1(tmp_path, make_cell(pair=name), [])
    assert run.cells[0].cell == make_cell(pair=name, inflation="layers=4,hidden=64")
    assert run.model_pair == replace(PAIR, name=name, inflation="layers=4,hidden=64")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("pytest --benchmark-only suites/", ("pytest", "--benchmark-only", "suites/")),
        ("__main__.py --benchmark-only", ("python", "-m", "pytest", "--benchmark-only")),
        ("pytest --system-prompt don't", ("pytest", "--system-prompt", "don't")),
        ("pytest -k 'a and b'", ("pytest", "-k", "a and b")),
    ],
)
def test_the_command_becomes_a_list_of_arguments(command: str, words: tuple[str, ...], tmp_path: Path) -> None:
    assert read_as_schema_1(tmp_path, make_cell(), [], command).command == words
