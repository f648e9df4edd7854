"""What the record of the suite `token_length` shows: acceptance against the length of tokens and against what goes with it.

Frequency has two stand-ins: log(1 + token id), because tokenizers of the BPE and unigram kind number tokens by their
frequency in the corpus they were trained on, and the log count of the token at tested positions of all other prompts, plus
one. Special tokens are in no number. The prompt is what was sampled: every interval is over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.analysis.token_length import (
    ALONE,
    ENTROPY_BINS,
    FULL,
    LENGTH,
    LENGTH_BINS,
    Estimate,
    LengthModels,
    Positions,
    binned_shares,
    by_temperature,
    correlations,
    entropy_bins,
    length_bins,
    length_models,
    positions,
)
from bench.errors import BackendUnavailable
from bench.records.files import UNFINISHED
from bench.records.token_length import SUITE, LengthRecord, load
from bench.reporting.figures import canvas
from bench.reporting.table import MISSING, Page
from bench.statistics.intervals import RatioInterval

# What is known of a token that was emitted at a tested position.
CONDITION = {
    "rejection": "was accepted with probability min(1, q(x) / p(x))",
    "one_hot": "was accepted if x = argmax q, and was recovered otherwise",
    "exact_match": "was accepted with probability q(x)",
}


# The page
def derived(records: Sequence[Path]) -> Page:
    """Of the newest finished record, for `specheat tables`.

    Raises:  ValueError: none is finished
    """
    finished = [path for path in records if not path.name.endswith(UNFINISHED)]
    if not finished:
        raise ValueError(f"expected a finished record of {SUITE}; end the run with --resume")
    record = load(finished[-1])
    data = positions(record)
    try:
        return Page(report(record), {"": figure(data)})
    except BackendUnavailable:  # no matplotlib
        return Page(report(record), {})


def report(record: LengthRecord) -> str:
    """Markdown: what was measured, then each table under what it shows."""
    data = positions(record)
    groups = by_temperature(data)
    models = {heading: length_models(group) for heading, group in groups.items()}
    parts = (
        _caption(record, data),
        _summary(data, list(models.values())[-1]),
        "Accepted share by length of the emitted token in bytes, with 95 % intervals; in the last column the mean beta of "
        "the same positions, which is what their contexts alone let expect.",
        length_table(data),
        "For comparison: beta, which does not depend on the token that was emitted, by the target's entropy at T = 1 in nats.",
        entropy_table(data),
        f"Spearman's correlation with acceptance. {_BOLD}",
        _estimates_table({heading: correlations(group) for heading, group in groups.items()}),
        "Logistic models of acceptance: the coefficient of length in log-odds per standard deviation, while other covariates "
        f"are added. {_BOLD}",
        _estimates_table({heading: {**found.length, "change": found.change} for heading, found in models.items()}),
        f"All coefficients of the last model. {_BOLD}",
        _estimates_table({heading: found.full for heading, found in models.items()}),
    )
    return "\n\n".join(parts)


_BOLD = "Bold: its own 95 % interval leaves 0 out; of so many one in twenty is bold by chance."


def length_table(data: Positions) -> str:
    """Accepted share by length: a row for each bin, a column for each temperature."""
    groups = by_temperature(data)
    columns = {
        heading: binned_shares(group.accepted, length_bins(group), len(LENGTH_BINS), group.prompts)
        for heading, group in groups.items()
    }
    columns["mean beta"] = binned_shares(data.acceptance_probs, length_bins(data), len(LENGTH_BINS), data.prompts)
    return _shares_table("bytes", LENGTH_BINS, length_bins(data), columns)


def entropy_table(data: Positions) -> str:
    """Mean beta by the target's entropy: a row for each bin, a column for each temperature."""
    columns = {
        heading: binned_shares(group.acceptance_probs, entropy_bins(group), len(ENTROPY_BINS), group.prompts)
        for heading, group in by_temperature(data).items()
    }
    return _shares_table("entropy", ENTROPY_BINS, entropy_bins(data), columns)


