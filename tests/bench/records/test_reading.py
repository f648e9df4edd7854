"""Reading a record opens it to read, whatever reads it: nothing in its folder is written, locked, truncated or removed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.doctor import checks
from bench.commands import main
from bench.records import files, journal, kd_matrix, token_length
from bench.records.journal import Journal
from tests.bench.records.test_journal import HEADER
from tests.bench.records.test_merge import matrix
from tests.support.simulated_lengths import HEADER as LENGTHS
from tests.support.simulated_lengths import simulated, stored

CHANGES = ("os.truncate", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.utime", "fcntl.lockf", "fcntl.flock")
watched: list[tuple[Path, list[str]]] = []


def _watch(event: str, arguments: tuple) -> None:
    """Note what changes files below the watched folder. A hook, because permissions do not stop a superuser."""
    if not watched or event not in ("open", *CHANGES):
        return
    folder, seen = watched[-1]
    if event == "open":
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if writes and isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)):
            seen.append(f"{event} {path}")
    elif event.startswith("fcntl") or str(arguments[0]).startswith(str(folder)) or isinstance(arguments[0], int):
        seen.append(f"{event} {arguments[0]}")


sys.addaudithook(_watch)


@pytest.fixture
def changes(tmp_path: Path) -> Iterator[list[str]]:
    """Return what changes the folder of the test from now on, and take its permissions to write."""
    seen: list[str] = []
    yield seen
    watched.clear()
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)


def only_read(folder: Path, seen: list[str]) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    watched.append((folder, seen))


def test_records_and_unfinished_ones_in_a_read_only_folder_can_be_read(tmp_path: Path, changes: list[str]) -> None:
    results = tmp_path / "results"
    record = matrix(results / "amd-epyc-2c" / "kd_matrix" / "records" / "20261120T120000Z-aaaaaaaaaa.jsonl", 0)
    lengths = stored(simulated(6), results)
    begun = token_length.start(results / "begun", LENGTHS)
    open_journal = Journal.start(results, HEADER, backend="fake")
    open_journal.close()
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    only_read(tmp_path, changes)
    assert len(kd_matrix.load(record).measured) == 2
    assert token_length.load(lengths).texts
    assert journal.find_resumable(results, HEADER, backend="fake") == (open_journal.path, ())
    assert token_length.find_resumable(results / "begun", LENGTHS) == (begun, ())
    assert "unfinished run" in checks.unfinished(open_journal.path, results)[1]
    assert files.line_header(record)
    assert main.main(["claims", str(results)]) == 0
    assert main.main(["tables", str(results), "--check"]) == 1  # lists what it would write
    assert changes == []
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_the_hook_sees_what_opens_a_file_to_write(tmp_path: Path, changes: list[str]) -> None:
    path = token_length.start(tmp_path, LENGTHS)
    watched.append((tmp_path, changes))
    token_length.LineFile.reopen(path).close()
    assert [change.split()[0] for change in changes] == ["open", "fcntl.lockf"]
