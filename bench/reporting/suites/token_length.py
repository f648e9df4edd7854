"""Tables and figure of the suite `token_length`: acceptance against the length of tokens and against what goes with it.

Frequency has two stand-ins: log(1 + token id), because tokenizers of the BPE and unigram kind number tokens by their
frequency in the corpus they were trained on, and the log count of the token at tested positions of all other prompts, plus
one. Special tokens are in no number. The prompt is what was sampled: every interval is over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.analysis import token_length as analysis
from bench.analysis.token_length import ENTROPY_BINS, LENGTH, LENGTH_BINS, Positions, by_temperature, entropy_bins, length_bins
from bench.records.files import UNFINISHED
from bench.records.marks import NO_MARKS, Marks
from bench.records.token_length import SUITE, LengthRecord, load
from bench.reporting.captions import short_prompts
from bench.reporting.figures import canvas
from bench.reporting.formats import slug
from bench.reporting.numbers import interval_text, plus_minus_text
from bench.reporting.table import Entry, Facts, Line, Page, Table, table_of, with_mark
from bench.statistics.effects import Effect
from bench.statistics.intervals import Interval

Shares = list[Interval | None]  # one for each bin; None for an empty bin
# How a token that was emitted at a tested position came to be there.
CONDITION = {
    "rejection": "was accepted with probability min(1, q(x) / p(x))",
    "one_hot": "was accepted if x = argmax q, and was recovered otherwise",
    "exact_match": "was accepted with probability q(x)",
}
_ESTIMATES = {
    "±": "half-width of the 95 % interval over prompts (leave-one-prompt-out jackknife)",
    "bold": "the 95 % interval does not hold 0; one number in twenty is bold by chance",
}


def derived(records: Sequence[Path], marks: Marks = NO_MARKS) -> Page:
    """Return the tables and the figure of the newest finished record.

    Raises:  ValueError: none is finished
             BackendUnavailable: matplotlib is missing
    """
    finished = [path for path in records if not path.name.endswith(UNFINISHED)]
    if not finished:
        raise ValueError(f"expected a finished record of {SUITE}; end the run with --resume")
    record = load(finished[-1])
    data = analysis.positions(record)
    name = slug(f"{record.header.model_pair.name} {short_prompts(record.header.prompt_set)}")
    mark = marks.of([str(finished[-1])])
    first, *others = (with_mark(table, mark) for table in _tables(record, data))
    with canvas.marked(mark):
        return Page((replace(first, figures=(name,)), *others), {name: canvas.drawn(lambda: _draw(data))})


# Tables
def _tables(record: LengthRecord, data: Positions) -> tuple[Table, ...]:
    groups = by_temperature(data)
    models = {heading: analysis.length_models(group) for heading, group in groups.items()}
    lengths = length_table(data)
    by_entropy = {
        heading: analysis.binned_shares(group.acceptance_probs, entropy_bins(group), len(ENTROPY_BINS), group.prompts)
        for heading, group in groups.items()
    }
    entropy_facts = {
        "entropy": "of the target at T = 1, in nats",
        "shares": "mean beta, which does not depend on the token that was emitted; 95 % intervals",
    }
    correlation_facts = {
        "correlation": "Spearman's, and for length in bytes the point-biserial one",
        "log id, log count": "log(1 + token id), and log of 1 + how often the token stands at tested positions of the "
        "other prompts: both stand for frequency",
        "slot, log place": "position in the round, and log position in the output",
        **_ESTIMATES,
    }
    model_facts = {"coefficients": "log-odds per standard deviation over the record", **_ESTIMATES}
    added = {"rows": "each adds covariates to the row above it; change: from the first model to the last"}
    correlations = {heading: analysis.correlations(group) for heading, group in groups.items()}
    of_length = {heading: {**found.length, "change": found.change} for heading, found in models.items()}
    of_all = {heading: found.full for heading, found in models.items()}
    # The summary is of the last group: all temperatures together if there are several.
    summary = {"what length adds": _summary(data, list(models.values())[-1])}
    return (
        replace(lengths, facts=summary | lengths.facts | _facts(record, data)),
        _shares_table("acceptance by entropy", "entropy", ENTROPY_BINS, entropy_bins(data), by_entropy, entropy_facts),
        _estimates_table("correlation with acceptance", correlations, correlation_facts),
        _estimates_table("coefficient of length in logistic models of acceptance", of_length, added | model_facts),
        _estimates_table("all coefficients of the last model", of_all, model_facts),
    )


def length_table(data: Positions) -> Table:
    """Return the accepted share by length: a row for each bin, a column for each temperature."""
    columns = {heading: _by_length(group, group.accepted) for heading, group in by_temperature(data).items()}
    columns["mean beta"] = _by_length(data, data.acceptance_probs)
    facts = {
        "shares": "accepted share by length of the emitted token in bytes, with 95 % intervals",
        "mean beta": "of the same positions: the acceptance that their contexts alone let expect",
    }
    return _shares_table("acceptance by length", "bytes", LENGTH_BINS, length_bins(data), columns, facts)


def _by_length(data: Positions, shares: NDArray[np.float64]) -> Shares:
    return analysis.binned_shares(shares, length_bins(data), len(LENGTH_BINS), data.prompts)


def _shares_table(
    title: str, name: str, labels: Sequence[str], bins: NDArray[np.intp], columns: Mapping[str, Shares], facts: Facts
) -> Table:
    counts = np.bincount(bins, minlength=len(labels))
    lines = [
        (label, f"{count:,}", *(interval_text(share, digits=2) for share in shares))
        for label, count, *shares in zip(labels, counts, *columns.values(), strict=True)
    ]
    return table_of(title, (name, "positions", *columns), lines, facts)


def _estimates_table(title: str, columns: Mapping[str, Mapping[str, Effect]], facts: Facts) -> Table:
    names = next(iter(columns.values()))
    lines: list[Line] = [(name, *(_estimate(column[name]) for column in columns.values())) for name in names]
    return table_of(title, ("", *columns), lines, facts)


def _estimate(effect: Effect) -> Entry:
    return Entry(plus_minus_text(effect.interval, "+.2f"), bold=effect.interval.excludes_zero)


def _facts(record: LengthRecord, data: Positions) -> Facts:
    header = record.header
    special = sum(sum(text.special) for text in record.texts)
    condition = CONDITION.get(header.rule, "was accepted or recovered by the rule")
    return {
        "positions": f"{len(data.accepted):,} tested draft tokens in {len(record.texts)} texts, "
        f"{len(np.unique(data.prompts))} prompts of {header.prompt_set}; special tokens left out: {special}",
        "every cell": f"pair {header.model_pair.name}, {header.backend}, rule {header.rule}, k = {header.num_draft_tokens}",
        "accepted": "conditional on the token that was emitted at the position, the accepted draft token or the recovered "
        f"one: a token x that the decoder emitted there {condition}, p being the target's distribution and q the draft's. "
        "So the numbers compare tokens that the target emits. They do not show how likely a long drafted token passes",
    }


def _summary(data: Positions, models: analysis.LengthModels) -> str:
    """Return one sentence on what length adds."""
    effects = (models.length[analysis.ALONE], models.length[analysis.FULL], models.change)
    alone, full, change = (_estimate(effect).text for effect in effects)
    return (
        f"one standard deviation of length ({data.column(LENGTH).std():.1f} bytes) goes with {alone} in the log-odds of "
        f"acceptance alone, and with {full} once entropy, frequency and position are in: a change of {change}"
    )


# Figure
def _draw(data: Positions) -> Any:
    """Draw the accepted share over length, a line for each temperature."""
    caption = "Accepted share by length of the emitted token, with 95 % intervals over prompts."
    figure = canvas.frame(caption, body=3.0, below=0.6, right=0.85)
    axes = figure.subplots()
    groups = [(heading, group) for heading, group in by_temperature(data).items() if heading.startswith("T")]
    for number, (heading, group) in enumerate(groups):
        aside = 0.5 * ((number + 0.5) / len(groups) - 0.5)  # intervals side by side
        shares = _by_length(group, group.accepted)
        points = [(place + aside, share) for place, share in enumerate(shares) if share is not None]
        x, style = [place for place, _ in points], canvas.look(number)
        axes.plot(x, [share.estimate for _, share in points], **style, ms=4, lw=1.2, label=heading)
        low, high = [share.low for _, share in points], [share.high for _, share in points]
        axes.vlines(x, low, high, color=style["color"], lw=0.9)
    axes.set_xticks(range(len(LENGTH_BINS)), LENGTH_BINS)
    axes.set(xlabel="bytes of the emitted token", ylabel="accepted share", ylim=(0, 1.02))
    canvas.legend_beside(axes)
    return figure