def _shares_table(
    name: str, labels: Sequence[str], bins: NDArray[np.intp], columns: Mapping[str, Sequence[RatioInterval | None]]
) -> str:
    counts = np.bincount(bins, minlength=len(labels))
    rows = [
        (label, f"{counts[place]:,}", *(_share_text(column[place]) for column in columns.values()))
        for place, label in enumerate(labels)
    ]
    return _markdown((name, "positions", *columns), rows)


def _estimates_table(columns: Mapping[str, Mapping[str, Estimate]]) -> str:
    rows = [
        (name, *(_estimate_text(column[name]) for column in columns.values())) for name in next(iter(columns.values()))
    ]
    return _markdown(("", *columns), rows)


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _share_text(share: RatioInterval | None) -> str:
    return MISSING if share is None else f"{share.estimate:.2f} [{share.low:.2f}, {share.high:.2f}]"


def _estimate_text(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return MISSING
    text = f"{estimate.value:+.2f}"
    if not math.isfinite(estimate.half_width):
        return text
    text = f"{text} ± {estimate.half_width:.2f}"
    return f"**{text}**" if estimate.is_sure else text


def _caption(record: LengthRecord, data: Positions) -> str:
    header = record.header
    special = sum(sum(text.special) for text in record.texts)
    condition = CONDITION.get(header.rule, "was accepted or recovered, as the rule says")
    return (
        f"Acceptance of {len(data.accepted):,} tested draft tokens in {len(record.texts)} texts, "
        f"{len(np.unique(data.prompts))} prompts of {header.prompt_set}, pair {header.model_pair.name}, "
        f"{header.backend}, rule {header.rule}, k = {header.num_draft_tokens}; special tokens left out: {special}. "
        "*Accepted* is conditional on the token that was emitted at the position, the accepted draft token or the "
        f"recovered one: a token x that the decoder emitted there {condition}, p being the target's distribution and q "
        "the draft's. So the numbers compare tokens that the target emits; they do not say how likely a long token that "
        "is drafted passes. ± is the half-width of the 95 % interval over prompts (leave-one-prompt-out jackknife). Log id "
        "is log(1 + token id), log count that of the token at tested positions of the other prompts plus one: both stand "
        "for frequency. Slot is the position in the round, log place that in the output."
    )


def _summary(data: Positions, models: LengthModels) -> str:
    """One sentence on what length adds."""
    alone, full = (_estimate_text(models.length[name]) for name in (ALONE, FULL))
    return (
        f"One standard deviation of length ({data.column(LENGTH).std():.1f} bytes) goes with {alone} in the log-odds of "
        f"acceptance alone, and with {full} once entropy, frequency and position are in: a change of "
        f"{_estimate_text(models.change)}."
    )


def figure(data: Positions) -> dict[str, bytes]:
    """Accepted share over length, a line for each temperature, as image files by format.

    Raises:  BackendUnavailable: matplotlib is missing
    """
    with canvas.our_style():
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = drawn.subplots()
        groups = [(heading, group) for heading, group in by_temperature(data).items() if heading.startswith("T")]
        for number, (heading, group) in enumerate(groups):
            aside = 0.5 * ((number + 0.5) / len(groups) - 0.5)  # intervals side by side
            _draw_line(axes, group, aside=aside, style=canvas.look(number), label=heading)
        axes.set_xticks(range(len(LENGTH_BINS)), LENGTH_BINS)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("bytes of the emitted token")
        axes.set_ylabel("accepted share")
        axes.set_title("acceptance by length of the emitted token, 95 % intervals over prompts", loc="left", fontsize=9)
        drawn.legend(loc="outside right center")
        return {file_format: canvas.saved(drawn, file_format) for file_format in canvas.FORMATS}


def _draw_line(axes: Any, group: Positions, *, aside: float, style: Mapping[str, str], label: str) -> None:
    shares = binned_shares(group.accepted, length_bins(group), len(LENGTH_BINS), group.prompts)
    points = [(place + aside, share) for place, share in enumerate(shares) if share is not None]
    x = [place for place, _ in points]
    axes.plot(x, [share.estimate for _, share in points], **style, ms=4, lw=1.2, label=label)
    low, high = [share.low for _, share in points], [share.high for _, share in points]
    axes.vlines(x, low, high, color=style["color"], lw=0.9)
