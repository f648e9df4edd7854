"""Where records lie, how their files are named, and how they are read and written."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.options.settings import DEFAULT_PAIR
from bench.progress import with_bar
from bench.records import schema1
from bench.records.command_line import shell_text, stored_words
from bench.records.decoding import Scalar
from bench.records.environment import machine_slug
from bench.records.runs import SCHEMA, RunRecord
from bench.records.storage import LineFile, storage_errors, write_atomically

Runs = Mapping[str, RunRecord]  # path of a record below the results folder -> its content
RECORDS = "records"  # folder of the records of one suite on one machine
UNFINISHED = ".partial.jsonl"  # ending of a record that is still being measured
CERTIFIED = "_certified"  # ends the name of a copy of a record whose cells were certified later


def record_path(
    results: Path, suite: str, environment: Mapping[str, Scalar], created: str, *, name: str = "", ending: str = ".json"
) -> Path:
    """Return <results>/<machine>/<suite>/records/<moment>-<commit>[-<name>]<ending>, the file of a new record."""
    parts = [moment_text(datetime.fromisoformat(created)), str(environment.get("harness_commit", "unknown"))]
    parts += [re.sub("[^A-Za-z0-9_.-]+", "_", name)] if name else []
    return results / machine_slug(environment) / suite / RECORDS / f"{'-'.join(parts)}{ending}"


def moment_text(moment: datetime) -> str:
    """Return a moment as file names hold it: in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def unfinished_path(record: Path) -> Path:
    """Return where a record lies while it is measured."""
    return record.with_suffix(UNFINISHED)


def start_lines(record: Path, header: bytes) -> LineFile:
    """Create the file in which a record is measured. Raise FileExistsError if the record exists, finished or not."""
    if record.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(record))
    return LineFile.create(unfinished_path(record), header)


def finished_path(unfinished: Path, ending: str) -> Path:
    """Return where an unfinished record will lie in the end."""
    return unfinished.with_name(unfinished.name.removesuffix(UNFINISHED) + ending)


def unfinished_like(record: Path) -> list[Path]:
    """Return the unfinished records in the folder of a record that have its name, the newest first."""
    *_, name = unfinished_path(record).name.split("-", 2)  # what follows the moment and the commit
    found = sorted(record.parent.glob(f"*{UNFINISHED}"), reverse=True)
    return [path for path in found if path.name.split("-", 2)[-1] == name]


def record_files(folder: Path, pattern: str = "**/*.json") -> list[Path]:
    """Return the finished records below a folder, sorted by name. Hidden folders hold none.

    A record is left out if a copy with later certificates lies beside it: the copy has all that the record has.
    """
    found = {path for path in folder.glob(pattern) if not path.name.endswith(UNFINISHED)}
    kept = (path for path in found if certified_path(path) not in found)
    return sorted(path for path in kept if not any(part[0] == "." for part in path.relative_to(folder).parts))


def certified_path(record: Path) -> Path:
    """Return where the copy of a record lies whose cells were certified later."""
    return record.with_stem(f"{record.stem}{CERTIFIED}")


def records_by_suite(results: Path, ending: str = ".json") -> dict[tuple[str, str], list[Path]]:
    """Return the finished records by machine and suite, the oldest first. Raise ValueError if the folder is missing."""
    if not results.is_dir():
        raise ValueError(f"expected a folder of results, got {results}")
    found: dict[tuple[str, str], list[Path]] = {}
    for path in record_files(results, f"*/*/{RECORDS}/*{ending}"):
        found.setdefault((path.parts[-4], path.parts[-3]), []).append(path)
    return found


def read_runs(results: Path, *, suite: str | None = None) -> Runs:
    """Return the records below a folder by their path in it, or one record by its name."""
    if not results.exists():
        raise ValueError(f"expected a folder of results or a record, got {results}, which does not exist")
    folder = results if results.is_dir() else results.parent
    paths = record_files(results) if results.is_dir() else [results]
    found = {path.relative_to(folder).as_posix(): load_run(path) for path in with_bar(paths, "reading records")}
    chosen = {file: run for file, run in found.items() if suite in (None, run.suite)}
    if not chosen:
        known = ", ".join(sorted({run.suite for run in found.values()})) or "none"
        raise ValueError(f"expected records of {suite or 'some suite'} in {results}, found {known}")
    return chosen


def load_runs(folder: Path) -> tuple[RunRecord, ...]:
    """Return every record below a folder, the oldest first."""
    if not folder.is_dir():
        raise ValueError(f"expected a folder of results, got {folder}")
    return tuple(sorted(map(load_run, record_files(folder)), key=lambda run: run.created))


def load_run(path: Path) -> RunRecord:
    """Read one record. Raise ValueError with file and place if it does not follow the schema."""
    try:
        return decoded_record(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


class _Schema(msgspec.Struct):
    schema: int


def decoded_record(content: bytes | msgspec.Raw) -> RunRecord:
    """Decode a record of this schema, or of an older one."""
    schema = msgspec.json.decode(content, type=_Schema).schema
    if schema == 1:
        return schema1.decoded(content)
    if schema != SCHEMA:
        raise ValueError(f"expected a record of schema 1 or {SCHEMA}, got {schema}")
    return msgspec.json.decode(content, type=RunRecord)


def line_header(path: Path, *needed: str) -> dict[str, Any]:
    """Return the first line of a record of JSON lines, its command as a list of arguments. It must have the needed keys."""
    with path.open(encoding="utf-8") as content:
        line = content.readline()
    try:
        header: dict[str, Any] = json.loads(line)
        missing = [name for name in ("command", *needed) if name not in header]
    except (ValueError, TypeError):
        missing = ["command"]
    if missing:
        raise ValueError(f"{path}: expected a first line with {', '.join(missing)}, got {line[:40]!r}")
    return header | {"command": stored_words(header["command"])}


def pair_name(header: Mapping[str, Any]) -> str:
    """Return the name of the pair of a record of JSON lines. Older records have it only in their command, if at all."""
    pair = header.get("model_pair")
    if pair is None:
        named = re.search(r"--pair[ =](\S+)", shell_text(stored_words(header.get("command", ""))))
        return named[1] if named else DEFAULT_PAIR
    return str(pair["name"] if isinstance(pair, dict) else pair)


def write_run(results: Path, run: RunRecord, *, backend: str) -> Path:
    """Store a whole record, and return its path."""
    path = record_path(results, run.suite, run.environment, run.created, name=backend)
    with storage_errors(f"cannot write {path}", "what it was made of is kept"):
        write_atomically(path, record_text(run))
    return path


def record_text(run: RunRecord) -> str:
    """Return the content of a record's file: JSON that a person can read and compare."""
    return _pretty(msgspec.to_builtins(run)) + "\n"


def _pretty(value: Any, indent: int = 0) -> str:
    """Return JSON with one field per line. What fits on a line, and lists of only numbers, stay on one."""
    flat = json.dumps(value, ensure_ascii=False)
    fits = len(flat) + indent <= 120 or (not isinstance(value, dict) and _is_numeric(value))
    if not value or fits or not isinstance(value, (dict, list, tuple)):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_pretty(item, indent + 1)}" for key, item in value.items()]
    else:
        items = [_pretty(item, indent + 1) for item in value]
    body = f",\n{pad}".join(items)
    return f"{flat[0]}\n{pad}{body}\n{pad[1:]}{flat[-1]}"


def _is_numeric(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return not isinstance(value, str)
    return all(map(_is_numeric, value))
