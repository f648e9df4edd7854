"""`specheat publish`: copy finished records to the published results, and regenerate what is derived from them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.records.environment import machine_slug
from bench.records.files import RECORDS, UNFINISHED, line_header, load_run, record_files
from bench.records.marks import NO_MARKS
from bench.records.storage import write_atomically


class Publish:
    help = "copy finished records to the published results, and regenerate their tables and figures"

    def configure(self, parser: ArgumentParser) -> None:
        option = parser.add_argument
        option("records", nargs="+", type=Path, metavar="RECORD", help="finished record, or folder of them")
        option("--results", type=Path, default=Path("results"), metavar="DIR", help="where they go (default: results)")
        option("--allow-dirty", action="store_true", help="also records of a checkout with uncommitted changes")

    def run(self, args: Namespace) -> int:
        from bench.reporting.derived import regenerate

        # Every record is checked before the first is copied.
        contents: dict[Path, bytes] = {}
        for source in _records(args.records):
            folder, content = folder_of(source, allow_dirty=args.allow_dirty), source.read_bytes()
            target = args.results / folder / RECORDS / source.name
            if contents.setdefault(target, target.read_bytes() if target.exists() else content) != content:
                raise ValueError(f"{target} is already there with other content than {source}")
        for target, content in contents.items():
            if target.exists():
                print(f"{target} is already published")
            else:
                write_atomically(target, content)
                print(f"{target} is new")
        for machine in dict.fromkeys(target.relative_to(args.results).parts[0] for target in contents):
            print("".join(f"{message}\n" for message in regenerate(args.results, machine=machine)), end="")
        return 0


def _records(chosen: Sequence[Path]) -> Iterator[Path]:
    """Yield the records that were named, and the finished ones below the folders that were named."""
    for path in chosen:
        found = record_files(path, "**/*.json*") if path.is_dir() else [path]
        if not found:
            raise ValueError(f"expected finished records in {path}, found none")
        yield from found


def folder_of(record: Path, *, allow_dirty: bool) -> Path:
    """Return <machine>/<suite>, where a record belongs.

    Raises:  ValueError: unfinished, broken, measured with uncommitted changes, or JSON lines of a suite without a page
    """
    from bench.reporting.derived import PAGES

    if record.name.endswith(UNFINISHED):
        raise ValueError(f"{record} is unfinished: end the run with --resume")
    if record.suffix != ".jsonl":
        run = load_run(record)
        env, suite = run.environment, run.suite
    else:
        header = line_header(record, "environment", "created")
        # Records of KD matrices do not name their suite: their folder does.
        env, suite = header["environment"], header.get("suite", record.resolve().parent.parent.name)
        if suite not in PAGES:
            raise ValueError(f"expected {record} in <machine>/<suite>/{RECORDS}, because it does not name its suite")
        PAGES[suite]([record], NO_MARKS)  # a broken one raises here, before anything is copied
    if not allow_dirty and (env.get("harness_dirty") or env.get("backends_dirty")):
        raise ValueError(
            f"{record} was measured with uncommitted changes, so nobody can measure it again; commit them and measure again, "
            "or publish it with --allow-dirty"
        )
    return Path(machine_slug(env), suite)
