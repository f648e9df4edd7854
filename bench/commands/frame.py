"""`specheat frame`: every timed pair as a row of one table, for other programs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BackendUnavailable
from bench.options import arguments
from bench.records import files

if TYPE_CHECKING:
    import pandas as pd

    from bench.records.files import Runs


class Frame:
    help = "write every timed pair as a row of one tidy table, as CSV or parquet; without either, count them"

    def configure(self, parser: ArgumentParser) -> None:
        arguments.add_arguments(parser)
        parser.add_argument("--csv", metavar="FILE", help="write CSV; - is standard output")
        parser.add_argument("--parquet", type=Path, metavar="FILE", help="write parquet")

    def run(self, args: Namespace) -> int:
        from bench.reporting.export.frame import frame_of

        runs = files.read_runs(args.results, suite=args.suite)
        pairs = frame_of(runs)
        if args.csv is not None:
            pairs.to_csv(sys.stdout if args.csv == "-" else args.csv, index=False)
        if args.parquet is not None:
            _write_parquet(pairs, args.parquet)
        if args.csv is None and args.parquet is None:
            print(_summary(runs, pairs))
        return 0


def _write_parquet(pairs: pd.DataFrame, path: Path) -> None:
    try:
        pairs.to_parquet(path, index=False)
    except ImportError:
        raise BackendUnavailable("parquet needs pyarrow: pip install pyarrow") from None


def _summary(runs: Runs, pairs: pd.DataFrame) -> str:
    from bench.reporting.formats import terminal
    from bench.reporting.table import Entry, Table

    records = Counter(run.suite for run in runs.values())
    cells = Counter(run.suite for run in runs.values() for _ in run.cells)
    failed = Counter(run.suite for run in runs.values() for record in run.cells if not record.pairs)
    rows = Counter(pairs["suite"])
    invalid = Counter(pairs["suite"][pairs["verdict"] == "INVALID"])
    headers = ("suite", "records", "cells", "cells without\npairs", "rows", "rows of\nINVALID cells")
    counts = (records, cells, failed, rows, invalid)
    body = tuple((Entry(suite), *(Entry(str(count[suite])) for count in counts)) for suite in sorted(records))
    facts = {
        "rows": f"{len(pairs)}, one a timed pair, of {len(pairs.columns)} columns; --csv FILE or --parquet FILE writes them",
        "cells without pairs": "failed; they have no rows",
    }
    return terminal(Table("", headers, body, (), facts, {}))
