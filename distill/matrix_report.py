"""What a KD matrix says: alpha of every kind of draft with intervals, its change against the start, as tables and heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit
from tabulate import tabulate

from bench import figures
from bench.protocols import BackendUnavailable
from bench.rendering import Page
from distill.held_out import NUM_DRAFT_TOKENS
from distill.matrix import IN_SECONDS_OF, START, Cell, Matrix, Measured, merged

CONFIDENCE = 0.95
POINTS = 100.0
ARMS_OF_ONE_TEMPERATURE = ("offline", "soft", "online")


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and half the width of its 95 % interval; no width from a single seed."""

    estimate: float
    half_width: float | None


Kind = tuple[str, float, float | None]  # arm, lambda, KD temperature
Row = list[Interval | None]  # one entry a decode temperature


def estimate(of_seeds: Sequence[Cell], against: Sequence[Cell] = ()) -> Interval:
    """Alpha, or how much higher it is than that of other drafts on the same texts, with other seeds and other prompts in mind.

    Both kinds of chance are added up as squares of half-widths: the spread between seeds, with t on seeds less one, and the
    jackknife over prompts of the seeds' mean, with t on prompts less one.

    Args:    against: one draft, or one of each seed in the same order
    """
    of_each, left_out = _ratios(of_seeds)
    if against:
        other, other_left_out = _ratios(against)
        of_each, left_out = of_each - other, left_out - other_left_out
    num_seeds, num_prompts = len(of_each), len(left_out)
    if num_seeds == 1:
        return Interval(float(of_each.mean()), None)
    by_prompt = math.sqrt((num_prompts - 1) / num_prompts * ((left_out - left_out.mean()) ** 2).sum())
    by_seed = math.sqrt(of_each.var(ddof=1) / num_seeds)
    half_width = math.hypot(_t(num_seeds - 1) * by_seed, _t(num_prompts - 1) * by_prompt)
    return Interval(float(of_each.mean()), half_width)


def _ratios(of_seeds: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray]:
    """accepted / tested of each seed; and the mean over seeds without each prompt."""
    accepted, tested = (np.array([getattr(cell, name) for cell in of_seeds], float) for name in ("accepted", "tested"))
    totals = accepted.sum(1, keepdims=True), tested.sum(1, keepdims=True)
    return (totals[0] / totals[1]).ravel(), ((totals[0] - accepted) / (totals[1] - tested)).mean(0)


def _t(freedom: int) -> float:
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def alphas(matrix: Matrix) -> dict[Kind, Row]:
    """Of each kind of draft; `matched` takes, for each decode temperature, the offline draft of that temperature."""
    kinds, columns = _kinds(matrix), decode_temperatures(matrix)
    found: dict[Kind, Row] = {
        kind: [estimate([line.cells[place] for line in lines]) for place in range(len(columns))]
        for kind, lines in kinds.items()
    }
    return _with_matched(found, columns)


def changes(matrix: Matrix) -> dict[Kind, Row]:
    """Alpha of each kind less that of the start at the same decode temperature, along the same texts."""
    kinds, columns = _kinds(matrix), decode_temperatures(matrix)
    (start,) = kinds.pop((START, 0.0, None))
    found: dict[Kind, Row] = {
        kind: [estimate([line.cells[place] for line in lines], [start.cells[place]]) for place in range(len(columns))]
        for kind, lines in kinds.items()
    }
    return _with_matched(found, columns)


def _kinds(matrix: Matrix) -> dict[Kind, list[Measured]]:
    kinds: dict[Kind, list[Measured]] = {}
    for line in matrix.measured:
        kinds.setdefault((line.arm, line.on_policy, line.kd_temperature), []).append(line)
    return kinds


def _with_matched(found: dict[Kind, Row], columns: Sequence[float]) -> dict[Kind, Row]:
    rows = [found.get(("offline", 0.0, column)) for column in columns]
    matched: Row = [None if row is None else row[place] for place, row in enumerate(rows)]
    return found | {("matched", 0.0, None): matched} if any(matched) else found


def decode_temperatures(matrix: Matrix) -> list[float]:
    return [cell.temperature for cell in matrix.measured[0].cells]


