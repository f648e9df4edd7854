"""One HTML page of a folder of results: claims, machines, tables, figures, and what measures each cell again.

The page asks for nothing beyond itself, and says so in a policy that browsers enforce. The same records give the same bytes.
Every text of a record is escaped by the template; the few fragments that are not come from figures and markdown made here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from bench.analysis import rows
from bench.analysis.rows import Row
from bench.claims import ledger
from bench.claims.claim import LedgerRow
from bench.records import files
from bench.records.decoding import Scalar
from bench.records.files import Runs
from bench.records.runs import RunRecord
from bench.reporting import captions, suite_page
from bench.reporting.derived import Others, asked_keys, find_others, load_experiments
from bench.reporting.figures import mechanism, overview
from bench.reporting.html.svg import each_hatch_once, inline_svg
from bench.reporting.ledger import table as ledger_table
from bench.reporting.repeat import as_typed, cell_command
from bench.reporting.table import Entry, Table

if TYPE_CHECKING:
    from bench.reporting.derived import Experiments


HEADER = ("environment", "created")  # what a record of JSON lines must say
TEMPLATE = Path(__file__).with_name("template")
Key = tuple[str, str]  # machine, suite
Track = Callable[[Sequence[Key]], Iterable[Key]]  # goes through them, and may show how far it is

# Verdict -> class of its colour, and a shape for those who see no colour.
LOOKS: Mapping[str, tuple[str, str]] = {
    "FASTER": ("good", "▲"),
    "SLOWER": ("bad", "▼"),
    "INDISTINGUISHABLE": ("even", "="),
    "INCONCLUSIVE": ("open", "?"),
    "INVALID": ("void", "✕"),
    "SUPPORTED": ("good", "✓"),
    "REFUTED": ("bad", "✕"),
    "NOT MEASURED": ("none", "○"),
    "LOSSLESS": ("good", "✓"),
    "LOSSY": ("bad", "✕"),
    "LOSSY-DECLARED": ("warn", "!"),
    "none yet": ("none", "○"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Of a claim: what was compared, and what measures it again."""

    claim: str
    measured: str
    compared: str
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The claims of one pair."""

    anchor: str
    table: Table
    counts: tuple[tuple[str, int], ...]  # verdict -> how often, most first
    details: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Suite:
    """What one suite found on one machine."""

    anchor: str
    name: str
    tables: tuple[Table, ...]
    text: Markup  # of records in a form of their own, instead of tables
    figures: tuple[Markup, ...]
    records: Table
    cells: tuple[Table, ...]  # commands, one a cell


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything measured on one machine."""

    anchor: str
    name: str
    summary: str
    environment: tuple[tuple[str, str], ...]
    ledgers: tuple[Ledger, ...]
    figures: tuple[Markup, ...]  # of cells of all suites
    suites: tuple[Suite, ...]


def page(results: Path, *, machine: str | None = None, suite: str | None = None, track: Track = iter) -> str:
    """The page of a folder of results, of one machine or suite where that is asked for; a suite alone has no ledger.

    Raises:  ValueError: no such folder, no records that are asked for, or a broken one
             BackendUnavailable: matplotlib is missing
    """
    experiments, others = load_experiments(results), find_others(results)
    asked = asked_keys({*experiments, *others}, results, machine=machine, suite=suite)
    made = {key: _suite(key, experiments, others) for key in track(asked)}
    machines = tuple(
        _machine(name, results, experiments, others, made, whole=suite is None)
        for name in dict.fromkeys(name for name, _ in asked)
    )
    text = _template().render(
        machines=machines,
        meanings=Markup(markdown(TEMPLATE.joinpath("meanings.md").read_text(encoding="utf-8"))),
        num_records=sum(len(one.records.body) for one in made.values()),
        newest=max(date for one in made.values() for date in _column(one.records, "date")),
    )
    return each_hatch_once(text)


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"look": LOOKS.get, "numeric": numeric_columns, "slug": slug}
    return environment.get_template("page.html")


def slug(text: str) -> str:
    """As an anchor."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def numeric_columns(table: Table) -> tuple[bool, ...]:
    """Whether each column holds numbers, which stand at the right."""
    columns = zip(*table.body, strict=True)
    return tuple(any(entry.text[:1].isdigit() for entry in column) for column in columns)


def _column(table: Table, header: str) -> list[str]:
    place = table.headers.index(header)
    return [entries[place].text for entries in table.body]


# Machines
def _machine(
    name: str,
    results: Path,
    experiments: Experiments,
    others: Others,
    made: Mapping[Key, Suite],
    *,
    whole: bool,
) -> Machine:
    environments = _environments(name, experiments, others)
    ledgers = ledger.ledgers(results, name) if whole else {}
    cells = [row for key, runs in experiments.items() if key[0] == name and whole for row in rows.newest_rows(runs)]
    return Machine(
        anchor=slug(name),
        name=name,
        summary=captions.machine_text(environments[0]),
        environment=_merged(environments),
        ledgers=tuple(_ledger(name, pair, judged) for pair, judged in ledgers.items()),
        figures=_figures(slug(name), {"predicted": mechanism.render_predicted(cells)}),
        suites=tuple(suite for key, suite in made.items() if key[0] == name),
    )


def _environments(machine: str, experiments: Experiments, others: Others) -> list[Mapping[str, Scalar]]:
    """Of every record, newest first."""
    found = [
        (run.created, run.environment)
        for key, runs in experiments.items()
        if key[0] == machine
        for run in runs.values()
    ]
    for key, (_, paths) in others.items():
        if key[0] == machine:
            found += [
                (header["created"], header["environment"])
                for header in (files.line_header(path, *HEADER) for path in paths)
            ]
    return [environment for _, environment in sorted(found, key=lambda one: one[0], reverse=True)]


def _merged(environments: Sequence[Mapping[str, Scalar]]) -> tuple[tuple[str, str], ...]:
    """Each key with its values, the newest record's first."""
    names = dict.fromkeys(name for environment in environments for name in environment)
    return tuple(
        (name, " · ".join(dict.fromkeys(rows.scalar_text(name, one[name]) for one in environments if name in one)))
        for name in names
    )


