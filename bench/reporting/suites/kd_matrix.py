"""What a KD matrix says: alpha of every kind of draft with intervals, its change against the start, as tables and heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.analysis.kd_matrix import (
    ARMS_OF_ONE_TEMPERATURE,
    Interval,
    Kind,
    Row,
    Step,
    alphas,
    best_kd_temperatures,
    changes,
    decode_temperatures,
    is_sure,
    kinds_of,
    regrets,
    split,
)
from bench.errors import BackendUnavailable
from bench.records.kd_matrix import IN_SECONDS_OF, NUM_DRAFT_TOKENS, START, Matrix, merged
from bench.reporting.figures import canvas
from bench.reporting.table import Page

POINTS = 100.0


def tables(matrix: Matrix) -> str:
    """Markdown: of each domain alpha, then its change; a row for each kind of draft, a column for each decode temperature."""
    texts = [_domain_tables(matrix.on(domain)) for domain in matrix.domains]
    if len(kinds_of(matrix)) > 1:
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
    if len(kinds_of(matrix)) > 1:
        texts.append(_table(columns, {kind: list(map(_change_text, row)) for kind, row in changes(matrix).items()}))
        texts += [_regret_table(found), _best_table(matrix)]
    captions = (_caption(matrix), _CHANGE_CAPTION, _REGRET_CAPTION, _BEST_CAPTION)
    sections = list(zip(captions, texts, strict=False))
    if steps := split(matrix):
        sections.append((_SPLIT_CAPTION, _split_table(steps)))
    return "\n\n".join(f"{caption}\n\n{text}" for caption, text in sections)


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
    return text if value.half_width is None else _bold(f"{text} ± {POINTS * value.half_width:.1f}", is_sure(value))


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


_CHANGE_CAPTION = (
    "Change of alpha against the start, in points (hundredths), along the same texts. Bold: its own 95 % interval does not "
    "hold 0; of so many cells one in twenty is bold by chance."
)


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
    for (arm, on_policy, at), drafts in kinds_of(matrix).items():
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
    with canvas.our_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 2.6 * len(arms)), layout="constrained")
        axes = figure.subplots(len(arms), 1, squeeze=False)
        for (arm, on_policy), axis in zip(arms, axes.flat, strict=True):
            of_arm = {at: row for (name, share, at), row in found.items() if (name, share) == (arm, on_policy)}
            image = _heat_map(axis, of_arm, decode_temperatures(matrix), widest)
            title = f"{_arm_text(arm, on_policy)}: change of alpha against the start, in points, on {matrix.domains[0]}"
            axis.set_title(title, loc="left", fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.6)
        return {file_format: canvas.saved(figure, file_format) for file_format in canvas.FORMATS}


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
                    fontweight="bold" if is_sure(value) else "normal",
                )
    axis.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    axis.set_yticks(range(len(rows)), [f"{at:g}" for at in rows])
    axis.set_xlabel("decode temperature")
    axis.set_ylabel("KD temperature")
    return image
