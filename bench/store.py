"""Raw records on disk: one JSON file per run, and a journal beside it while the run is going on.

The file is results/<machine>/<suite>/<created>-<commit>-<backend>.json and appears whole or not at all. Until then
<the same>.partial.jsonl holds one line for the run's header and one for everything finished since, each forced to the
disk before measuring goes on, so a Ctrl-C, a kill or a full disk loses at most the measurement under way.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec

from bench.environment import COMPARABLE_KEYS, LIBRARIES, check_comparable, machine_slug
from bench.protocols import IncomparableResults
from bench.records import SCHEMA, BaselineTriple, Cell, CellRecord, RunRecord, Scalar, TimedPair

UNFINISHED = ".partial.jsonl"  # ending of a journal
_LINE_WIDTH = 120
RESUMABLE_KEYS = (*COMPARABLE_KEYS, *LIBRARIES, "harness_commit", "harness_dirty")


class StorageError(OSError):
    """The results folder takes no more. The message says why, what is kept and how to go on."""


class Warmup(msgspec.Struct, frozen=True, tag="warmup"):
    """The warm-up of one cell."""

    cell: Cell
    seconds_per_token: tuple[float, ...]
    settled: bool


class _Pair(msgspec.Struct, frozen=True, tag="pair"):
    cell: Cell
    pair: TimedPair


class _Baseline(msgspec.Struct, frozen=True, tag="baseline"):
    triple: BaselineTriple


class _CellEnd(msgspec.Struct, frozen=True, tag="cell"):
    record: CellRecord


_Entry = Warmup | _Pair | _Baseline | _CellEnd


@dataclass(slots=True)
class Measured:
    """What a journal holds. Warm-ups and pairs are those of cells that are not finished."""

    baseline: list[BaselineTriple] = field(default_factory=list)
    finished: dict[Cell, CellRecord] = field(default_factory=dict)
    pairs: dict[Cell, list[TimedPair]] = field(default_factory=dict)
    warmups: dict[Cell, Warmup] = field(default_factory=dict)

    def add(self, entry: _Entry) -> None:
        match entry:
            case Warmup(cell=cell):
                self.warmups[cell] = entry
            case _Pair(cell=cell, pair=pair):
                self.pairs.setdefault(cell, []).append(pair)
            case _Baseline(triple=triple):
                self.baseline.append(triple)
            case _CellEnd(record=record):
                self.finished[record.cell] = record
                self.pairs.pop(record.cell, None)
                self.warmups.pop(record.cell, None)

    def __str__(self) -> str:
        num_pairs = sum(len(record.pairs) for record in self.finished.values()) + sum(map(len, self.pairs.values()))
        return f"{len(self.finished)} finished cells, {num_pairs} pairs and {len(self.baseline)} baseline triples"


class Journal:
    """A run in progress. Whatever an `append_` returned from survives the process."""

    def __init__(self, path: Path, header: RunRecord, measured: Measured, file: int) -> None:
        self.path = path
        self.header = header
        self.measured = measured
        self._file = file

    @classmethod
    def start(cls, results: Path, header: RunRecord, *, backend: str) -> Self:
        """Open the journal of a new run; `header` is its record with neither baseline nor cells."""
        path = _record_path(results, header, backend=backend).with_suffix(UNFINISHED)
        line = msgspec.json.encode(header) + b"\n"
        with _storage_errors(f"cannot start {path}", "nothing was measured"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if _record_of(path).exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o666)
            try:
                _lock(file)
                _write(file, line)
                _sync_folder(path.parent)
            except BaseException:
                os.close(file)
                path.unlink()
                raise
        return cls(path, _decoded(line), Measured(), file)

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Open the journal of an interrupted run; its `measured` says what need not be done again.

        Raises:  ValueError: the journal is damaged
                 StorageError: another process writes it
        """
        with _storage_errors(f"cannot resume {path}", "the journal is kept"):
            file = os.open(path, os.O_RDWR | os.O_APPEND)
            try:
                _lock(file)
                header, measured, num_bytes = _parse(path, _content(file))
                os.ftruncate(file, num_bytes)  # a torn last line must not end up in the middle
            except BaseException:
                os.close(file)
                raise
        return cls(path, header, measured, file)

    def append_warmup(self, cell: Cell, *, seconds_per_token: tuple[float, ...], settled: bool) -> None:
        self._append(Warmup(cell=cell, seconds_per_token=seconds_per_token, settled=settled))

    def append_pair(self, cell: Cell, pair: TimedPair) -> None:
        self._append(_Pair(cell=cell, pair=pair))

    def append_baseline(self, triple: BaselineTriple) -> None:
        self._append(_Baseline(triple=triple))

    def finish_cell(self, record: CellRecord) -> None:
        """Replaces the warm-up and the pairs appended for this cell, and an earlier record of it."""
        self._append(_CellEnd(record=record))

    def finish(self, backend_settings: Mapping[str, Scalar] | None = None) -> Path:
        """Write the run's record, then remove the journal. Every cell must have been finished.

        Args:    backend_settings: as they are by now, where an engine settles on some after the header was written
        Returns: path of the record
        """
        unfinished = [cell.label for cell in self.measured.pairs]
        if unfinished:
            raise ValueError(f"expected every cell to be finished, got pairs of unfinished {', '.join(unfinished)}")
        record = replace(
            self.header,
            backend_settings=dict(backend_settings or self.header.backend_settings),
            baseline=tuple(self.measured.baseline),
            cells=tuple(self.measured.finished.values()),
        )
        path = _record_of(self.path)
        with self._keeping():
            write_atomically(path, _as_text(record))
            self.path.unlink()
        self.close()
        return path

    def discard(self) -> None:
        """Remove the journal of a run that measured nothing."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Let go of the journal and leave it on disk, to be resumed."""
        os.close(self._file)

    def _append(self, entry: _Entry) -> None:
        line = msgspec.json.encode(entry)
        entry = _decoded_entry(line)  # NaN is written as null: refused here, not when the run is read back
        with self._keeping():
            _write(self._file, line + b"\n")
        self.measured.add(entry)

    def _keeping(self) -> Any:
        kept = f"{self.measured} are kept in {self.path}; put it right and run again with --resume"
        return _storage_errors("cannot write results", kept)


