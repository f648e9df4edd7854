"""Files are whole or not there, and a file of lines keeps every line that was appended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bench.records.storage import LineFile, StorageError, check_writable, whole_lines, write_atomically


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_folder_that_takes_no_file_is_refused_in_one_line(tmp_path: Path, full_disk: Callable[[int], None]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"^cannot write to .*file/results: Not a directory; nothing was measured$"):
        check_writable(tmp_path / "file/results")
    full_disk(10)
    with pytest.raises(StorageError, match="No space left on device; nothing was measured"):
        check_writable(tmp_path / "results")
    assert list((tmp_path / "results").iterdir()) == []


def test_writing_atomically_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    write_atomically(path, "first")
    write_atomically(path, "second")
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_atomically_creates_missing_folders(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.json", b"{}")
    assert (tmp_path / "a" / "b.json").read_bytes() == b"{}"


def test_a_reopened_file_of_lines_has_its_lines_and_takes_more(tmp_path: Path) -> None:
    path = tmp_path / "a" / "lines.jsonl"
    LineFile.create(path, b"1").close()
    with closing(LineFile.reopen(path)) as file:
        file.append(b"2")
        assert file.lines == (b"1",)
    assert path.read_bytes() == b"1\n2\n"
    with pytest.raises(FileExistsError):
        LineFile.create(path, b"3")
    assert path.read_bytes() == b"1\n2\n"


def test_reopening_leaves_a_torn_line_and_the_next_line_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'1\n{"a": ')
    with closing(LineFile.reopen(path)) as file:
        assert file.lines == (b"1",)
        assert path.read_bytes() == b'1\n{"a": '
        file.append(b"2")
    assert path.read_bytes() == b"1\n2\n"


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path: Path, full_disk: Callable[[int], None]) -> None:
    path = tmp_path / "lines.jsonl"
    with closing(LineFile.create(path, b"1")) as file:
        full_disk(3)
        with pytest.raises(OSError, match="No space left"):
            file.append(b"22222")
    assert path.read_bytes() == b"1\n"


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"1", []),
        (b"1\n2\n", [b"1", b"2"]),
        (b"1\n2", [b"1"]),
        (b"1\n\0\0\0", [b"1"]),
        # The end of a line can reach the disk before its beginning.
        (b"1\n\0\0}\n", [b"1"]),
    ],
)
def test_a_last_line_that_did_not_reach_the_disk_is_left_out(content: bytes, lines: list[bytes]) -> None:
    assert whole_lines(content) == lines
