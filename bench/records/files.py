"""TODO: purpose."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.progress import with_bar
from bench.records.environment import machine_slug
from bench.records.runs import SCHEMA, RunRecord

Runs = Mapping[str, RunRecord]  # path of a raw record below results/ -> its content


def read_runs(results: Path, *, suite: str | None = None) -> Runs:
    """Records by their path below the folder, or by name where `results` is a record itself.

    Raises:  ValueError: no such folder or file, no records in it that are asked for, or a broken one
    """
    pass

    if not results.exists():
        raise ValueError(f"expected a folder of results or a record, got {results}, which does not exist")
    folder = results if results.is_dir() else results.parent
    paths = record_files(results) if results.is_dir() else [results]
    found = {path.relative_to(folder).as_posix(): load_run(path) for path in with_bar(paths, "reading records")}
    asked = {file: run for file, run in found.items() if suite in (None, run.suite)}
    if not asked:
        known = ", ".join(sorted({run.suite for run in found.values()})) or "none"
        raise ValueError(f"expected records of {suite or 'some suite'} in {results}, found {known}")
    return asked


UNFINISHED = ".partial.jsonl"  # ending of a journal
_LINE_WIDTH = 120


class StorageError(OSError):
    """The results folder takes no more. The message says why, what is kept and how to go on."""


def check_writable(folder: Path) -> None:
    """Make the folder and try it, before anything is measured. Raises StorageError where it takes no file."""
    probe = folder / f".probe-{os.getpid()}"
    with storage_errors(f"cannot write to {folder}", "nothing was measured"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write_atomically(probe, "x" * 4096)
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
    try:
        try:
            write_all(file, content.encode() if isinstance(content, str) else content)
        finally:
            os.close(file)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_run(results: Path, run: RunRecord, *, backend: str) -> Path:
    """Store a whole record where a run of its own would have left it; returns the path."""
    path = record_path(results, run, backend=backend)
    with storage_errors(f"cannot write {path}", "what it was made of is kept"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, as_text(run))
    return path


def load_run(path: Path) -> RunRecord:
    """Raises: ValueError: the file is no record of this schema; the message names file and place."""
    try:
        return decoded_record(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def record_files(folder: Path, pattern: str = "**/*.json") -> list[Path]:
    """Records below a folder, in the order of their names; what lies in hidden folders is none."""
    found = (path for path in folder.glob(pattern) if not path.name.endswith(UNFINISHED))
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def line_header(path: Path, *needed: str) -> dict[str, Any]:
    """The first line of a record of JSON lines.

    Args:    needed: what it has to say besides the command, such as its environment
    Raises:  ValueError: it does not
    """
    with path.open(encoding="utf-8") as content:
        line = content.readline()
    try:
        header: dict[str, Any] = json.loads(line)
        missing = [name for name in ("command", *needed) if name not in header]
    except (ValueError, TypeError):
        missing = ["command"]
    if missing:
        raise ValueError(f"{path}: expected a first line with {', '.join(missing)}, got {line[:40]!r}")
    return header


def load_runs(folder: Path) -> tuple[RunRecord, ...]:
    """Every record below a folder, oldest first. Raises ValueError at the first broken one."""
    if not folder.is_dir():
        raise ValueError(f"expected a folder of results, got {folder}")
    return tuple(sorted((load_run(path) for path in record_files(folder)), key=lambda run: run.created))


def record_path(results: Path, header: RunRecord, *, backend: str) -> Path:
    moment = datetime.fromisoformat(header.created).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    commit = header.environment.get("harness_commit", "unknown")
    name = f"{moment}-{commit}-{re.sub('[^A-Za-z0-9_.-]+', '_', backend)}.json"
    return results / machine_slug(header.environment) / header.suite / name


class _Schema(msgspec.Struct):
    schema: int


def decoded_record(content: bytes) -> RunRecord:
    schema = msgspec.json.decode(content, type=_Schema).schema
    if schema != SCHEMA:
        raise ValueError(f"expected a record of schema {SCHEMA}, got {schema}")
    return msgspec.json.decode(content, type=RunRecord)


def write_all(file: int, content: bytes) -> None:
    """Append all of it and wait for the disk; where that fails, none of it stays."""
    start = os.fstat(file).st_size
    written = 0
    try:
        while written < len(content):
            written += os.write(file, content[written:])
        os.fsync(file)
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, start)
        raise


def sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def storage_errors(what: str, kept: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}; {kept}") from error


def as_text(run: RunRecord) -> str:
    return _pretty(msgspec.to_builtins(run)) + "\n"


def _pretty(value: Any, indent: int = 0) -> str:
    """JSON a person can read and compare: one field a line, but what fits on a line or is all numbers stays on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, (dict, list, tuple)):
        return flat
    if len(flat) + indent <= _LINE_WIDTH or (not isinstance(value, dict) and _is_numeric(value)):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        opening, closing = "{", "}"
        items = [f"{json.dumps(key)}: {_pretty(item, indent + 1)}" for key, item in value.items()]
    else:
        opening, closing = "[", "]"
        items = [_pretty(item, indent + 1) for item in value]
    body = f",\n{pad}".join(items)
    return f"{opening}\n{pad}{body}\n{pad[1:]}{closing}"


def _is_numeric(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif isinstance(value, str):
        return False
    elif not isinstance(value, (list, tuple)):
        return True
    return all(_is_numeric(item) for item in value)
