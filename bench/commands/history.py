"""`specheat history`: what every stored commit measured of a cell."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.options import arguments
from bench.options.values import count_of, temperature_of
from bench.records.files import read_runs

if TYPE_CHECKING:
    from bench.records.runs import Cell


# Fields of a cell by which options select -> how the option's text is read
_FIELDS: Mapping[str, Callable[[str, str], object]] = {
    "backend": lambda _, text: text,
    "rule": lambda _, text: text,
    "temperature": temperature_of,
    "num_draft_tokens": count_of,
}


class History:
    help = "show gamma and alpha of each cell over all records of it, as tables and as a figure"

    def configure(self, parser: ArgumentParser) -> None:
        arguments.add_arguments(parser)
        parser.add_argument("--backend", metavar="NAME", help="only this backend's cells")
        parser.add_argument("--rule", metavar="NAME", help="only this acceptance rule's cells")
        parser.add_argument("--temperature", metavar="T", help="only cells at this decode temperature")
        parser.add_argument("--num-draft-tokens", metavar="K", help="only cells of this draft length")
        parser.add_argument("--markdown", action="store_true", help="print tables for GitHub")
        parser.add_argument(
            "--figure",
            type=Path,
            metavar="FILE",
            help="draw cells of several records; FILE.svg or FILE.png, or both where it ends in neither",
        )

    def run(self, args: Namespace) -> int:
        from bench.reporting import history

        asked = {
            name: parse(f"--{name.replace('_', '-')}", text)
            for name, parse in _FIELDS.items()
            if (text := getattr(args, name)) is not None
        }
        files = () if args.figure is None else _figure_files(args.figure)
        runs = read_runs(args.results, suite=args.suite)
        found = history.histories(runs, wanted=lambda cell: _is_as_asked(cell, asked))
        images = history.images(found, [path.suffix[1:] for path in files]) if files else ()
        if args.markdown:
            folder = args.results if args.results.is_dir() else args.results.parent
            print(history.markdown_page(found, results=folder.as_posix()))
        else:
            print(history.terminal_page(found))
        for path, image in zip(files, images, strict=True):
            path.write_bytes(image)
            print(path, file=sys.stderr)
        return 0


def _is_as_asked(cell: Cell, asked: Mapping[str, object]) -> bool:
    return all(getattr(cell, name) == value for name, value in asked.items())


def _figure_files(asked: Path) -> tuple[Path, ...]:
    from bench.reporting.figures.canvas import FORMATS

    if asked.suffix[1:] in FORMATS:
        return (asked,)
    return tuple(asked.with_name(f"{asked.name}.{file_format}") for file_format in FORMATS)