def tables(matrix: Matrix) -> str:
    """Markdown: of each domain alpha, then its change; a row for each kind of draft, a column for each decode temperature."""
    texts = [_domain_tables(matrix.on(domain)) for domain in matrix.domains]
    if len(_kinds(matrix)) > 1:
        texts.append(f"{_BUDGET_CAPTION}\n\n{_budget_table(matrix)}")
    return "\n\n".join(texts)


def _domain_tables(matrix: Matrix) -> str:
    columns, found = decode_temperatures(matrix), alphas(matrix)
    best = [max(value.estimate for value in of_column if value) for of_column in zip(*found.values(), strict=True)]
    texts = [
        _table(
            columns,
            {
                kind: [_alpha_text(value, at) for value, at in zip(row, best, strict=True)]
                for kind, row in found.items()
            },
        )
    ]
    if len(_kinds(matrix)) > 1:
        texts.append(_table(columns, {kind: list(map(_change_text, row)) for kind, row in changes(matrix).items()}))
        texts += [_regret_table(found), _best_table(matrix)]
    captions = (_caption(matrix), _CHANGE_CAPTION, _REGRET_CAPTION, _BEST_CAPTION)
    sections = list(zip(captions, texts, strict=False))
    if steps := split(matrix):
        sections.append((_SPLIT_CAPTION, _split_table(steps)))
    return "\n\n".join(f"{caption}\n\n{text}" for caption, text in sections)


def regrets(found: Mapping[Kind, Row]) -> dict[Kind, tuple[float, float]]:
    """For each kind measured everywhere, how much alpha it gives away against the best of a column: mean and largest."""
    best = [max(value.estimate for value in of_column if value) for of_column in zip(*found.values(), strict=True)]
    given_away = {
        kind: [at_best - value.estimate for at_best, value in zip(best, row, strict=True) if value]
        for kind, row in found.items()
    }
    return {
        kind: (sum(given) / len(given), max(given)) for kind, given in given_away.items() if len(given) == len(best)
    }


def _regret_table(found: Mapping[Kind, Row]) -> str:
    lines = [
        (_arm_text(arm, on_policy), "" if at is None else f"{at:g}", f"{POINTS * mean:.1f}", f"{POINTS * largest:.1f}")
        for (arm, on_policy, at), (mean, largest) in sorted(regrets(found).items(), key=lambda item: item[1])
    ]
    headers = ("draft", "KD T", "mean regret", "largest regret")
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def _table(columns: Sequence[float], rows: dict[Kind, list[str]]) -> str:
    lines = [
        (_arm_text(arm, on_policy), "" if at is None else f"{at:g}", *cells)
        for (arm, on_policy, at), cells in rows.items()
    ]
    headers = ("draft", "KD T", *(f"T = {column:g}" for column in columns))
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def _arm_text(arm: str, on_policy: float) -> str:
    return f"{arm}, lambda {on_policy:g}" if arm == "online" else arm


def _alpha_text(value: Interval | None, best: float) -> str:
    if value is None:
        return "-"
    text = f"{value.estimate:.3f}" + ("" if value.half_width is None else f" ± {value.half_width:.3f}")
    return f"**{text}**" if value.estimate == best else text


def _change_text(value: Interval | None) -> str:
    if value is None:
        return "-"
    text = f"{POINTS * value.estimate:+.1f}"
    return text if value.half_width is None else _bold(f"{text} ± {POINTS * value.half_width:.1f}", _is_sure(value))


def _is_sure(value: Interval) -> bool:
    return value.half_width is not None and abs(value.estimate) > value.half_width


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


_CHANGE_CAPTION = (
    "Change of alpha against the start, in points (hundredths), along the same texts. Bold: its own 95 % interval does not "
    "hold 0; of so many cells one in twenty is bold by chance."
)


def best_kd_temperatures(matrix: Matrix) -> dict[tuple[str, float], list[tuple[float, list[float]]]]:
    """For each arm and decode temperature: the KD T of the highest alpha, and the others that are not surely below it."""
    kinds = {kind: sorted(lines, key=lambda line: line.seed or 0) for kind, lines in _kinds(matrix).items()}
    found: dict[tuple[str, float], list[tuple[float, list[float]]]] = {}
    for arm in dict.fromkeys(kind[:2] for kind in kinds if kind[0] in ARMS_OF_ONE_TEMPERATURE):
        of_arm = {at: lines for (name, share, at), lines in kinds.items() if (name, share) == arm and at is not None}
        found[arm] = []
        for place in range(len(decode_temperatures(matrix))):
            cells = {at: [line.cells[place] for line in lines] for at, lines in of_arm.items()}
            best = max(cells, key=lambda at: estimate(cells[at]).estimate)
            behind = {at: estimate(cells[at], cells[best]) for at in cells if len(cells[at]) == len(cells[best])}
            found[arm].append((best, [at for at, value in behind.items() if at != best and not _is_sure(value)]))
    return found


