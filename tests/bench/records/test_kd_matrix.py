"""The record of a KD matrix: what is written is read back, reading never writes, and the pair is stored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.options.settings import DEFAULT_PAIR
from bench.records import kd_matrix
from bench.records.kd_matrix import MatrixCell, MeasuredDraft

PLAN = {"domains": ["a", "b"], "decode_temperatures": [1.0], "job": {"recipe": "offline", "seed": 0}}
HEADER: dict[str, Any] = {
    "plan": PLAN,
    "created": "2026-11-22T12:54:00+00:00",
    "command": ["specheat", "kd-matrix"],
    "environment": {
        "cpu_model": "AMD EPYC",
        "num_physical_cores": 2,
        "device_type": "cpu",
        "harness_commit": "0123456789",
    },
}
CELLS = tuple(MatrixCell(domain, 1.0, (3, 4), (2.5, 3.0), (3.0, 4.0), (2.0, 3.5), (4, 5), (2.0, 2.5)) for domain in "ab")
DRAFT = MeasuredDraft("offline-t1-seed0", "offline", 1.0, 0.0, 0, {"steps": 9}, {"train": 1.5}, CELLS)


def written(folder: Path, *drafts: MeasuredDraft, **changes: Any) -> Path:
    path = folder / kd_matrix.RECORD
    kd_matrix.start(path, HEADER | changes)
    with kd_matrix.adding(path) as add:
        for draft in drafts:
            add(draft)
    return path


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    found = kd_matrix.load(written(tmp_path, DRAFT, model_pair="mine"))
    assert (found.plan, found.measured, found.pair) == (PLAN, (DRAFT,), "mine")
    assert found.domains == ("a", "b")
    assert found.on("b").measured[0].cells == CELLS[1:]


def test_a_torn_last_line_is_left_out_and_reading_does_not_write(tmp_path: Path) -> None:
    path = written(tmp_path, DRAFT)
    torn = path.read_bytes() + b'{"draft": "onl'
    path.write_bytes(torn)
    assert kd_matrix.load(path).measured == (DRAFT,)
    assert path.read_bytes() == torn
    with kd_matrix.adding(path) as add:
        add(DRAFT)
    assert kd_matrix.load(path).measured == (DRAFT, DRAFT)


def test_a_second_process_cannot_add_to_a_record(tmp_path: Path) -> None:
    path = written(tmp_path, DRAFT)
    code = (
        "import sys; from pathlib import Path; from bench.records import kd_matrix\n"
        "with kd_matrix.adding(Path(sys.argv[1])): pass"
    )
    with kd_matrix.adding(path):
        refused = subprocess.run([sys.executable, "-c", code, str(path)], check=False, capture_output=True, text=True)
    assert "another process is still writing it; its drafts are kept" in refused.stderr
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0
    assert kd_matrix.load(path).measured == (DRAFT,)


@pytest.mark.parametrize(
    ("changes", "pair"),
    [
        ({}, DEFAULT_PAIR),
        ({"command": "specheat kd-matrix --pair mini-t5"}, "mini-t5"),
        ({"model_pair": {"name": "mine"}}, "mine"),
    ],
)
def test_older_records_have_a_pair_too(changes: dict[str, Any], pair: str, tmp_path: Path) -> None:
    assert kd_matrix.load(written(tmp_path, **changes)).pair == pair


def test_a_record_of_another_kind_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / kd_matrix.RECORD
    for content in (b"", b"{}\n", b"[1]\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{kd_matrix.RECORD} is not a record of a KD matrix"):
            kd_matrix.load(path)


def test_drafts_of_like_records_are_joined_and_the_newest_line_counts(tmp_path: Path) -> None:
    again = MeasuredDraft(**{name: getattr(DRAFT, name) for name in DRAFT.__slots__} | {"seconds": {"train": 9.0}})
    other_plan = PLAN | {"decode_temperatures": [0.5]}
    records = [
        written(tmp_path / "1", DRAFT),
        written(tmp_path / "2", DRAFT, plan=other_plan),
        written(tmp_path / "3", again),
    ]
    newest, oldest = kd_matrix.merged(records)
    assert newest.measured == (again,)
    assert oldest.plan == other_plan


def test_a_stored_record_is_named_by_its_moment_and_commit(tmp_path: Path) -> None:
    record = written(tmp_path / "out", DRAFT)
    path = kd_matrix.store(tmp_path / "out", tmp_path / "results", suite="paradigm")
    place = "amd-epyc-2c/paradigm/records/20261122T125400Z-0123456789.jsonl"
    assert path.relative_to(tmp_path / "results") == Path(place)
    assert path.read_bytes() == record.read_bytes()


def test_a_stored_record_is_never_replaced(tmp_path: Path) -> None:
    record = written(tmp_path / "out", DRAFT)
    stored = kd_matrix.store(tmp_path / "out", tmp_path / "results")
    before = stored.stat()
    assert kd_matrix.store(tmp_path / "out", tmp_path / "results") == stored
    assert stored.stat() == before
    record.write_bytes(record.read_bytes() + b"{}\n")
    with pytest.raises(ValueError, match="is already there with other content"):
        kd_matrix.store(tmp_path / "out", tmp_path / "results")
    assert stored.stat() == before