def _ledger(machine: str, pair: str, judged: Sequence[LedgerRow]) -> Ledger:
    return Ledger(
        anchor=slug(f"{machine} ledger {pair}"),
        table=ledger_table(pair, judged),
        counts=tuple(Counter(row.verdict for row in judged).most_common()),
        details=tuple(map(_measured, judged)),
    )


def _measured(row: LedgerRow) -> Measured:
    commands = (row.claim.command,) if row.finding is None else row.finding.commands
    compared = "" if row.finding is None else row.finding.detail
    return Measured(row.claim.name, row.claim.measured, compared, tuple(map(as_typed, commands)))


# Suites
def _suite(key: Key, experiments: Experiments, others: Others) -> Suite:
    return _suite_of_lines(key, *others[key]) if key in others else _suite_of_cells(key, experiments[key])


def _suite_of_cells(key: Key, runs: Runs) -> Suite:
    cells = rows.newest_rows(runs)
    anchor = slug(" ".join(key))
    further = {what: render(runs) for what, (_, render) in suite_page.FURTHER.items()}
    images = overview.render(runs) | further
    newest_first = sorted(runs.items(), key=lambda item: (item[1].created, item[0]), reverse=True)
    return Suite(
        anchor=anchor,
        name=key[1],
        tables=(*suite_page.suite_tables(runs), *suite_page.further_tables(cells)),
        text=Markup(),
        figures=_figures(anchor, images),
        records=_record_table([_record_texts(file, run) for file, run in newest_first]),
        cells=tuple(map(_command_table, rows.row_groups(cells))),
    )


def _suite_of_lines(key: Key, make: Callable[[Sequence[Path]], Any], paths: Sequence[Path]) -> Suite:
    """Records of JSON lines, which another package makes a page of."""
    made, anchor = make(paths), slug(" ".join(key))
    return Suite(
        anchor=anchor,
        name=key[1],
        tables=(),
        text=markdown(made.markdown),
        figures=_figures(anchor, made.images),
        records=_record_table([_line_texts(path) for path in reversed(paths)]),
        cells=(),
    )


def _record_table(lines: Sequence[tuple[str, ...]]) -> Table:
    headers = ("record", "date", "commit", "preset", "cells", "command")
    return Table("Records", headers, tuple(tuple(map(Entry, texts)) for texts in lines), (), {}, {})


def _record_texts(file: str, run: RunRecord) -> tuple[str, ...]:
    measured = str(len(run.cells)) if run.cells else f"{len(run.baseline)} baseline triples"
    return file, run.created[:10], _commit(run.environment), run.preset, measured, as_typed(run.command)


def _line_texts(path: Path) -> tuple[str, ...]:
    header = files.line_header(path, *HEADER)
    file = "/".join(path.parts[-3:])
    commit, command = _commit(header["environment"]), as_typed(header["command"])
    return file, header["created"][:10], commit, header.get("preset", "–"), "–", command


def _commit(environment: Mapping[str, Scalar]) -> str:
    changed = " with uncommitted changes" if environment.get("harness_dirty") else ""
    return f"{environment.get('harness_commit', 'unknown')}{changed}"


def _command_table(group: Sequence[Row]) -> Table:
    """What measures each cell of a table again, in the order of its rows."""
    names, _ = rows.split_identity(group)
    body = []
    for row in group:
        values = rows.identity(row)
        texts = [rows.scalar_text(name, values.get(name)) for name in names]
        body.append(tuple(map(Entry, (*texts, _commit(row.run.environment), cell_command(row, group)))))
    return Table(f"{captions.title(group[0].run)}: each cell", (*names, "commit", "command"), tuple(body), (), {}, {})


# Fragments
def markdown(text: str) -> Markup:
    """Markdown as HTML without anything that leads elsewhere: links and images leave their text, raw HTML is escaped."""
    made = MarkdownIt("commonmark", {"html": False}).enable("table")
    for name in ("link_open", "link_close"):
        made.add_render_rule(name, _nothing)
    made.add_render_rule("image", _alternative)
    made.add_render_rule("table_open", _table_open)
    made.add_render_rule("table_close", _table_close)
    return Markup(made.render(text))


def _nothing(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return ""


def _alternative(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return str(Markup.escape(tokens[index].content))


def _table_open(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table class="data">\n'


def _table_close(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return "</table></div>\n"


def _figures(anchor: str, images: Mapping[str, Mapping[str, bytes]]) -> tuple[Markup, ...]:
    """Each as a part of the page, by what it shows beside the main figure."""
    return tuple(
        inline_svg(formats["svg"], prefix=slug(f"{anchor} {name} figure"), label=f"Figure of {anchor} {name}".strip())
        for name, formats in images.items()
        if formats
    )
