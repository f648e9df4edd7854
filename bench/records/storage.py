"""Writing files that a kill, a full disk or a power cut leaves whole."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self


class StorageError(OSError):
    """The results folder takes no more. The message names the reason, what is kept and how to continue."""


@contextmanager
def storage_errors(failed: str, kept: str) -> Iterator[None]:
    """Turn errors of the file system into a StorageError of one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{failed}: {error.strerror or error}; {kept}") from error


def check_writable(folder: Path) -> None:
    """Create the folder and write a file into it. Raise StorageError, before anything is measured, if that fails."""
    probe = folder / f".probe-{os.getpid()}"
    with storage_errors(f"cannot write to {folder}", "nothing was measured"):
        write_atomically(probe, "x" * 4096)
        probe.unlink()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all, also after a power cut. Create its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            _write_all(file.fileno(), content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


class LineFile:
    """An open file of JSON lines with one writer. A line that `append` returned from survives the process and a power cut."""

    def __init__(self, path: Path, file: int, lines: Sequence[bytes]) -> None:
        self.path = path
        self.lines = tuple(lines)  # what was in the file when it was opened
        self._file = file
        self._size = sum(len(line) + 1 for line in lines)

    @classmethod
    def create(cls, path: Path, *lines: bytes) -> Self:
        """Create a file with its first lines. If that fails with an OSError, no new file is left."""
        path.parent.mkdir(parents=True, exist_ok=True)
        made = cls(path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o666), ())
        try:
            _lock(made._file)
            for line in lines:
                made.append(line)
            made.lines = lines
            _sync_folder(path.parent)
        except BaseException:
            made.close()
            path.unlink()
            raise
        return made

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Open a file to append to it. Raise OSError if another process is writing it. Whoever only reads uses `read_lines`."""
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            _lock(file)
            # Through the same descriptor: closing another one of this file would release the lock.
            with open(file, "rb", closefd=False) as stream:
                return cls(path, file, whole_lines(stream.read()))
        except BaseException:
            os.close(file)
            raise

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file to append to it, and create it where it is missing."""
        return cls.reopen(path) if path.exists() else cls.create(path)

    def append(self, line: bytes) -> None:
        """Add a line and wait for the disk. If that fails with an OSError, nothing of the line is left."""
        os.ftruncate(self._file, self._size)  # removes what a crash left of another line
        try:
            _write_all(self._file, line + b"\n")
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(line) + 1

    def close(self) -> None:
        """Release the file and leave it on disk."""
        os.close(self._file)


def read_lines(path: Path) -> list[bytes]:
    """Return the whole lines of a file that another process may be writing. It is neither locked nor changed."""
    return whole_lines(path.read_bytes())


def is_being_written(path: Path) -> bool:
    """Return whether another process has a file of lines open to append. The file is neither locked nor changed."""
    if sys.platform != "linux":
        return False  # elsewhere the fields of the question have another order; opening to append finds out there
    question = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)  # struct flock: type, whence, start, length, pid
    with path.open("rb") as file:
        kind, *_ = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, question))
    return kind != fcntl.F_UNLCK


def whole_lines(content: bytes) -> list[bytes]:
    """Return the lines of a file, without a last one that a kill cut off or that a power cut left as zeros."""
    *lines, _ = content.split(b"\n")
    if lines and b"\0" in lines[-1]:
        lines.pop()
    return lines


def _lock(file: int) -> None:
    # A record lock, because forked workers do not inherit it: a worker that outlives a killed run does not keep it.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError("another process is still writing it") from error


def _write_all(file: int, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += os.write(file, content[written:])
    os.fsync(file)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk too."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
