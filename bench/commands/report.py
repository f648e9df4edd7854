"""`specheat report`: one HTML page of a folder of results, to open, send or print."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.reporting.html.page import Key


class Report:
    help = "write one self-contained HTML page of a folder of results"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder (default: results)")
        parser.add_argument(
            "--out", type=Path, default=Path("report.html"), metavar="FILE", help="page to write (default: report.html)"
        )
        parser.add_argument("--machine", metavar="NAME", help="only this machine")
        parser.add_argument("--suite", metavar="NAME", help="only this suite, without the ledger of claims")

    def run(self, args: Namespace) -> int:
        from rich.console import Console
        from rich.markup import escape

        from bench.progress import with_bar
        from bench.reporting.html import page as html_page

        if not args.out.parent.is_dir():
            raise ValueError(f"expected a file in a folder that exists, got --out {args.out}")
        console = Console(stderr=True)
        reading = console.status(f"reading {escape(str(args.results))}")

        def shown(keys: Sequence[Key]) -> Iterable[Key]:
            reading.stop()
            return with_bar(keys, "tables and figures")

        with reading:
            page = html_page.page(args.results, machine=args.machine, suite=args.suite, track=shown)
        args.out.write_text(page, encoding="utf-8")
        print(args.out)
        return 0
