"""`specheat tables`: write everything that is derived from records, or print chosen tables."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.options.arguments import declare

if TYPE_CHECKING:
    from bench.reporting.table import Table


class Tables:
    help = "write tables, figures and the index of a folder of results"

    def configure(self, parser: ArgumentParser) -> None:
        declare(parser, "results", "--machine", "--suite")
        parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something would change")
        explained = "With one of these, tables go to standard output and no file is written (docs/results.md)."
        option = parser.add_argument_group("printing", explained).add_argument
        columns = "these columns in this order, such as T,k,gamma,alpha; the error for a wrong name lists all"
        option("--columns", metavar="NAMES", help=columns)
        pivot = "gamma and alpha (or --columns) over two names of cell identity, such as: T x backend"
        option("--pivot", nargs=3, metavar=("ROW", "x", "COLUMN"), help=pivot)
        option("--format", choices=("markdown", "latex", "terminal"), help="how to print (default: markdown)")

    def run(self, args: Namespace) -> int:
        from bench.reporting import derived, formats

        if not (args.columns or args.pivot or args.format):
            messages = derived.regenerate(args.results, machine=args.machine, suite=args.suite, check=args.check)
            print("".join(f"{message}\n" for message in messages), end="")
            return 1 if messages and args.check else 0  # with --check the messages list what would change
        if args.check:
            raise ValueError("expected --check alone, got it with --columns, --pivot or --format, which write no file")
        tables = tuple(_chosen_tables(args))
        if args.format == "latex":
            print(formats.latex_page(tables), end="")
        elif args.format == "terminal":
            print(formats.terminal_page(tables), end="")
        else:
            print(formats.markdown_sections(tables, args.results.as_posix()))
        return 0


def _chosen_tables(args: Namespace) -> Iterator[Table]:
    from bench.analysis.rows import newest_rows, row_groups
    from bench.records.marks import load_marks
    from bench.reporting import custom_tables, derived, suite_page
    from bench.reporting.table import with_mark

    experiments, marks = derived.load_experiments(args.results), load_marks(args.results)
    with_cells = [key for key, runs in experiments.items() if any(run.cells for run in runs.values())]
    names = [name.strip() for name in args.columns.split(",")] if args.columns else []
    for key in derived.chosen_keys(with_cells, args.results, machine=args.machine, suite=args.suite):
        rows = newest_rows(experiments[key])
        if args.pivot:
            down, by, across = args.pivot
            if by != "x":  # it only makes the command readable: T x backend
                raise ValueError(f"expected --pivot ROW x COLUMN, got {' '.join(args.pivot)}")
            made = tuple(custom_tables.pivot_tables(rows, down=down, across=across, values=names or custom_tables.VALUES))
            yield from (with_mark(table, marks.of(table.records)) for table in made)
        elif names:
            made = tuple(custom_tables.chosen_table(group, names) for group in row_groups(rows))
            yield from (with_mark(table, marks.of(table.records)) for table in made)
        else:
            yield from suite_page.suite_tables(experiments[key], rows, marks)
