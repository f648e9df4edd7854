"""`specheat frame`: every timed pair as a row of one table, for other programs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BackendUnavailable
from bench.options.arguments import declare
from bench.records import files

if TYPE_CHECKING:
    import pandas as pd

    from bench.records.files import Runs


class Frame:
    help = "write every timed pair as a row of one tidy table, as CSV or parquet; without either, count them"

    def configure(self, parser: ArgumentParser) -> None:
        declare(parser, "results", "--suite")
        parser.add_argument("--csv", metavar="FILE", help="write CSV; - is standard output")
        parser.add_argument("--parquet", type=Path, metavar="FILE", help="write parquet")

    def run(self, args: Namespace) -> int:
        from bench.reporting.export.frame import frame_of

        runs = files.read_runs(args.results, suite=args.suite)
        pairs = frame_of(runs)
        if args.csv is not None:
            pairs.to_csv(sys.stdout if args.csv == "-" else args.csv, index=False)
        if args.parquet is not None:
            try:
                pairs.to_parquet(args.parquet, index=False)
            except ImportError:  # pandas writes parquet only with another package
                raise BackendUnavailable("parquet needs pyarrow: pip install pyarrow") from None
        if args.csv is None and args.parquet is None:
            print(_summary(runs, pairs))
        return 0


def _summary(runs: Runs, pairs: pd.DataFrame) -> str:
    """Return a table of what there is of each suite."""
    from bench.reporting.formats import terminal
    from bench.reporting.table import table_of

    cells = [(run.suite, record) for run in runs.values() for record in run.cells]
    counts = {
        "records": Counter(run.suite for run in runs.values()),
        "cells": Counter(suite for suite, _ in cells),
        "cells without\npairs": Counter(suite for suite, record in cells if not record.pairs),
        "rows": Counter(pairs["suite"]),
        "rows of\nINVALID cells": Counter(pairs["suite"][pairs["verdict"] == "INVALID"]),
    }
    lines = [(suite, *(str(count[suite]) for count in counts.values())) for suite in sorted(counts["records"])]
    facts = {
        "rows": f"{len(pairs)} timed pairs with {len(pairs.columns)} columns; --csv FILE or --parquet FILE writes them",
        "cells without pairs": "failed; they have no rows",
    }
    return terminal(table_of("", ("suite", *counts), lines, facts))
