"""`specheat merge`: provenance of every line, and refusal of whatever cannot stand in one record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.commands import main
from bench.records import kd_matrix, token_length
from bench.records.kd_matrix import START, MatrixCell, MeasuredDraft
from bench.reporting.derived import derived_files
from tests.support.simulated_lengths import HEADER, simulated_text

JOB = {"recipe": "offline", "seed": 0, "trained": "adapters", "plan": {"num_tokens": 100}}
PLAN = {"arms": ["offline"], "kd_temperatures": [1.0], "seeds": [0], "domains": ["a"], "decode_temperatures": [1.0], "job": JOB}
ENVIRONMENT = {"cpu_model": "AMD EPYC", "num_physical_cores": 2, "device_type": "cpu", "harness_dirty": False}
CELL = MatrixCell("a", 1.0, (3, 4), (2.5, 3.0), (3.0, 4.0), (2.0, 3.5), (4, 5), (2.0, 2.5))


def draft(name: str, seed: int | None, cell: MatrixCell = CELL) -> MeasuredDraft:
    spent = {"text_by_target": 9, "text_by_draft": 0, "trained": 9} if name != START else {}
    at = None if name == START else 1.0
    return MeasuredDraft(name, name.partition("-")[0], at, 0.0, seed, spent, dict.fromkeys(spent, 1.5), (cell,))


def matrix(path: Path, seed: int, *, commit: str = "aaaaaaaaaa", start: MatrixCell = CELL, **changes: Any) -> Path:
    """Write a record with the start and one draft, as a process that trains one seed leaves it."""
    header = {
        "plan": PLAN | {"seeds": [seed]},
        "created": f"2026-11-2{seed}T12:00:00+00:00",
        "command": ["specheat", "kd-matrix", "--seeds", str(seed)],
        "environment": ENVIRONMENT | {"harness_commit": commit},
        "model_pair": "mine",
        "model_hashes": {"target": "1"},
    }
    kd_matrix.start(path, header | changes)
    with kd_matrix.adding(path) as add:
        add(draft(START, None, start))
        add(draft(f"offline-t1-seed{seed}", seed))
    return path


def merge(*paths: Path, out: Path) -> int:
    return main.main(["merge", *map(str, paths), "--out", str(out)])


def test_every_line_names_its_source_and_the_inputs_stay(tmp_path: Path) -> None:
    paths = [matrix(tmp_path / f"{seed}.jsonl", seed, commit=commit * 10) for seed, commit in enumerate("abc")]
    before = [path.read_bytes() for path in paths]
    assert merge(*paths[:2], out=tmp_path / "two.jsonl") == 0
    out = tmp_path / "results" / "amd-epyc-2c" / "kd_matrix" / "records" / "all.jsonl"
    assert merge(tmp_path / "two.jsonl", paths[2], out=out) == 0  # a merged record can be merged again
    assert [path.read_bytes() for path in paths] == before
    header, *lines = map(json.loads, out.read_text().splitlines())
    assert header["plan"] == PLAN | {"seeds": [0, 1, 2]}
    assert [source["file"] for source in header["sources"]] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert [source["command"][-1] for source in header["sources"]] == ["0", "1", "2"]
    assert [source["environment"]["harness_commit"][0] for source in header["sources"]] == ["a", "b", "c"]
    assert [(line["draft"], line["source"]) for line in lines] == [
        *((START, 0), ("offline-t1-seed0", 0)),
        *(("offline-t1-seed1", 1), ("offline-t1-seed2", 2)),
    ]
    found = kd_matrix.load(out)
    assert [line.seed for line in found.measured] == [None, 0, 1, 2]
    assert found.pair == "mine"
    page = dict(derived_files(tmp_path / "results"))[out.parents[1] / "README.md"].decode()
    assert "**merged from**: 0.jsonl (aaaaaaaaaa; specheat kd-matrix --seeds 0), 1.jsonl (bbbbbbbbbb; " in page


def with_job(**changes: Any) -> dict[str, Any]:
    return {"plan": PLAN | {"seeds": [1], "job": JOB | changes}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (with_job(plan={"num_tokens": 200}), "plan.job.plan.num_tokens (100 against 200)"),
        (with_job(trained="all"), "plan.job.trained (adapters against all)"),
        ({"plan": PLAN | {"kd_temperatures": [0.5]}}, "plan.kd_temperatures ([1.0] against [0.5])"),
        ({"model_hashes": {"target": "2"}}, "model_hashes.target (1 against 2)"),
        ({"model_pair": "other"}, "model_pair (mine against other)"),
        ({"environment": ENVIRONMENT | {"cpu_model": "Intel"}}, "cpu_model (AMD EPYC against Intel)"),
        ({"start": replace(CELL, tokens=(3, 5))}, "was measured along other texts than 0.jsonl"),
    ],
)
def test_unlike_records_are_refused_with_the_keys_that_differ(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = matrix(tmp_path / "0.jsonl", 0), matrix(tmp_path / "1.jsonl", 1, **changes)
    assert merge(*paths, out=tmp_path / "out.jsonl") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out.jsonl").exists()


def twice(folder: Path) -> tuple[Path, ...]:
    return matrix(folder / "0.jsonl", 0), matrix(folder / "again.jsonl", 0)


def alone(folder: Path) -> tuple[Path, ...]:
    return (matrix(folder / "0.jsonl", 0),)


def unfinished(folder: Path) -> tuple[Path, ...]:
    return matrix(folder / "0.jsonl", 0), matrix(folder / "1.partial.jsonl", 1)


def other_form(folder: Path) -> tuple[Path, ...]:
    path = folder / "x.jsonl"
    path.write_text(json.dumps({"command": [], "environment": {}, "created": "", "suite": "distill_speed"}) + "\n")
    return path, path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (twice, "expected each line once, got offline-t1-seed0 in 0.jsonl and in again.jsonl"),
        (alone, "expected at least two records, got 1"),
        (unfinished, "is unfinished"),
        (other_form, "expected records of KD matrices or of token_length"),
    ],
)
def test_what_is_no_set_of_records_is_refused(
    make: Callable[[Path], tuple[Path, ...]], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(*make(tmp_path), out=tmp_path / "out.jsonl") == 2
    assert said in capsys.readouterr().err


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    paths = matrix(tmp_path / "0.jsonl", 0), matrix(tmp_path / "1.jsonl", 1)
    before = paths[0].read_bytes()
    assert merge(*paths, out=paths[0]) == 2
    assert paths[0].read_bytes() == before


def test_token_lengths_of_other_temperatures_are_joined(tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(5), []
    for temperature in (0.5, 1.0):
        header = replace(HEADER, temperatures=(temperature,))
        path = token_length.start(tmp_path / str(temperature), header)
        judged = lambda t, prompt: simulated_text(rng, prompt, t, of_length=0.0, of_entropy=1.0)  # noqa: E731
        token_length.measure(path, header, judged, on_text=lambda done: None)
        paths.append(token_length.finish(path))
    assert merge(*paths, out=tmp_path / "both.jsonl") == 0
    both, single = token_length.load(tmp_path / "both.jsonl"), [token_length.load(path) for path in paths]
    assert both.header.temperatures == (0.5, 1.0)
    assert both.texts == (*single[0].texts, *single[1].texts)
