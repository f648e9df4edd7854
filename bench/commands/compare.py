"""`specheat compare BASE HEAD`: what got faster and what slower between two commits, folders of results or files."""

from __future__ import annotations

import subprocess
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bench.options.arguments import declare
from bench.options.values import above_0
from bench.progress import with_bar
from bench.records.checkout import git
from bench.records.files import decoded_record, record_files
from bench.records.runs import RunRecord

if TYPE_CHECKING:
    from bench.analysis.comparison import Side

MIN_COMMIT = 7  # digits


class Compare:
    help = "list what got faster or slower between two commits, folders of results or files"

    def configure(self, parser: ArgumentParser) -> None:
        parser.epilog = (
            "Exit codes: 0 no regression, 1 regression (something got worse, or a cell is missing or INVALID), 2 bad input or "
            "results that cannot be compared, 3 with --strict: no regression, but something is INCONCLUSIVE."
        )
        option = parser.add_argument
        option("base", metavar="BASE", help="commit, folder of results, record, or file of pytest-benchmark")
        option("head", metavar="HEAD", help="the same; HEAD is judged")
        declare(parser, "--suite", "--margin", "--strict", "--markdown")
        option("--results", type=Path, default=Path("results"), metavar="DIR", help="where commits have their records")

    def run(self, args: Namespace) -> int:
        from rich.console import Console

        from bench.analysis import comparison
        from bench.reporting import comparison as pages

        base, head = (find_side(name, results=args.results) for name in (args.base, args.head))
        with Console(stderr=True).status("comparing"):
            found = comparison.compare(base, head, margin=above_0("--margin", args.margin), suite=args.suite)
            text = (pages.markdown if args.markdown else pages.terminal_text)(found)
        print(text)
        return comparison.exit_status(found, strict=args.strict)


def find_side(name: str, *, results: Path) -> Side:
    """Return the records that a name stands for: a folder or a file of that name, else a commit with records in `results`.

    Raises:  ValueError: it is none of them, or has no records; or a broken record
    """
    from bench.analysis.comparison import Side

    path = Path(name)
    if path.exists():
        return Side(name, _loaded(path) if path.is_dir() else load_file(path))
    commit = _commit(name)
    if commit is None:
        expected = "a folder of results, a record (.json), a file of pytest-benchmark (--benchmark-json) or a commit"
        raise ValueError(f"expected {expected}, got {name!r}")
    if not results.is_dir():
        raise ValueError(f"expected a folder with the records of {name}, got {results}; name another by --results")
    runs = {file: run for file, run in _loaded(results).items() if _is_of(run, commit)}
    if not runs:
        raise ValueError(f"expected records of {name} ({commit[:10]}) in {results}, found none; measure it first")
    clean = {file: run for file, run in runs.items() if not run.environment.get("harness_dirty")}
    return Side(name, clean or runs)  # records of uncommitted changes count only where there are no others


class _Benchmark(msgspec.Struct):
    extra_info: dict[str, msgspec.Raw]  # at "specheat" the content of a record, of any schema that we read


class _BenchmarkFile(msgspec.Struct):
    benchmarks: list[_Benchmark] | None = None


def load_file(path: Path) -> dict[str, RunRecord]:
    """Read a record, or a file of pytest-benchmark with one record for each cell.

    Raises:  ValueError: it is neither; the message names file and place
    """
    try:
        content = path.read_bytes()
        benchmarks = msgspec.json.decode(content, type=_BenchmarkFile).benchmarks
        if benchmarks is None:
            return {path.name: decoded_record(content)}
        records = enumerate((benchmark.extra_info.get("specheat") for benchmark in benchmarks), start=1)
        found = {f"{path.name}#{number}": decoded_record(raw) for number, raw in records if raw}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not found:
        raise ValueError(f"{path}: expected benchmarks of our suites with their records, found none")
    return found


def _loaded(folder: Path) -> dict[str, RunRecord]:
    """Return every record below a folder."""
    found: dict[str, RunRecord] = {}
    for path in with_bar(record_files(folder), f"reading {folder}"):
        place = path.parent.relative_to(folder)
        found.update(((place / name).as_posix(), run) for name, run in load_file(path).items())
    if not found:
        raise ValueError(f"expected records in {folder}, found none")
    return found


def _commit(name: str) -> str | None:
    """Return all digits of a commit of the repository around the current folder; None where a name is not known there."""
    try:
        return git(Path(), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except (OSError, subprocess.SubprocessError):
        # A shallow clone lacks most commits, but records can still be found by the digits.
        return name if len(name) >= MIN_COMMIT and set(name) <= set("0123456789abcdef") else None


def _is_of(run: RunRecord, commit: str) -> bool:
    """Return whether a record was measured at a commit. Records hold its first digits."""
    named = str(run.environment.get("harness_commit", ""))
    return len(named) >= MIN_COMMIT and (commit.startswith(named) or named.startswith(commit))
