"""`specheat history`: what every stored commit measured of a cell."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.options.arguments import declare
from bench.options.values import count_of, temperature_of
from bench.records.files import read_runs

# Fields of a cell by which options select -> how the option's value is parsed
FIELDS: Mapping[str, Callable[[str, str], object]] = {
    "backend": lambda _, text: text,
    "rule": lambda _, text: text,
    "temperature": temperature_of,
    "num_draft_tokens": count_of,
}


class History:
    help = "show gamma and alpha of each cell over all records of it, as tables and as a figure"

    def configure(self, parser: ArgumentParser) -> None:
        declare(parser, "results", "--suite", "--markdown")
        option = parser.add_argument
        option("--backend", metavar="NAME", help="only this backend's cells")
        option("--rule", metavar="NAME", help="only this acceptance rule's cells")
        option("--temperature", metavar="T", help="only cells at this decode temperature")
        option("--num-draft-tokens", metavar="K", help="only cells of this draft length")
        figure = "draw cells of several records into FILE.svg or FILE.png, or into both without an ending"
        option("--figure", type=Path, metavar="FILE", help=figure)

    def run(self, args: Namespace) -> int:
        from bench.reporting import formats, history

        wanted = {
            name: parse(f"--{name.replace('_', '-')}", text)
            for name, parse in FIELDS.items()
            if (text := getattr(args, name)) is not None
        }
        files = () if args.figure is None else _figure_files(args.figure)
        runs = read_runs(args.results, suite=args.suite)
        found = history.histories(runs, wanted=lambda cell: all(getattr(cell, name) == value for name, value in wanted.items()))
        images = history.images(found, [path.suffix[1:] for path in files]) if files else ()
        if args.markdown:
            folder = args.results if args.results.is_dir() else args.results.parent
            print(formats.markdown_sections(history.tables(found), folder.as_posix()))
        else:
            print(formats.terminal_page(history.tables(found, narrow=True)), end="")
        for path, image in zip(files, images, strict=True):
            path.write_bytes(image)
            print(path, file=sys.stderr)
        return 0


def _figure_files(given: Path) -> tuple[Path, ...]:
    from bench.reporting.figures.canvas import FORMATS

    if given.suffix[1:] in FORMATS:
        return (given,)
    return tuple(given.with_name(f"{given.name}.{file_format}") for file_format in FORMATS)
