"""One HTML page of a folder of results: claims, machines, tables, figures, and the command that measures each cell again.

The page requests nothing beyond itself, and states so in a policy that browsers enforce. The same records give the same bytes.
The template does the layout, and escapes every text of a record.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from bench.analysis.rows import Row, all_rows, newest_of, oldest_first, row_groups, scalar_text
from bench.claims import ledger
from bench.claims.claim import LedgerRow
from bench.progress import with_bar
from bench.records.command_line import shell_text
from bench.records.decoding import Scalar
from bench.records.files import Runs, line_header
from bench.records.marks import Marks, load_marks
from bench.reporting.captions import commit_words, machine_text
from bench.reporting.columns import identity_columns
from bench.reporting.derived import chosen_keys, find_others, lines_page, load_experiments, predicted_figure
from bench.reporting.formats import alignments, slug
from bench.reporting.ledger import tables as ledger_tables
from bench.reporting.repeat import cell_command
from bench.reporting.suite_page import page as cells_page
from bench.reporting.table import MISSING, Page, Table, table_of

TEMPLATE = Path(__file__).with_name("template")
Key = tuple[str, str]  # machine, suite

# Verdict -> class of its colour, and a shape for those who see no colour.
LOOKS: Mapping[str, tuple[str, str]] = {
    "FASTER": ("good", "▲"),
    "SLOWER": ("bad", "▼"),
    "SAME": ("even", "="),
    "INCONCLUSIVE": ("open", "?"),
    "INVALID": ("void", "✕"),
    "SUPPORTED": ("good", "✓"),
    "REFUTED": ("bad", "✕"),
    "EQUIVALENT": ("even", "="),
    "NOT MEASURED": ("none", "○"),
    "LOSSLESS": ("good", "✓"),
    "LOSSY": ("bad", "✕"),
    "LOSSY-DECLARED": ("warn", "!"),
    "none yet": ("none", "○"),
}


@dataclass(frozen=True, slots=True)
class Source:
    file: str
    created: str
    environment: Mapping[str, Scalar]
    preset: str
    measured: str
    command: Sequence[str]


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    page: Page
    sources: tuple[Source, ...]  # newest first
    rows: tuple[Row, ...]  # the newest of each cell; empty for records of JSON lines


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything measured on one machine."""

    name: str
    suites: tuple[Suite, ...]
    ledgers: Mapping[str, Sequence[LedgerRow]]  # by pair
    predicted: bytes | None  # figure of cells of all suites

    @property
    def sources(self) -> list[Source]:
        every = (source for suite in self.suites for source in suite.sources)
        return sorted(every, key=lambda source: source.created, reverse=True)


def page(results: Path, *, machine: str | None = None, suite: str | None = None) -> str:
    """Return the page of a folder of results, or of one machine or suite of it; a suite alone has no ledger.

    Raises:  ValueError: no such folder, no records of that machine or suite, or a broken one
             BackendUnavailable: matplotlib is missing
    """
    experiments, others, marks = load_experiments(results), find_others(results), load_marks(results)
    keys = chosen_keys({*experiments, *others}, results, machine=machine, suite=suite)
    machines = []
    for name, of_machine in itertools.groupby(with_bar(keys, "tables and figures"), key=lambda key: key[0]):
        suites, every = [], {}
        for key in of_machine:
            if key in experiments:
                every[key[1]] = all_rows(experiments[key])
                suites.append(_of_cells(key, experiments[key], newest_of(every[key[1]]), marks))
            else:
                suites.append(_of_lines(key, others[key], results))
        judged = ledger.ledgers(results, name, rows=every) if suite is None else {}
        predicted = predicted_figure([row for each in suites for row in each.rows], marks) if suite is None else None
        machines.append(Machine(name, tuple(suites), judged, predicted))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    filters = (alignments, cell_commands, counts, image, machine_text, merged, record_table, slug)
    environment.filters |= {each.__name__: each for each in filters} | {
        "ledger_tables": partial(ledger_tables, marks=marks),
        "look": LOOKS.get,
    }
    return environment.get_template("page.html").render(machines=machines, meanings=_meanings())


def _of_cells(key: Key, runs: Runs, rows: tuple[Row, ...], marks: Marks) -> Suite:
    sources = []
    for file, run in reversed(oldest_first(runs)):
        measured = str(len(run.cells)) if run.cells else f"{len(run.baseline)} baseline triples"
        sources.append(Source(file, run.created, run.environment, run.preset, measured, run.command))
    return Suite(key[1], cells_page(runs, rows, marks), tuple(sources), rows)


def _of_lines(key: Key, paths: Sequence[Path], results: Path) -> Suite:
    sources = []
    for path in reversed(paths):
        header = line_header(path, "environment", "created")
        about = (header["created"], header["environment"], header.get("preset", MISSING), MISSING, header["command"])
        sources.append(Source(path.relative_to(results).as_posix(), *about))
    return Suite(key[1], lines_page(key, paths, results), tuple(sources), ())


# What the template calls
def merged(sources: Sequence[Source]) -> list[tuple[str, str]]:
    """Return every key of the environments with its values, the newest record's first."""
    values: dict[str, dict[str, None]] = {}
    for source in sources:
        for name, value in source.environment.items():
            values.setdefault(name, {})[scalar_text(name, value)] = None
    return [(name, " · ".join(texts)) for name, texts in values.items()]


def counts(judged: Sequence[LedgerRow]) -> Sequence[tuple[str, int]]:
    """Return how often each verdict occurs, the most frequent first."""
    return Counter(row.verdict for row in judged).most_common()


def record_table(sources: Sequence[Source]) -> Table:
    headers = ("record", "date", "commit", "preset", "cells", "command")
    lines = [
        (one.file, one.created[:10], commit_words(one.environment), one.preset, one.measured, shell_text(one.command))
        for one in sources
    ]
    return table_of("Records", headers, lines, {})


def cell_commands(rows: Sequence[Row]) -> list[Table]:
    """Return for each group of rows the commands that measure a cell again, in the order of the rows."""
    tables = []
    for group in row_groups(rows):
        columns, lines = identity_columns(group), []
        for row in group:
            values = (column.text(row) for column in columns)
            lines.append((*values, commit_words(row.run.environment), cell_command(row, group)))
        headers = (*(column.header for column in columns), "commit", "command")
        tables.append(table_of("Each cell", headers, lines, {}))
    return tables


def image(svg: bytes) -> Markup:
    """Return a figure as the address of an image, for an attribute in double quotes."""
    # Coordinates are cut to hundredths of a point, which nobody sees.
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(?<=\.\d\d)\d+", "", path[0]), svg.decode())
    return Markup("data:image/svg+xml," + quote(" ".join(text.replace('"', "'").split()), safe=" ='/:;,()+!?*$@"))


def _meanings() -> Markup:
    """Return the list of meanings as HTML. Its links lead to other files, so that only their words stay."""
    made = MarkdownIt("commonmark").enable("table").render(TEMPLATE.joinpath("meanings.md").read_text(encoding="utf-8"))
    return Markup(re.sub(r"</?a\b[^>]*>", "", made).replace("<table>", '<table class="data">'))
