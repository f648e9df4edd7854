"""`specheat compare BASE HEAD`: what got faster and what slower between two commits, folders of results or files."""

from __future__ import annotations

import subprocess
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bench.options.values import above_0
from bench.progress import with_bar
from bench.records.files import decoded_record, load_run, record_files
from bench.records.runs import RunRecord
from bench.reporting.comparison import terminal_text

if TYPE_CHECKING:
    from bench.analysis.comparison import Side


EXTRA_INFO = "specheat"  # under which a cell's record lies in a file of pytest-benchmark
_MIN_COMMIT = 7  # digits


class Compare:
    help = "say what got faster or slower between two commits, folders of results or files"

    def configure(self, parser: ArgumentParser) -> None:
        parser.epilog = (
            "Exit codes: 0 no regression, 1 regression (something got worse, or a cell is missing or INVALID), 2 bad input or "
            "results that cannot be compared, 3 with --strict: no regression, but something is INCONCLUSIVE."
        )
        what = "commit, folder of results, record, or file of pytest-benchmark"
        parser.add_argument("base", metavar="BASE", help=what)
        parser.add_argument("head", metavar="HEAD", help="the same; what is judged")
        parser.add_argument("--suite", metavar="NAME", help="only this suite's cells")
        parser.add_argument(
            "--margin", default="0.02", metavar="SHARE", help="ratios this near to 1 are SAME (default: 0.02)"
        )
        parser.add_argument("--strict", action="store_true", help="exit 3 where something is INCONCLUSIVE")
        parser.add_argument("--markdown", action="store_true", help="print markdown to paste in a pull request")
        parser.add_argument(
            "--results",
            type=Path,
            default=Path("results"),
            metavar="DIR",
            help="where the records of commits lie (default: results)",
        )

    def run(self, args: Namespace) -> int:
        from rich.console import Console

        from bench.analysis import comparison
        from bench.reporting.comparison import markdown

        base, head = (find_side(text, results=args.results) for text in (args.base, args.head))
        with Console(stderr=True).status("comparing"):
            found = comparison.compare(base, head, margin=above_0("--margin", args.margin), suite=args.suite)
            text = (markdown if args.markdown else terminal_text)(found)
        print(text)
        return comparison.exit_status(found, strict=args.strict)


def find_side(text: str, *, results: Path) -> Side:
    """What a name stands for: a folder or a file, where there is one, else a commit.

    Args:    results: where the records of a commit are looked for
    Raises:  ValueError: it is none of them, or has no records; or a broken record
    """
    from bench.analysis.comparison import Side

    path = Path(text)
    if path.is_dir():
        return Side(text, _loaded(path))
    if path.is_file():
        return Side(text, load_file(path))
    commit = _commit(text)
    if commit is None:
        raise ValueError(
            "expected a folder of results, a record (.json), a file of pytest-benchmark (--benchmark-json) or a commit, "
            f"got {text!r}"
        )
    if not results.is_dir():
        raise ValueError(f"expected a folder with the records of {text}, got {results}; name another by --results")
    runs = {file: run for file, run in _loaded(results).items() if _is_of(run, commit)}
    if not runs:
        raise ValueError(f"expected records of {text} ({commit[:10]}) in {results}, found none; measure it first")
    clean = {file: run for file, run in runs.items() if not run.environment.get("harness_dirty")}
    return Side(text, clean or runs)


def load_file(path: Path) -> dict[str, RunRecord]:
    """A record, or the records in a file of pytest-benchmark, one a cell.

    Raises:  ValueError: it is neither; the message names file and place
    """
    try:
        benchmarks = msgspec.json.decode(path.read_bytes(), type=_BenchmarkFile).benchmarks
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if benchmarks is None:
        return {path.name: load_run(path)}
    raw = [benchmark.extra_info.specheat for benchmark in benchmarks]
    try:
        found = {f"{path.name}#{number}": decoded_record(each) for number, each in enumerate(raw, start=1) if each}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not found:
        raise ValueError(f"{path}: expected benchmarks of our suites with their records, found none")
    return found


class _ExtraInfo(msgspec.Struct):
    specheat: msgspec.Raw = msgspec.Raw()  # the content of a record, of any schema that we read


class _Benchmark(msgspec.Struct):
    extra_info: _ExtraInfo


class _BenchmarkFile(msgspec.Struct):
    benchmarks: list[_Benchmark] | None = None


def _loaded(folder: Path) -> dict[str, RunRecord]:
    """Every record below a folder."""
    found: dict[str, RunRecord] = {}
    for path in with_bar(record_files(folder), f"reading {folder}"):
        place = path.parent.relative_to(folder)
        found.update(((place / name).as_posix(), run) for name, run in load_file(path).items())
    if not found:
        raise ValueError(f"expected records in {folder}, found none")
    return found


def _commit(text: str) -> str | None:
    """All digits of a commit of the repository that the current folder lies in; those given, where it is not known there."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{text}^{{commit}}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        # of a shallow clone, or none
        known = len(text) >= _MIN_COMMIT and set(text) <= set("0123456789abcdef")
        return text if known else None


def _is_of(run: RunRecord, commit: str) -> bool:
    """Records name their commit by its first digits."""
    named = str(run.environment.get("harness_commit", ""))
    return len(named) >= _MIN_COMMIT and (commit.startswith(named) or named.startswith(commit))
