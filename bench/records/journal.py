"""The record of a run while it is measured: a journal that loses at most the measurement in progress.

The journal lies next to where the record will be, as <record>.partial.jsonl. Its first line is the run's header. Every
finished measurement adds a line, which is on the disk before the next one starts. At the end the journal becomes the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import msgspec

from bench.errors import IncomparableResults
from bench.records import files, machine_lock
from bench.records.command_line import shell_text
from bench.records.decoding import Scalar
from bench.records.environment import RESUMABLE_KEYS, check_comparable
from bench.records.runs import SHARED_BY, BaselineTriple, Cell, CellRecord, RunRecord, TimedPair
from bench.records.storage import LineFile, is_being_written, read_lines, storage_errors, write_atomically


class Warmup(msgspec.Struct, frozen=True, tag="warmup"):
    cell: Cell
    seconds_per_token: tuple[float, ...]
    settled: bool


class Pair(msgspec.Struct, frozen=True, tag="pair"):
    cell: Cell
    pair: TimedPair


class Triple(msgspec.Struct, frozen=True, tag="baseline"):
    triple: BaselineTriple


class CellEnd(msgspec.Struct, frozen=True, tag="cell"):
    """The record of a cell. It replaces the warm-up and the pairs of this cell, and an earlier record of it."""

    record: CellRecord


class Shared(msgspec.Struct, frozen=True, tag="shared"):
    """Other runs measure on the machine too, so that the times of this one do not count."""

    num_runs: int


Entry = Warmup | Pair | Triple | CellEnd | Shared


@dataclass(slots=True)
class Measured:
    """What a journal holds. Warm-ups and pairs are those of cells that are not finished."""

    baseline: list[BaselineTriple] = field(default_factory=list)
    finished: dict[Cell, CellRecord] = field(default_factory=dict)
    pairs: dict[Cell, list[TimedPair]] = field(default_factory=dict)
    warmups: dict[Cell, Warmup] = field(default_factory=dict)
    num_runs: int = 1  # on this machine at the same time

    def add(self, entry: Entry) -> None:
        match entry:
            case Warmup(cell=cell):
                self.warmups[cell] = entry
            case Pair(cell=cell, pair=pair):
                self.pairs.setdefault(cell, []).append(pair)
            case Triple(triple=triple):
                self.baseline.append(triple)
            case CellEnd(record=record):
                self.finished[record.cell] = record
                self.pairs.pop(record.cell, None)
                self.warmups.pop(record.cell, None)
            case Shared(num_runs=num_runs):
                self.num_runs = max(self.num_runs, num_runs)

    def __str__(self) -> str:
        num_pairs = sum(len(record.pairs) for record in self.finished.values()) + sum(map(len, self.pairs.values()))
        return f"{len(self.finished)} finished cells, {num_pairs} pairs and {len(self.baseline)} baseline triples"


class Journal:
    """A run in progress."""

    def __init__(self, file: LineFile) -> None:
        self.path = file.path
        self.header, self.measured = _decoded(file.path, file.lines)
        self._file = file

    @classmethod
    def start(cls, results: Path, header: RunRecord, *, backend: str) -> Self:
        """Create the journal of a new run; `header` is its record without baseline and cells."""
        record = _record_path(results, header, backend)
        with storage_errors(f"cannot start {files.unfinished_path(record)}", "nothing was measured"):
            return cls(files.start_lines(record, msgspec.json.encode(header)))

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Open the journal of an interrupted run. Raise ValueError if it is damaged, StorageError if it is in use."""
        with storage_errors(f"cannot resume {path}", "the journal is kept"):
            file = LineFile.reopen(path)
        try:
            return cls(file)
        except ValueError:
            file.close()
            raise

    def append(self, entry: Entry) -> None:
        """Store a finished measurement, which survives the process once this returns."""
        line = msgspec.json.encode(entry)
        # NaN is written as null. Decoding refuses it here, rather than when the run is read back.
        entry = msgspec.json.decode(line, type=Entry)
        with self._keeping():
            self._file.append(line)
        self.measured.add(entry)
        if (sharing := machine_lock.num_runs()) > self.measured.num_runs:  # also where the other run began later
            self.append(Shared(sharing))

    def finish(self, backend_settings: Mapping[str, Scalar] | None = None) -> Path:
        """Write the run's record with the final settings, remove the journal, and return the path of the record."""
        unfinished = [cell.label for cell in self.measured.pairs]
        if unfinished:
            raise ValueError(f"expected every cell to be finished, got pairs of unfinished {', '.join(unfinished)}")
        shared = {SHARED_BY: self.measured.num_runs} if self.measured.num_runs > 1 else {}
        record = replace(
            self.header,
            environment={**self.header.environment, **shared},
            backend_settings=dict(backend_settings or self.header.backend_settings),
            baseline=tuple(self.measured.baseline),
            cells=tuple(self.measured.finished.values()),
        )
        path = files.finished_path(self.path, ".json")
        with self._keeping():
            write_atomically(path, files.record_text(record))
            self.path.unlink()
        self.close()
        return path

    def discard(self) -> None:
        """Remove the journal of a run that measured nothing."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Release the journal and leave it on disk, so that it can be resumed."""
        self._file.close()

    def _keeping(self) -> AbstractContextManager[None]:
        kept = f"{self.measured} are kept in {self.path}; put it right and run again with --resume"
        return storage_errors("cannot write results", kept)


def find_resumable(results: Path, header: RunRecord, *, backend: str) -> tuple[Path | None, tuple[str, ...]]:
    """Return the newest journal of the same experiment on this machine, or None, and why newer ones do not fit."""
    passed_over: list[str] = []
    for path in files.unfinished_like(_record_path(results, header, backend)):  # the newest first
        reason = _not_resumable(path, header)
        if reason is None:
            return path, tuple(passed_over)
        passed_over.append(f"{path.name} is not resumable: {reason}")
    return None, tuple(passed_over)


def _record_path(results: Path, header: RunRecord, backend: str) -> Path:
    return files.record_path(results, header.suite, header.environment, header.created, name=backend)


def _not_resumable(path: Path, header: RunRecord) -> str | None:
    """Return why the run of this journal cannot be continued as the run of this header; None if it can."""
    try:
        found, _ = _decoded(path, read_lines(path))
        if is_being_written(path):
            return "another process is still writing it"
        check_comparable(found.environment, header.environment, keys=RESUMABLE_KEYS)
    except (OSError, ValueError, IncomparableResults) as error:
        return str(error)
    names = ("preset", "model_pair", "model_hashes", "prompt_format", "backend_settings")
    differing = [name for name in names if getattr(found, name) != getattr(header, name)]
    if not differing and _arguments(found) != _arguments(header):
        return f"another command, {shell_text(found.command)}"
    return f"another experiment, with a different {', '.join(differing)}" if differing else None


def _arguments(run: RunRecord) -> list[str]:
    """Return the arguments of its command that follow pytest's name, because there are several ways to call pytest."""
    words = [word for word in run.command if word != "--resume"]
    return words[words.index("pytest") + 1 :] if "pytest" in words else words


def _decoded(path: Path, lines: Sequence[bytes]) -> tuple[RunRecord, Measured]:
    """Return the header, and what was measured. Raise ValueError with file and line if the journal is damaged."""
    if not lines:
        raise ValueError(f"{path} holds no header: nothing was measured")
    measured = Measured()
    for number, line in enumerate(lines, start=1):
        try:
            if number == 1:
                header = files.decoded_record(line)
            else:
                measured.add(msgspec.json.decode(line, type=Entry))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return header, measured
