"""The page of a suite: all its tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from bench.analysis.rows import Row, row_groups, scalar_text
from bench.options.settings import INFLATED
from bench.records.files import Runs
from bench.records.marks import NO_MARKS, Marks
from bench.reporting.captions import shared, short_prompts
from bench.reporting.columns import MECHANISM
from bench.reporting.figures import canvas, overview
from bench.reporting.figures.mechanism import render_phases
from bench.reporting.formats import distinct_names
from bench.reporting.suites import backends, deployment, draft_length, dynamic_temperature, floor, out_of_range, virtual_scale
from bench.reporting.suites.baseline_strength import baseline_table, newest_baselines
from bench.reporting.suites.cost_of_temperature import cost_table
from bench.reporting.table import Page, Table, with_mark
from bench.reporting.tables import MECHANISM_FACTS, cell_table, row_table

_AMOUNT = ("num_prompts", "repeats", "max_new_tokens")


def page(runs: Runs, rows: Sequence[Row], marks: Marks = NO_MARKS) -> Page:
    """Return every table and figure of one suite on one machine.

    Args:    rows: the newest rows of the runs
    Raises:  BackendUnavailable: matplotlib is missing
    """
    groups = row_groups(rows)
    tables: list[Table] = []
    figures: dict[str, bytes] = {}
    for group, name in zip(groups, _group_names(groups), strict=True):
        with canvas.marked(_mark(group, marks)):
            drawn = {name: overview.render(group)}
            if group is groups[0]:  # the newest group
                drawn |= {f"{name}-phases": render_phases(group), f"{name}-scale": virtual_scale.render_scale(group)}
        of_group = {which: image for which, image in drawn.items() if image is not None}
        first, *others = _group_tables(group, groups, marks)
        tables += [replace(first, figures=tuple(of_group)), *others]
        figures |= of_group
    return Page((*tables, *_baselines(runs, marks)), figures)


def _group_names(groups: Sequence[Sequence[Row]]) -> list[str]:
    """Name the figures of each group by what they show: pairs and prompts, then what else tells groups apart."""
    candidates = []
    for group in groups:
        pairs = dict.fromkeys(row.record.cell.pair.partition(INFLATED)[0] for row in group)
        prompts = dict.fromkeys(short_prompts(row.record.cell.prompt_set) for row in group)
        cell, hashes = group[0].record.cell, group[0].run.model_hashes  # the rows of a group share what follows
        amounts = (f"{cell.num_prompts} prompts", f"{cell.max_new_tokens} tokens", f"{cell.repeats} repeats")
        models = (f"{role} {scalar_text('_hash', hashes.get(role))}" for role in ("draft", "target"))
        candidates.append((" ".join((*pairs, *prompts)), *amounts, *models))
    return distinct_names(candidates)


def suite_tables(runs: Runs, rows: Sequence[Row], marks: Marks = NO_MARKS) -> tuple[Table, ...]:
    """Return every table of one suite on one machine. The rows are the newest ones of the runs."""
    groups = row_groups(rows)
    return (*(table for group in groups for table in _group_tables(group, groups, marks)), *_baselines(runs, marks))


def _mark(rows: Sequence[Row], marks: Marks) -> str:
    return marks.of(dict.fromkeys(row.file for row in rows))


def _group_tables(group: Sequence[Row], groups: Sequence[Sequence[Row]], marks: Marks) -> list[Table]:
    tables = [backends.comparison_table(group)] if backends.compares_backends(group) else []
    # The second one explains gamma: cost ratio, other predictions, and where the seconds of the replay went.
    tables += [cell_table(group), row_table(group, "mechanism", MECHANISM, MECHANISM_FACTS)]
    make = _MAKERS.get(group[0].run.suite)
    own = make(group) if make else None
    if own is not None and own.body:
        apart = {"every cell": shared(group, ("pair", "draft", "dtype", *_AMOUNT))}  # what tells tables of several groups apart
        tables.append(replace(own, facts=apart | own.facts) if len(groups) > 1 else own)
    return [with_mark(table, _mark(group, marks)) for table in tables]


def _baselines(runs: Runs, marks: Marks) -> tuple[Table, ...]:
    baselines = newest_baselines(runs)
    return (with_mark(baseline_table(baselines), marks.of(baselines)),) if baselines else ()


# What only one suite has
_MAKERS: Mapping[str, Callable[[Sequence[Row]], Table]] = {
    "cost_of_temperature": cost_table,
    "out_of_range": out_of_range.degeneracy_table,
    "deployment": deployment.deployment_table,
    "dynamic_temperature": dynamic_temperature.halves_table,
    "draft_length": draft_length.retuning_table,
    "floor": floor.floor_table,
    virtual_scale.SUITE: virtual_scale.scale_table,
}
