"""Raw records on disk: one JSON file per run, and a journal beside it while the run is going on.

The file is results/<machine>/<suite>/<created>-<commit>-<backend>.json and appears whole or not at all. Until then
<the same>.partial.jsonl holds one line for the run's header and one for everything finished since, each forced to the
disk before measuring goes on, so a Ctrl-C, a kill or a full disk loses at most the measurement under way.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import msgspec

from bench.errors import IncomparableResults
from bench.records.decoding import Scalar
from bench.records.environment import COMPARABLE_KEYS, LIBRARIES, check_comparable
from bench.records.files import (
    UNFINISHED,
    as_text,
    decoded_record,
    record_path,
    storage_errors,
    sync_folder,
    write_all,
    write_atomically,
)
from bench.records.runs import BaselineTriple, Cell, CellRecord, RunRecord, TimedPair

RESUMABLE_KEYS = (*COMPARABLE_KEYS, *LIBRARIES, "harness_commit", "harness_dirty")


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
        path = record_path(results, header, backend=backend).with_suffix(UNFINISHED)
        line = msgspec.json.encode(header) + b"\n"
        with storage_errors(f"cannot start {path}", "nothing was measured"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if _record_of(path).exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o666)
            try:
                _lock(file)
                write_all(file, line)
                sync_folder(path.parent)
            except BaseException:
                os.close(file)
                path.unlink()
                raise
        return cls(path, decoded_record(line), Measured(), file)

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Open the journal of an interrupted run; its `measured` says what need not be done again.

        Raises:  ValueError: the journal is damaged
                 StorageError: another process writes it
        """
        with storage_errors(f"cannot resume {path}", "the journal is kept"):
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
            write_atomically(path, as_text(record))
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
            write_all(self._file, line + b"\n")
        self.measured.add(entry)

    def _keeping(self) -> Any:
        kept = f"{self.measured} are kept in {self.path}; put it right and run again with --resume"
        return storage_errors("cannot write results", kept)


def find_resumable(results: Path, header: RunRecord, *, backend: str) -> tuple[Path | None, tuple[str, ...]]:
    """The newest journal of the experiment that `header` describes, on the same machine, suite and backend.

    Returns: its path or None; one line for each newer journal that was passed over, with the reason
    """
    path = record_path(results, header, backend=backend)
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
                header = decoded_record(line)
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