def find_resumable(results: Path, header: RunRecord, *, backend: str) -> tuple[Path | None, tuple[str, ...]]:
    """The newest journal of the experiment that `header` describes, on the same machine, suite and backend.

    Returns: its path or None; one line for each newer journal that was passed over, with the reason
    """
    path = _record_path(results, header, backend=backend)
    backend_part = _backend_part(path.name)
    passed_over: list[str] = []
    for journal in sorted(path.parent.glob(f"*{UNFINISHED}"), reverse=True):
        if _backend_part(_record_of(journal).name) != backend_part:
            continue
        reason = _not_resumable(journal, header)
        if reason is None:
            return journal, tuple(passed_over)
        passed_over.append(f"{journal.name} is not resumable: {reason}")
    return None, tuple(passed_over)


def check_writable(folder: Path) -> None:
    """Make the folder and try it, before anything is measured. Raises StorageError where it takes no file."""
    probe = folder / f".probe-{os.getpid()}"
    with _storage_errors(f"cannot write to {folder}", "nothing was measured"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write_atomically(probe, "x" * 4096)
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
    try:
        try:
            _write(file, text.encode())
        finally:
            os.close(file)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_run(results: Path, run: RunRecord, *, backend: str) -> Path:
    """Store a whole record where a run of its own would have left it; returns the path."""
    path = _record_path(results, run, backend=backend)
    with _storage_errors(f"cannot write {path}", "what it was made of is kept"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _as_text(run))
    return path


def load_run(path: Path) -> RunRecord:
    """Raises: ValueError: the file is no record of this schema; the message names file and place."""
    try:
        return _decoded(path.read_bytes())
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


def _record_path(results: Path, header: RunRecord, *, backend: str) -> Path:
    moment = datetime.fromisoformat(header.created).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    commit = header.environment.get("harness_commit", "unknown")
    name = f"{moment}-{commit}-{re.sub('[^A-Za-z0-9_.-]+', '_', backend)}.json"
    return results / machine_slug(header.environment) / header.suite / name


def _record_of(journal: Path) -> Path:
    return journal.with_name(journal.name.removesuffix(UNFINISHED) + ".json")


def _backend_part(name: str) -> str:
    return name.split("-", 2)[-1]


def _not_resumable(journal: Path, header: RunRecord) -> str | None:
    """Why the run of this journal cannot be continued as the run of this header; None if it can."""
    try:
        with journal.open("rb+") as file:
            _lock(file.fileno())
            found, _, _ = _parse(journal, file.read())
        check_comparable(found.environment, header.environment, keys=RESUMABLE_KEYS)
    except (OSError, ValueError, IncomparableResults) as error:
        return str(error)
    names = ("preset", "model_pair", "model_hashes", "prompt_format", "backend_settings")
    differing = [name for name in names if getattr(found, name) != getattr(header, name)]
    if not differing and _asked(found) != _asked(header):
        return f"another command, {found.command}"
    return f"another experiment, with a different {', '.join(differing)}" if differing else None


def _asked(run: RunRecord) -> list[str]:
    """Words of its command behind pytest's name, which may have been called in several ways."""
    words = [word for word in run.command.split() if word != "--resume"]
    return words[words.index("pytest") + 1 :] if "pytest" in words else words


def _parse(path: Path, content: bytes) -> tuple[RunRecord, Measured, int]:
    """Header, what was measured, and the bytes of the whole lines. The last line may be torn: it is left out."""
    lines = content.splitlines(keepends=True)
    header: RunRecord | None = None
    measured = Measured()
    num_bytes = 0
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("the line is cut off")
            if header is None:
                header = _decoded(line)
            else:
                measured.add(_decoded_entry(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: {error}") from error
            break
        num_bytes += len(line)
    if header is None:
        raise ValueError(f"{path} holds no header: nothing was measured")
    return header, measured, num_bytes


class _Schema(msgspec.Struct):
    schema: int


def _decoded(content: bytes) -> RunRecord:
    schema = msgspec.json.decode(content, type=_Schema).schema
    if schema != SCHEMA:
        raise ValueError(f"expected a record of schema {SCHEMA}, got {schema}")
    return msgspec.json.decode(content, type=RunRecord)


def _decoded_entry(line: bytes) -> _Entry:
    return msgspec.json.decode(line, type=_Entry)


def _lock(file: int) -> None:
    # A record lock, which forked workers do not inherit: one that outlives a killed run does not hold its journal.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError("another process is still writing it") from error


def _content(file: int) -> bytes:
    with open(file, "rb", closefd=False) as stream:  # this very file: closing another one of it unlocks it
        return stream.read()


def _write(file: int, content: bytes) -> None:
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


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _storage_errors(what: str, kept: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}; {kept}") from error


def _as_text(run: RunRecord) -> str:
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
