"""Which records a command is about: those of a folder, or one file, and of a suite where one is named; and their models."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from bench.records import Cell, RunRecord
    from bench.rows import Runs

_T = TypeVar("_T")


def add_arguments(parser: ArgumentParser) -> None:
    """What to read, for a command line."""
    parser.add_argument(
        "results", nargs="?", type=Path, default=Path("results"), help="folder or record (default: results)"
    )
    parser.add_argument("--suite", metavar="NAME", help="only this suite's records")


def read_runs(results: Path, *, suite: str | None = None) -> Runs:
    """Records by their path below the folder, or by name where `results` is a record itself.

    Raises:  ValueError: no such folder or file, no records in it that are asked for, or a broken one
    """
    from bench.store import load_run, record_files

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


def model_hashes(cell: Cell, run: RunRecord) -> dict[str, str | None]:
    """Of the target and of this cell's own draft: a run may have several."""
    hashes = run.model_hashes
    return {"target": hashes.get("target"), "draft": hashes.get(f"draft {cell.draft}", hashes.get("draft"))}


def with_bar(items: Iterable[_T], what: str) -> Iterator[_T]:
    """The items, with a bar on standard error while they are gone through, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    items = list(items)
    yield from track(items, what, console=console, transient=True, disable=not console.is_terminal)
