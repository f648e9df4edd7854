"""Tables and heat maps of a KD matrix: alpha of every kind of draft at every decode temperature, and its change.

Changes and regrets are in points, which are hundredths of alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.analysis import kd_matrix as analysis
from bench.analysis.kd_matrix import Kind, changes, decode_temperatures, kinds_of
from bench.records.kd_matrix import IN_SECONDS_OF, NUM_DRAFT_TOKENS, START, TUNING, Matrix, merged
from bench.records.marks import NO_MARKS, Marks
from bench.reporting.captions import short_prompts
from bench.reporting.figures import canvas
from bench.reporting.formats import distinct_names
from bench.reporting.numbers import plus_minus_text
from bench.reporting.table import MISSING, Entry, Facts, Line, Page, Table, table_of, with_mark
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
        first, *others = _domain_tables(matrix, domain, f"{domain}{apart}")
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
    of_domains = [table for domain in matrix.domains for table in _domain_tables(matrix, domain, domain)]
    return (*of_domains, *_cost_tables(matrix))


def _domain_tables(whole: Matrix, domain: str, where: str) -> list[Table]:
    matrix = whole.on(domain)
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
    for cost, source in analysis.COSTS.items():
        predicted = analysis.predicted_gammas(matrix, cost=cost)
        if len(predicted) > 1:
            gammas = {
                kind: [Entry(" / ".join(f"{gamma:.2f}" for gamma in each)) for each in row] for kind, row in predicted.items()
            }
            made.append(_kind_table(f"predicted gamma on {where}, c = {cost:.3g}", temperatures, gammas, _gamma_facts(source)))
    if of_kinds := analysis.draft_temperatures(whole, domain):
        varied = sorted({temperature for row in of_kinds.values() for temperature in row})
        of_draft_t = {kind: [_draft_temperatures(row.get(at)) for at in varied] for kind, row in of_kinds.items()}
        made.append(_kind_table(f"draft T on {where}", [f"T = {at:g}" for at in varied], of_draft_t, _DRAFT_T_FACTS))
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
            spent = [(*(line.tokens.get(name, 0) for name in names), sum(line.seconds.values())) for line in drafts]
            prompts = min((line.distinct_prompts for line in drafts if line.distinct_prompts is not None), default=None)
            rows[kind] = [
                Entry(MISSING if prompts is None else f"{prompts:,}"),
                *(Entry(f"{sum(of_drafts) / len(drafts):,.0f}") for of_drafts in zip(*spent, strict=True)),
                Entry(
                    ", ".join(sorted({MISSING if line.learning_rate is None else f"{line.learning_rate:g}" for line in drafts}))
                ),
            ]
    headers = ("distinct prompts", "tokens by target", "tokens by draft", "tokens trained", "seconds", "learning rate")
    made = [_kind_table(f"what a draft cost{apart}", headers, rows, _COST_FACTS)] if rows else []
    if rates := analysis.learning_rates(matrix):
        lines = [(name.removeprefix(f"{TUNING}-"), f"{rate:g}", f"{alpha:.3f}") for name, (rate, alpha) in rates.items()]
        made.append(table_of(f"choice of learning rates{apart}", ("loss", "learning rate", "alpha"), lines, _RATE_FACTS))
    return made


def _arm_text(arm: str, on_policy: float) -> str:
    name = arm.replace(":data", ", loss T = data T")
    return f"{name}, lambda {on_policy:g}" if arm.startswith("online") else name


def _alpha(value: Interval | None, best: float | None = None) -> Entry:
    return Entry(plus_minus_text(value, ".3f"), bold=value is not None and value.estimate == best)


def _change(value: Interval | None) -> Entry:
    return Entry(plus_minus_text(value, "+.1f", scale=POINTS), bold=value is not None and value.excludes_zero)


def _draft_temperatures(found: analysis.DraftTemperatures | None) -> Entry:
    if found is None:
        return Entry(MISSING)
    chosen = sorted(set(found.chosen))
    tuned = f"{chosen[0]:g}" if len(chosen) == 1 else f"{chosen[0]:g}-{chosen[-1]:g}"
    return Entry(f"{found.equal:.3f} / {found.one:.3f} / {found.tuned:.3f} ({tuned})")


def _gamma_facts(source: str) -> Facts:
    lengths = ", ".join(map(str, analysis.LENGTHS))
    return {
        "predicted gamma": f"block efficiency / (1 + k c), for k = {lengths}; mean over seeds",
        "c": f"the cost of a draft token in forwards of the target: {source}",
    }


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
_COST_FACTS = {
    "distinct prompts": "of the text of a draft, the fewest over seeds",
    "costs": "mean over seeds: answer tokens, each counted once; tokens trained on, repeats included; seconds of sampling and "
    "training",
}
_RATE_FACTS = {"alpha": "mean over the tuning prompts at decode T up to 1, of one draft for each loss and rate"}
_DRAFT_T_FACTS = {
    "alpha": "with draft T = decode T / with draft T 1 / with the draft T in brackets",
    "in brackets": "the draft T that is best on other held-out prompts, from lowest to highest over seeds",
}
_SPLIT_FACTS = {
    "draft": "the start",
    "rescaling": "the softmax of both models at another T, along the text of the first T; in points",
    "context shift": "then the text of that T; in points",
    "alpha_text": "the mean over all answer tokens",
    "bold": "the 95 % interval does not hold 0",
}


# Heat maps
@dataclass(frozen=True, slots=True)
class _Map:
    """One heat map: a row for each KD temperature, a field for each decode temperature."""

    title: str
    rows: dict[float | None, list[tuple[float, bool] | None]]  # value, and whether it is bold
    form: str  # of the numbers
    colours: str
    limits: tuple[float, float]


def heat_maps(matrix: Matrix) -> bytes | None:
    """Return maps over KD T and decode T: for each arm the change of alpha, and gamma predicted for the cheaper draft.

    Returns: None without an arm of one KD T; no maps of gamma if the record does not hold the rounds
    """
    arms = dict.fromkeys(kind[:2] for kind in kinds_of(matrix) if kind[0] in analysis.ARMS_OF_ONE_TEMPERATURE)
    return canvas.drawn(lambda: _draw(matrix, [each for arm in arms for each in _maps_of(matrix, arm)])) if arms else None


def _maps_of(matrix: Matrix, arm: tuple[str, float]) -> Iterator[_Map]:
    every = changes(matrix)
    widest = max(abs(value.estimate) for row in every.values() for value in row if value) * POINTS or 1.0
    rows = {kind[2]: [_point(value) for value in row] for kind, row in every.items() if kind[:2] == arm}
    yield _Map(f"{_arm_text(*arm)}: change of alpha", rows, "+.1f", "RdBu", (-widest, widest))
    cost = min(analysis.COSTS)
    if predicted := analysis.predicted_gammas(matrix, cost=cost):
        place = analysis.LENGTHS.index(NUM_DRAFT_TOKENS)
        gammas = {kind: [each[place] for each in row] for kind, row in predicted.items()}
        limits = min(min(row) for row in gammas.values()), max(max(row) for row in gammas.values())
        of_arm: dict[float | None, list[tuple[float, bool] | None]] = {
            kind[2]: [(gamma, False) for gamma in row] for kind, row in gammas.items() if kind[:2] == arm
        }
        title = f"{_arm_text(*arm)}: predicted gamma, k = {NUM_DRAFT_TOKENS}, c = {cost:.3g}"
        yield _Map(title, of_arm, ".2f", "viridis", limits)


def _point(value: Interval | None) -> tuple[float, bool] | None:
    return None if value is None else (POINTS * value.estimate, value.excludes_zero)


def _draw(matrix: Matrix, maps: Sequence[_Map]) -> Any:
    caption = (
        f"Drafts on {matrix.domains[0]}. Changes of alpha are against the start, in points (hundredths). "
        "Bold: the 95 % interval over seeds and prompts does not hold 0."
    )
    figure = canvas.frame(caption, body=2.6 * len(maps) - 0.9, above=0.3, below=0.55, hspace=0.5)
    axes = figure.subplots(len(maps), 1, squeeze=False)
    for shown, axis in zip(maps, axes.flat, strict=True):
        image = _heat_map(axis, shown, decode_temperatures(matrix))
        axis.set_title(shown.title, loc="left", fontsize=9)
        figure.colorbar(image, ax=axis)
    return figure


def _heat_map(axis: Any, shown: _Map, columns: Sequence[float]) -> Any:
    """Draw one map. Each field shows its number, so that the sign is visible without colour."""
    low, high = shown.limits
    values = [[field[0] if field else math.nan for field in row] for row in shown.rows.values()]
    image = axis.imshow(values, cmap=shown.colours, vmin=low, vmax=high, aspect="auto", origin="lower")
    for y, row in enumerate(shown.rows.values()):
        for x, field in enumerate(row):
            if field is not None:
                value, bold = field
                red, green, blue, _ = image.to_rgba(value)
                colour = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"  # readable on dark fields
                weight = "bold" if bold else "normal"
                axis.text(x, y, f"{value:{shown.form}}", ha="center", va="center", fontsize=7, color=colour, fontweight=weight)
    axis.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    axis.set_yticks(range(len(shown.rows)), [f"{at:g}" for at in shown.rows])
    axis.set(xlabel="decode temperature", ylabel="KD temperature")
    return image