def _best_table(matrix: Matrix) -> str:
    lines = [
        (_arm_text(*arm), *(f"{best:g}" + (f" ({_listed(others)})" if others else "") for best, others in row))
        for arm, row in best_kd_temperatures(matrix).items()
    ]
    headers = ("best KD T", *(f"T = {column:g}" for column in decode_temperatures(matrix)))
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def _listed(temperatures: Sequence[float]) -> str:
    return ", ".join(f"{at:g}" for at in temperatures)


_BEST_CAPTION = (
    "The best KD T for each decode T; in brackets those not surely below it: the 95 % interval of the difference, over seeds "
    "and prompts, holds 0. The best is chosen on the same data, so the brackets rather leave out too many. From a single seed "
    "nothing is sure."
)


def _budget_table(matrix: Matrix) -> str:
    lines = []
    for (arm, on_policy, at), drafts in _kinds(matrix).items():
        if arm != START:
            by_target, by_draft, trained = (
                sum(line.tokens[name] for line in drafts) / len(drafts)
                for name in ("text_by_target", "text_by_draft", "trained")
            )
            seconds = sum(sum(line.seconds.values()) for line in drafts) / len(drafts)
            counts = (f"{number:,.0f}" for number in (by_target, by_draft, trained, seconds))
            lines.append((_arm_text(arm, on_policy), "" if at is None else f"{at:g}", *counts))
    headers = ("draft", "KD T", "tokens by target", "tokens by draft", "tokens trained", "seconds")
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


_BUDGET_CAPTION = "What a draft cost, mean over seeds: distinct answer tokens, those trained on, sampling and training."


@dataclass(frozen=True, slots=True)
class Step:
    """How alpha_text of the start gets from the first decode T to another one."""

    temperature: float
    alpha_text: Interval
    rescaling: Interval  # the same contexts, another softmax
    context_shift: Interval  # then the contexts of that T


def split(matrix: Matrix) -> list[Step]:
    """Empty where the record has not what it takes. It is one of alpha_text: slots of rounds have no frozen contexts."""
    start = next(line for line in matrix.measured if line.arm == START)
    coldest = start.cells[0]
    if not coldest.rescaled:
        return []
    frozen = _left_out(coldest.overlap, coldest.tokens)
    steps = []
    for cell in start.cells:
        same_contexts, own = _left_out(cell.rescaled, coldest.tokens), _left_out(cell.overlap, cell.tokens)
        steps.append(Step(cell.temperature, *map(_over_prompts, (own, same_contexts - frozen, own - same_contexts))))
    return steps


def _left_out(above: Sequence[float], below: Sequence[float]) -> np.ndarray:
    """(1 + P,): the ratio of totals, then without each prompt."""
    totals = (np.sum(values) - np.append(0.0, values) for values in (above, below))
    numerators, denominators = totals
    return numerators / denominators


def _over_prompts(values: np.ndarray) -> Interval:
    """Estimate and jackknife, from an estimate and what it is without each prompt."""
    whole, left_out = float(values[0]), values[1:]
    spread = math.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum())
    return Interval(whole, _t(len(left_out) - 1) * spread)


def _split_table(steps: Sequence[Step]) -> str:
    lines = [
        (
            f"{step.temperature:g}",
            _alpha_text(step.alpha_text, math.inf),
            *map(_change_text, (step.rescaling, step.context_shift)),
        )
        for step in steps
    ]
    headers = ("decode T", "alpha_text", "change by rescaling", "change by context shift")
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


_SPLIT_CAPTION = (
    "Why alpha changes with the decode T, for the start: first the softmax of both models at another T along the text of the "
    "first T (rescaling), then the text of that T (context shift), in points. Of alpha_text, the mean over all answer tokens."
)

