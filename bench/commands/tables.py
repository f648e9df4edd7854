"""TODO: purpose."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from bench.analysis.rows import newest_rows, row_groups
from bench.options.arguments import declare
from bench.reporting.derived import chosen_keys, load_experiments, regenerate
from bench.reporting.table import Table

PRINTED = ("markdown", "latex", "terminal")


class Tables:
    help = "write tables, figures and the index of a folder of results"

    def configure(self, parser: ArgumentParser) -> None:
        declare(parser, "results", "--machine", "--suite")
        parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something would change")
        printing = parser.add_argument_group(
            "printing", "With one of these, tables go to standard output and no file is written (docs/results.md)."
        )
        printing.add_argument(
            "--columns",
            metavar="NAMES",
            help="these columns in this order, such as T,k,gamma,alpha; a wrong name lists all",
        )
        printing.add_argument(
            "--pivot",
            nargs=3,
            metavar=("ROW", "x", "COLUMN"),
            help="gamma and alpha (or --columns) over two names of cell identity, such as: T x backend",
        )
        printing.add_argument("--format", choices=PRINTED, help="how to print (default: markdown)")

    def run(self, args: Namespace) -> int:
        from rich.console import Console

        status = Console(stderr=True).status("reading records")
        if args.columns or args.pivot or args.format:
            if args.check:
                raise ValueError(
                    "expected --check alone, got it with --columns, --pivot or --format, which write no file"
                )
            with status:
                text = printed(args)
            print(text, end="")
            return 0
        with status:
            messages = regenerate(args.results, machine=args.machine, suite=args.suite, check=args.check)
        for message in messages:
            print(message)
        return 1 if messages and args.check else 0


def printed(args: Namespace) -> str:
    """What `--columns`, `--pivot` and `--format` ask for."""
    from bench.reporting import formats

    found = tuple(_chosen_tables(args))
    if args.format == "latex":
        return formats.latex_page(found)
    if args.format == "terminal":
        return formats.terminal_page(found)
    folder = args.results.as_posix()
    return "\n".join(f"## {table.title}\n\n{formats.markdown(table, folder)}\n" for table in found)


def _chosen_tables(args: Namespace) -> Iterator[Table]:
    from bench.reporting import custom_tables, suite_page

    experiments = {key: (runs, newest_rows(runs)) for key, runs in load_experiments(args.results).items()}
    asked = chosen_keys(
        [key for key, (_, rows) in experiments.items() if rows], args.results, machine=args.machine, suite=args.suite
    )
    names = [name.strip() for name in args.columns.split(",")] if args.columns else []
    for key in asked:
        runs, rows = experiments[key]
        if args.pivot:
            down, by, across = args.pivot
            if by != "x":
                raise ValueError(f"expected --pivot ROW x COLUMN, got {' '.join(args.pivot)}")
            yield from custom_tables.pivot_tables(rows, down=down, across=across, values=names or custom_tables.VALUES)
        elif names:
            yield from (custom_tables.chosen_table(group, names) for group in row_groups(rows))
        else:
            yield from suite_page.suite_tables(runs, rows)
