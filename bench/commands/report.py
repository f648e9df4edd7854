"""`specheat report`: one HTML page of a folder of results, to open, send or print."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from bench.options.arguments import declare


class Report:
    help = "write one self-contained HTML page of a folder of results"

    def configure(self, parser: ArgumentParser) -> None:
        declare(parser, "results", "--machine")
        out = "page to write (default: report.html)"
        parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help=out)
        parser.add_argument("--suite", metavar="NAME", help="only this suite, without the ledger of claims")

    def run(self, args: Namespace) -> int:
        from bench.reporting.html.page import page

        if not args.out.parent.is_dir():
            raise ValueError(f"expected a file in a folder that exists, got --out {args.out}")
        args.out.write_text(page(args.results, machine=args.machine, suite=args.suite), encoding="utf-8")
        print(args.out)
        return 0
