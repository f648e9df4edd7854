"""`specheat publish`: copy finished records to the published results, and regenerate what is derived from them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records.environment import machine_slug
from bench.records.files import RECORDS, UNFINISHED, line_header, load_run, record_files
from bench.records.storage import write_atomically


@dataclass(frozen=True, slots=True)
class Copy:
    """A record and the place for its copy."""

    source: Path
    machine: str
    suite: str
    dirty: bool

    def target(self, results: Path) -> Path:
        return results / self.machine / self.suite / RECORDS / self.source.name


class Publish:
    help = "copy finished records to the published results, and regenerate their tables and figures"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "records", nargs="+", type=Path, metavar="RECORD", help="finished record, or folder of them"
        )
        parser.add_argument(
            "--results", type=Path, default=Path("results"), metavar="DIR", help="where they go (default: results)"
        )
        parser.add_argument(
            "--allow-dirty", action="store_true", help="also records of a checkout with uncommitted changes"
        )

    def run(self, args: Namespace) -> int:
        from bench.reporting.derived import regenerate

        copies = [copy_of(path) for path in _records(args.records)]
        check(copies, args.results, allow_dirty=args.allow_dirty)
        for copy in copies:
            target = copy.target(args.results)
            if target.exists():
                print(f"{copy.source} is already published: {target}")
            else:
                write_atomically(target, copy.source.read_bytes())
                print(f"{copy.source} -> {target}")
        for machine in dict.fromkeys(copy.machine for copy in copies):
            for message in regenerate(args.results, machine=machine):
                print(message)
        return 0


def _records(chosen: Sequence[Path]) -> Iterator[Path]:
    """Yield the finished records that were named, and those below the folders that were named."""
    for path in chosen:
        if not path.is_dir():
            yield path
            continue
        found = record_files(path, "**/*.json*")
        if not found:
            raise ValueError(f"expected finished records in {path}, found none")
        yield from found


def copy_of(path: Path) -> Copy:
    """Return where a record belongs.

    Raises:  ValueError: unfinished, broken, or JSON lines of no suite with a page
    """
    from bench.reporting.derived import page_maker

    if path.name.endswith(UNFINISHED):
        raise ValueError(f"{path} is unfinished: end the run with --resume")
    if path.suffix != ".jsonl":
        run = load_run(path)
        env, suite = run.environment, run.suite
    else:
        header = line_header(path, "environment", "created")
        # Records of KD matrices do not name their suite: their folder does.
        env, suite = header["environment"], header.get("suite", path.resolve().parent.parent.name)
        make = page_maker(suite)
        if make is None:
            raise ValueError(f"expected {path} in <machine>/<suite>/{RECORDS}, because it does not name its suite")
        make([path])  # a broken one raises here, before anything is copied
    return Copy(path, machine_slug(env), suite, bool(env.get("harness_dirty") or env.get("backends_dirty")))


def check(copies: Sequence[Copy], results: Path, *, allow_dirty: bool) -> None:
    """Check every record before the first is copied.

    Raises:  ValueError: a record of uncommitted code, or another record of that name is there
    """
    contents: dict[Path, bytes] = {}
    for copy in copies:
        if copy.dirty and not allow_dirty:
            raise ValueError(
                f"{copy.source} was measured with uncommitted changes, so nobody can measure it again; "
                "commit them first, or publish it with --allow-dirty"
            )
        target, content = copy.target(results), copy.source.read_bytes()
        there = contents.setdefault(target, target.read_bytes() if target.exists() else content)
        if there != content:
            raise ValueError(f"{target} is already there with other content than {copy.source}")
