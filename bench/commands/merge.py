"""`specheat merge`: join records that were measured by several processes, with the provenance of every line."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path


class Merge:
    help = "join KD matrices of other seeds or arms, or token lengths of other temperatures, into one record"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("records", nargs="+", type=Path, metavar="RECORD", help="finished records; they stay as they are")
        parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="record to write; it must not exist")

    def run(self, args: Namespace) -> int:
        from bench.records.merge import merged
        from bench.records.storage import write_atomically

        if args.out.exists():
            raise ValueError(f"expected a new file, got --out {args.out}, which exists")
        write_atomically(args.out, merged(args.records))
        print(args.out)
        return 0