_REGRET_CAPTION = (
    "Regret: the alpha, in points, that one draft for all decode temperatures gives away against the best draft of each "
    "temperature. The best is chosen on the same data, so regrets are slightly too large."
)


def _caption(matrix: Matrix) -> str:
    job, trained = matrix.plan["job"], [line for line in matrix.measured if line.seed is not None]
    hours = sum(sum(line.seconds.values()) for line in trained) / 3600
    num_seeds = len({line.seed for line in trained})
    seeds = f"{num_seeds} seed{'' if num_seeds == 1 else 's'}"
    prompts = len(matrix.measured[0].cells[0].tokens)
    others = any(IN_SECONDS_OF in arm for arm in matrix.plan["arms"])
    in_seconds = " (those in the seconds of others on as many as these are worth)" if others else ""
    return (
        f"Alpha at k = {NUM_DRAFT_TOKENS} (analytic, draft T = decode T) on {prompts} held-out prompts of "
        f"{matrix.domains[0]}. {len(trained)} drafts, {seeds}; ± is the half-width of the 95 % interval over "
        f"seeds and prompts. Each draft was trained on {job['plan']['num_tokens']:,} answer tokens{in_seconds} as "
        f"{job['trained']} of the start, in {hours:.1f} hours of sampling and training altogether. `matched` is the offline "
        "draft of the decode T itself. Bold: the best of a column."
    )


def derived(records: Sequence[Path]) -> Page:
    """For `specheat tables`: records that were made alike as one, the newest first, a heat map of each and each domain."""
    found = merged(records)
    text = "\n\n".join(map(tables, found))
    try:
        of_domains = [heat_maps(matrix.on(domain)) for matrix in found for domain in matrix.domains]
    except BackendUnavailable:  # no matplotlib
        return Page(text, {})
    return Page(
        text, {"" if number == 1 else str(number): maps for number, maps in enumerate(of_domains, start=1) if maps}
    )


def heat_maps(matrix: Matrix) -> dict[str, bytes]:
    """The change of alpha over KD T and decode T, a map for each arm, as image files by format; none without such an arm.

    Raises:  BackendUnavailable: matplotlib is missing
    """
    found = {kind: row for kind, row in changes(matrix).items() if kind[0] in ARMS_OF_ONE_TEMPERATURE}
    arms = list(dict.fromkeys(kind[:2] for kind in found))
    if not arms:
        return {}
    widest = max(abs(value.estimate) for row in found.values() for value in row if value) * POINTS or 1.0
    with figures.our_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 2.6 * len(arms)), layout="constrained")
        axes = figure.subplots(len(arms), 1, squeeze=False)
        for (arm, on_policy), axis in zip(arms, axes.flat, strict=True):
            of_arm = {at: row for (name, share, at), row in found.items() if (name, share) == (arm, on_policy)}
            image = _heat_map(axis, of_arm, decode_temperatures(matrix), widest)
            title = f"{_arm_text(arm, on_policy)}: change of alpha against the start, in points, on {matrix.domains[0]}"
            axis.set_title(title, loc="left", fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.6)
        return {file_format: figures.saved(figure, file_format) for file_format in figures.FORMATS}


def _heat_map(axis: Any, rows: dict[float | None, Row], columns: Sequence[float], widest: float) -> Any:
    """Numbers in every field, so that the sign is there without colour; bold where the interval does not hold 0."""
    values = [[POINTS * value.estimate if value else 0.0 for value in row] for row in rows.values()]
    image = axis.imshow(values, cmap="RdBu", vmin=-widest, vmax=widest, aspect="auto", origin="lower")
    for y, row in enumerate(rows.values()):
        for x, value in enumerate(row):
            if value is not None:
                dark = abs(POINTS * value.estimate) > 0.6 * widest
                axis.text(
                    *(x, y, f"{POINTS * value.estimate:+.1f}"),
                    **{"ha": "center", "va": "center", "fontsize": 7, "color": "white" if dark else "black"},
                    fontweight="bold" if _is_sure(value) else "normal",
                )
    axis.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    axis.set_yticks(range(len(rows)), [f"{at:g}" for at in rows])
    axis.set_xlabel("decode temperature")
    axis.set_ylabel("KD temperature")
    return image
