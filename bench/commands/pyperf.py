"""`specheat pyperf`: timed pairs as files of pyperf, for `pyperf compare_to`, `hist`, `stats` and `check`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from bench.options.arguments import declare
from bench.records import files


class Pyperf:
    help = "write the autoregressive and the speculative arm as pyperf suites, to look at with pyperf's own commands"

    def configure(self, parser: ArgumentParser) -> None:
        declare(parser, "results", "--suite")
        parser.add_argument("--arm", choices=("ar", "sd", "both"), default="both", help="which to write (default: both)")
        parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="writes ar.json and sd.json here")

    def run(self, args: Namespace) -> int:
        from bench.analysis.metrics import ArmName
        from bench.reporting.export.pyperf import benchmark_suite, exportable

        export = exportable(files.read_runs(args.results, suite=args.suite))
        for line in export.left_out:
            print(f"left out: {line}", file=sys.stderr)
        args.out.mkdir(parents=True, exist_ok=True)
        arms: tuple[ArmName, ...] = ("ar", "sd") if args.arm == "both" else (args.arm,)
        for arm in arms:
            path = args.out / f"{arm}.json"
            benchmark_suite(export.rows, arm).dump(str(path), replace=True)
            print(path)
        return 0
