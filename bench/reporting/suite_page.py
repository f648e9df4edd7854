"""TODO: purpose."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from bench.analysis.rows import Row, newest_rows, row_groups, scalar_text, split_identity
from bench.records.files import Runs
from bench.records.runs import RunRecord
from bench.reporting import captions, tables
from bench.reporting.captions import FORMULA, caption_facts, crossings, stopped_text, title, wall_text
from bench.reporting.columns import MAIN, certificate_text, identity_column
from bench.reporting.figures.mechanism import has_phases, render_phases
from bench.reporting.formats import labelled, latex_float, latex_packages, markdown, terminal
from bench.reporting.suites import draft_length, dynamic_temperature, virtual_scale
from bench.reporting.suites.backends import compares_backends, comparison_table
from bench.reporting.suites.baseline_strength import baseline_table, newest_baselines
from bench.reporting.suites.cost_of_temperature import cost_table
from bench.reporting.suites.deployment import deployment_table
from bench.reporting.suites.floor import floor_table
from bench.reporting.suites.out_of_range import degeneracy_table
from bench.reporting.table import DERIVED, Table
from bench.reporting.tables import cell_table, mechanism_table, table_body

# Of a suite, beside its main figure: part of the file's name -> whether there is one, and what draws it
FURTHER: Mapping[str, tuple[Callable[[Runs], bool], Callable[[Runs], dict[str, bytes]]]] = {
    "phases": (has_phases, render_phases),
    "scale": (virtual_scale.has_scale, virtual_scale.render_scale),
}


def suite_tables(runs: Runs) -> tuple[Table, ...]:
    """Every table of one suite on one machine."""
    baselines = newest_baselines(runs)
    of_cells = itertools.chain.from_iterable(map(_group_tables, row_groups(newest_rows(runs))))
    return (*of_cells, *((baseline_table(baselines),) if baselines else ()))


def _group_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    tables = (cell_table(rows), mechanism_table(rows))
    return (comparison_table(rows), *tables) if compares_backends(rows) else tables


# The three formats
def terminal_table(run: RunRecord) -> str:
    """What a run found, for the end of a terminal session."""
    if not run.cells:
        return terminal(baseline_table({"": run})) if run.baseline else "nothing was measured"
    rows = newest_rows({"": run})
    varying, constant = split_identity(rows)
    columns = [column for column in (*map(identity_column, varying), *MAIN) if column.narrow is not None]
    body, notes = table_body(rows, columns)
    certificates = Counter(certificate_text(row.verdict.certificate) for row in rows)
    shown = (
        "backend",
        "rule",
        "num_draft_tokens",
        "max_new_tokens",
        "end_token",
        "prompt_set",
        "num_prompts",
        "repeats",
    )
    own = caption_facts(run)
    facts = {
        "formula": FORMULA,
        "T, k": "temperature, num_draft_tokens",
        "machine": own["machine"],
        "pair": f"{run.model_pair.name}: target {run.model_pair.target}, draft {run.model_pair.draft}",
        "every cell": ", ".join(f"{name} {scalar_text(name, constant[name])}" for name in shown if name in constant),
        "A/A floor": own["A/A floor"],
        "AR arm": own["AR arm"],
        "certificate": ", ".join(f"{text} ({count} cells)" for text, count in certificates.items()),
        **stopped_text(run),
        **wall_text(run),
        **crossings(rows),
    }
    headers = tuple(column.narrow or column.header for column in columns)
    return terminal(Table(title(run), headers, body, notes, facts, {}))


def terminal_comparison(runs: Runs) -> str:
    """What a suite found on several backends, side by side."""
    table = comparison_table(newest_rows(runs), narrow=True)
    shown = ("formula", "/ reference's", "peak", "machine")
    return terminal(replace(table, facts={name: table.facts[name] for name in shown if name in table.facts}))


def markdown_table(
    runs: Runs, *, further: Sequence[Table] = (), results: str = "..", figures: Sequence[str | None] = ()
) -> str:
    """The tables of one suite on one machine, for GitHub.

    Args:    further: tables that come behind them; results: path to the folder of records from where the text will lie;
             figures: path of an image to show with the first table of each group of rows, or none
    """
    tables = (*suite_tables(runs), *further)
    first_tables = itertools.accumulate(
        (len(_group_tables(group)) for group in row_groups(newest_rows(runs))), initial=0
    )
    images = {place: figure for place, figure in zip(first_tables, figures, strict=False) if figure}
    name = tables[0].title if tables else title(next(iter(runs.values())))
    blocks = [f"# {name}", f"_{DERIVED}_"]
    for number, table in enumerate(tables):
        if number:
            blocks.append(f"## {table.title}")
        image = f"![{name}]({images[number]})" if number in images else ""
        blocks.append(markdown(table, results, image=image))
    return "\n\n".join(blocks) + "\n"


def latex_table(runs: Runs, *, further: Sequence[Table] = ()) -> str:
    """The tables of one suite on one machine, for a paper.

    One without records of its own is of the rows of the one before it, and those that come behind are of the first one's:
    their captions refer there for machine, versions and settings.
    """
    own = suite_tables(runs)
    labels = labelled((*own, *further))
    floats, main = [], ""
    for number, (table, label) in enumerate(zip((*own, *further), labels, strict=True)):
        main = labels[0] if number >= len(own) else label if table.records else main
        floats.append(latex_float(table, label=label, same_rows=None if table.records else main))
    return f"% {DERIVED}\n{latex_packages((*own, *further))}" + "\n".join(floats)


def further_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """One for each group of a suite's rows; empty where the suite has none, or its records do not hold what it takes."""
    make = _MAKERS.get(rows[0].run.suite) if rows else None
    if make is None:
        return ()
    groups = row_groups(rows)
    found = [(group, table) for group in groups if (table := make(group)).body]
    if len(groups) == 1:
        return tuple(table for _, table in found)
    return tuple(replace(table, facts={"every cell": _what_is_alike(group), **table.facts}) for group, table in found)


def _what_is_alike(rows: Sequence[Row]) -> str:
    """Of one group of several."""
    constant = tables.split_identity(rows)[1]
    told_apart = ("pair", "draft", "dtype", "num_prompts", "repeats", "max_new_tokens")
    return captions.listing({name: constant[name] for name in told_apart if name in constant})


# All
_MAKERS: Mapping[str, Callable[[Sequence[Row]], Table]] = {
    "cost_of_temperature": cost_table,
    "out_of_range": degeneracy_table,
    "deployment": deployment_table,
    "dynamic_temperature": dynamic_temperature.halves_table,
    "draft_length": draft_length.retuning_table,
    "floor": floor_table,
    virtual_scale.SUITE: virtual_scale.scale_table,
}
