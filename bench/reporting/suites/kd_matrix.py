"""Tables and heat maps of a KD matrix: alpha of every kind of draft at every decode temperature, and its change.

Changes and regrets are in points, which are hundredths of alpha.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.analysis import kd_matrix as analysis
from bench.analysis.kd_matrix import Intervals, Kind, changes, decode_temperatures, kinds_of
from bench.records.kd_matrix import IN_SECONDS_OF, NUM_DRAFT_TOKENS, START, Matrix, merged
from bench.records.marks import NO_MARKS, Marks
from bench.reporting.captions import short_prompts
from bench.reporting.figures import canvas
from bench.reporting.formats import distinct_names
from bench.reporting.numbers import plus_minus_text
from bench.reporting.table import Entry, Facts, Line, Page, Table, table_of, with_mark
from bench.statistics.intervals import Interval

POINTS = 100.0


def derived(records: Sequence[Path], marks: Marks = NO_MARKS) -> Page:
    """Return the tables and heat maps of records. Records that were made alike count as one; the newest come first.

    Args:    records: oldest first; marks: by their paths
    """
    matrices = merged(records)
    shown = [(matrix, domain, _apart(matrix, matrices)) for matrix in matrices for domain in matrix.domains]
    names = distinct_names([(f"{matrix.pair} {short_prompts(domain)}{apart}", domain) for matrix, domain, apart in shown])
    found: list[Table] = []
    figures = {}
    for name, (matrix, domain, apart) in zip(names, shown, strict=True):
        mark = marks.of(map(str, matrix.records))
        first, *others = _domain_tables(matrix.on(domain), f"{domain}{apart}")
        with canvas.marked(mark):
            image = heat_maps(matrix.on(domain))
        if image:
            figures[name], first = image, replace(first, figures=(name,))
        made = [first, *others, *(_cost_tables(matrix, apart) if domain == matrix.domains[-1] else [])]
        found += [with_mark(table, mark) for table in made]
    return Page(tuple(found), figures)


def _apart(matrix: Matrix, matrices: Sequence[Matrix]) -> str:
    """Return the settings that tell a matrix from others on the same domains, for titles; empty if there are no others."""
    alike = [_settings(each) for each in matrices if set(each.domains) & set(matrix.domains)]
    own = _settings(matrix)
    differing = [name for name in own if any(each.get(name) != own[name] for each in alike)]
    return "".join(f", {name} {own[name]}" for name in differing)


def _settings(matrix: Matrix) -> dict[str, str]:
    job = matrix.plan["job"]
    shared = job | job["plan"] | {"decode_temperatures": matrix.plan["decode_temperatures"]}
    return {name: str(value) for name, value in shared.items() if name not in ("plan", "recipe", "seed", "text_tokens")}


# Tables
def tables(matrix: Matrix) -> tuple[Table, ...]:
    """Return the tables of each domain, then the cost of the drafts. The start alone has only its alpha."""
    of_domains = [table for domain in matrix.domains for table in _domain_tables(matrix.on(domain), domain)]
    return (*of_domains, *_cost_tables(matrix))


def _domain_tables(matrix: Matrix, where: str) -> list[Table]:
    found, temperatures = analysis.alphas(matrix), [f"T = {temperature:g}" for temperature in decode_temperatures(matrix)]
    best = [max(value.estimate for value in of_column if value) for of_column in zip(*found.values(), strict=True)]
    bold = {kind: [_alpha(value, at) for value, at in zip(row, best, strict=True)] for kind, row in found.items()}
    made = [_kind_table(f"alpha on {where}", temperatures, bold, _alpha_facts(matrix))]
    if len(kinds_of(matrix)) > 1:
        change = {kind: list(map(_change, row)) for kind, row in changes(matrix).items()}
        made.append(_kind_table(f"change of alpha on {where}", temperatures, change, _CHANGE_FACTS))
        regret = {
            kind: [Entry(f"{POINTS * points:.1f}") for points in mean_and_largest]
            for kind, mean_and_largest in sorted(analysis.regrets(found).items(), key=lambda item: item[1])
        }
        made.append(_kind_table(f"regret on {where}", ("mean regret", "largest regret"), regret, _REGRET_FACTS))
        lines = []
        for arm, row in analysis.best_kd_temperatures(matrix).items():
            alike = (", ".join(f"{at:g}" for at in others) for _, others in row)
            texts = [f"{highest:g}" + (f" ({text})" if text else "") for (highest, _), text in zip(row, alike, strict=True)]
            lines.append((_arm_text(*arm), *texts))
        made.append(table_of(f"best KD T on {where}", ("best KD T", *temperatures), lines, _BEST_FACTS))
    if steps := analysis.split(matrix):
        headers = ("decode T", "alpha_text", "change by rescaling", "change by context shift")
        of_steps = [
            (f"{step.temperature:g}", _alpha(step.alpha_text), _change(step.rescaling), _change(step.context_shift))
            for step in steps
        ]
        made.append(table_of(f"why alpha changes with the decode T on {where}", headers, of_steps, _SPLIT_FACTS))
    return made


def _kind_table(title: str, columns: Sequence[str], rows: Mapping[Kind, Sequence[Entry]], facts: Facts) -> Table:
    """Return a table with one row for each kind of draft."""
    lines: list[Line] = [
        (_arm_text(arm, on_policy), "" if at is None else f"{at:g}", *cells) for (arm, on_policy, at), cells in rows.items()
    ]
    return table_of(title, ("draft", "KD T", *columns), lines, facts)


def _cost_tables(matrix: Matrix, apart: str = "") -> list[Table]:
    rows = {}
    for kind, drafts in kinds_of(matrix).items():
        if kind[0] != START:
            names = ("text_by_target", "text_by_draft", "trained")
            spent = [(*(line.tokens[name] for name in names), sum(line.seconds.values())) for line in drafts]
            rows[kind] = [Entry(f"{sum(of_drafts) / len(drafts):,.0f}") for of_drafts in zip(*spent, strict=True)]
    headers = ("tokens by target", "tokens by draft", "tokens trained", "seconds")
    return [_kind_table(f"what a draft cost{apart}", headers, rows, _COST_FACTS)] if rows else []


def _arm_text(arm: str, on_policy: float) -> str:
    return f"{arm}, lambda {on_policy:g}" if arm == "online" else arm


def _alpha(value: Interval | None, best: float | None = None) -> Entry:
    return Entry(plus_minus_text(value, ".3f"), bold=value is not None and value.estimate == best)


def _change(value: Interval | None) -> Entry:
    return Entry(plus_minus_text(value, "+.1f", scale=POINTS), bold=value is not None and value.excludes_zero)


def _alpha_facts(matrix: Matrix) -> Facts:
    job, trained = matrix.plan["job"], [line for line in matrix.measured if line.seed is not None]
    hours = sum(sum(line.seconds.values()) for line in trained) / 3600
    num_seeds = len({line.seed for line in trained})
    in_seconds = " (those in the seconds of others on as many as these are worth)"
    others = in_seconds if any(IN_SECONDS_OF in arm for arm in matrix.plan["arms"]) else ""
    return {
        "alpha": f"computed from the distributions at k = {NUM_DRAFT_TOKENS}, with draft T = decode T",
        "texts": f"{len(matrix.measured[0].cells[0].tokens)} held-out prompts of {matrix.domains[0]}",
        "drafts": f"{len(trained)} drafts, {num_seeds} seed{'' if num_seeds == 1 else 's'}",
        "training": f"each draft on {job['plan']['num_tokens']:,} answer tokens{others} as {job['trained']} of the start; "
        f"sampling and training took {hours:.1f} hours in total",
        "±": "half-width of the 95 % interval over seeds and prompts",
        "matched": "the offline draft of the decode T itself",
        "bold": "the best of a column",
    }


_CHANGE_FACTS = {
    "change": "alpha less the start's along the same texts, in points (hundredths)",
    "bold": "the 95 % interval of the change does not hold 0; one cell in twenty is bold by chance",
}
_REGRET_FACTS = {
    "regret": "alpha, in points, that one draft for all decode temperatures loses against the best draft of each temperature",
    "bias": "the best is chosen on the same data, so regrets are slightly too large",
}
_BEST_FACTS = {
    "in brackets": "KD temperatures that are not surely below the best: the 95 % interval of the difference, over seeds and "
    "prompts, holds 0. A single seed makes nothing sure",
    "bias": "the best is chosen on the same data, so the brackets tend to hold too few",
}
_COST_FACTS = {"costs": "mean over seeds: distinct answer tokens, tokens trained on, seconds of sampling and training"}
_SPLIT_FACTS = {
    "draft": "the start",
    "rescaling": "the softmax of both models at another T, along the text of the first T; in points",
    "context shift": "then the text of that T; in points",
    "alpha_text": "the mean over all answer tokens",
    "bold": "the 95 % interval does not hold 0",
}


# Heat maps
def heat_maps(matrix: Matrix) -> bytes | None:
    """Return the change of alpha over KD T and decode T, one map for each arm; None without an arm of one KD T."""
    found = {kind: row for kind, row in changes(matrix).items() if kind[0] in analysis.ARMS_OF_ONE_TEMPERATURE}
    return canvas.drawn(lambda: _draw(matrix, found)) if found else None


def _draw(matrix: Matrix, found: Mapping[Kind, Intervals]) -> Any:
    arms = list(dict.fromkeys(kind[:2] for kind in found))
    widest = max(abs(value.estimate) for row in found.values() for value in row if value) * POINTS or 1.0
    caption = (
        f"Change of alpha against the start, in points (hundredths), on {matrix.domains[0]}. "
        "Bold: the 95 % interval over seeds and prompts does not hold 0."
    )
    figure = canvas.frame(caption, body=2.6 * len(arms) - 0.9, above=0.3, below=0.55, hspace=0.5)
    axes = figure.subplots(len(arms), 1, squeeze=False)
    for arm, axis in zip(arms, axes.flat, strict=True):
        of_arm = {at: row for (*own, at), row in found.items() if tuple(own) == arm}
        image = _heat_map(axis, of_arm, decode_temperatures(matrix), widest)
        axis.set_title(_arm_text(*arm), loc="left", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.6)
    return figure


def _heat_map(axis: Any, rows: Mapping[float | None, Intervals], columns: Sequence[float], widest: float) -> Any:
    """Draw one map. Each field shows its number, so that the sign is visible without colour."""
    values = [[POINTS * value.estimate if value else 0.0 for value in row] for row in rows.values()]
    image = axis.imshow(values, cmap="RdBu", vmin=-widest, vmax=widest, aspect="auto", origin="lower")
    for y, row in enumerate(rows.values()):
        for x, value in enumerate(row):
            if value is not None:
                points = POINTS * value.estimate
                colour = "white" if abs(points) > 0.6 * widest else "black"  # readable on dark fields
                weight = "bold" if value.excludes_zero else "normal"
                axis.text(x, y, f"{points:+.1f}", ha="center", va="center", fontsize=7, color=colour, fontweight=weight)
    axis.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    axis.set_yticks(range(len(rows)), [f"{at:g}" for at in rows])
    axis.set(xlabel="decode temperature", ylabel="KD temperature")
    return image
