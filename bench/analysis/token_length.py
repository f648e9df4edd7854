"""TODO: purpose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.records.token_length import LengthRecord, load
from bench.statistics import intervals
from bench.statistics.effects import Effect
from bench.statistics.intervals import RatioInterval

Array = NDArray[np.float64]
Kept = NDArray[np.bool_]

CONFIDENCE = 0.95
LENGTH_BINS = ("1", "2", "3", "4", "5", "6-7", "8+")  # bytes
LENGTH_EDGES = (2, 3, 4, 5, 6, 8)
ENTROPY_BINS = ("0-0.1", "0.1-0.5", "0.5-1", "1-2", "2-3", "3+")  # nats
ENTROPY_EDGES = (0.1, 0.5, 1, 2, 3)

LENGTH = "length, bytes"
COVARIATES = (LENGTH, "length, characters", "entropy", "log id", "log count", "slot", "log place")
MODELS: Mapping[str, tuple[str, ...]] = {
    "length alone": (LENGTH,),
    "with entropy": (LENGTH, "entropy"),
    "and frequency": (LENGTH, "entropy", "log id", "log count"),
    "and position": (LENGTH, "entropy", "log id", "log count", "slot", "log place"),
}
ALONE, FULL = next(iter(MODELS)), list(MODELS)[-1]

RIDGE = 1e-6  # keeps Newton's steps finite where a covariate parts accepted from rejected, and moves no other estimate
SEPARATED = 12.0  # log-odds per standard deviation that only such a covariate reaches
NEWTON_STEPS = 60  # separated fits take one step per unit of log-odds; others a handful
NEWTON_TOLERANCE = 1e-8


@dataclass(frozen=True, slots=True)
class Positions:
    """The tested positions of a record, special tokens left out: N of them, C covariates in the order of COVARIATES."""

    prompts: NDArray[np.intp]  # (N,)
    temperatures: Array  # (N,)
    accepted: Array  # (N,) 0 or 1
    acceptance_probs: Array  # (N,) beta
    covariates: Array  # (N, C) in their own units
    standardised: Array  # (N, C) mean 0, standard deviation 1 over the record, so that temperatures compare

    def where(self, kept: Kept) -> Positions:
        return Positions(*(getattr(self, field.name)[kept] for field in fields(self)))

    def column(self, name: str) -> Array:
        return self.covariates[:, COVARIATES.index(name)]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its jackknife standard error over prompts; NaN where the data cannot tell it."""

    value: float
    standard_error: float
    freedom: int  # prompts less one

    @property
    def half_width(self) -> float:
        """Of the 95 % interval; infinite with a single prompt."""
        from scipy.special import stdtrit

        if not self.freedom:
            return math.inf
        return float(stdtrit(self.freedom, (1 + CONFIDENCE) / 2)) * self.standard_error

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.value) > self.half_width


@dataclass(frozen=True, slots=True)
class LengthModels:
    """Logistic models of acceptance; coefficients are log-odds per standard deviation over the record."""

    length: dict[str, Estimate]  # the coefficient of length in each of MODELS
    change: Estimate  # of it, from the first model to the last
    full: dict[str, Estimate]  # all coefficients of the last


def positions(record: LengthRecord) -> Positions:
    """All texts of a record as columns.

    Raises:  ValueError: there are no tested positions of ordinary tokens
    """
    texts = sorted(record.texts, key=lambda text: (text.temperature, text.prompt_index))

    def column(name: str) -> Array:
        return np.array([value for text in texts for value in getattr(text, name)], dtype=float)

    lengths = [len(text.places) for text in texts]
    ordinary = column("special") == 0
    if not ordinary.any():
        raise ValueError(f"expected draft tokens that were tested, got {len(texts)} texts without any")
    prompts = np.repeat([text.prompt_index for text in texts], lengths)[ordinary]
    token_ids = column("token_ids")[ordinary].astype(np.intp)
    covariates = np.stack(
        (
            column("num_bytes")[ordinary],
            column("num_chars")[ordinary],
            column("entropies")[ordinary],
            np.log1p(token_ids),
            np.log1p(counts_elsewhere(token_ids, prompts)),
            column("slots")[ordinary],
            np.log1p(column("places")[ordinary]),
        ),
        axis=1,
    )
    spread = covariates.std(axis=0)
    return Positions(
        prompts=prompts,
        temperatures=np.repeat([text.temperature for text in texts], lengths)[ordinary],
        accepted=column("accepted")[ordinary],
        acceptance_probs=column("acceptance_probs")[ordinary],
        covariates=covariates,
        standardised=(covariates - covariates.mean(axis=0)) / np.where(spread > 0, spread, 1.0),
    )


def counts_elsewhere(token_ids: NDArray[np.intp], prompts: NDArray[np.intp]) -> NDArray[np.intp]:
    """How often the token of each position stands at positions of other prompts."""
    _, token, totals = np.unique(token_ids, return_inverse=True, return_counts=True)
    _, own, of_own = np.unique(np.stack((token, prompts)), axis=1, return_inverse=True, return_counts=True)
    return totals[token] - of_own[own]


def by_temperature(data: Positions) -> dict[str, Positions]:
    """The positions of each decode temperature by its heading, then all of them if there are several."""
    levels = np.unique(data.temperatures)
    groups = {f"T = {level:g}": data.where(data.temperatures == level) for level in levels}
    return groups | ({"all T": data} if len(levels) > 1 else {})


def length_bins(data: Positions) -> NDArray[np.intp]:
    """Index into LENGTH_BINS of each position."""
    return np.digitize(data.column(LENGTH), LENGTH_EDGES)


def entropy_bins(data: Positions) -> NDArray[np.intp]:
    """Index into ENTROPY_BINS of each position."""
    return np.digitize(data.column("entropy"), ENTROPY_EDGES)


def binned_shares(
    shares: Array, bins: NDArray[np.intp], num_bins: int, prompts: NDArray[np.intp]
) -> list[RatioInterval | None]:
    """Mean of values in 0..1 in each bin, with its interval over prompts; none where a bin is empty."""
    return [
        intervals.proportion(shares[bins == place], np.ones((bins == place).sum()), prompts[bins == place])
        if (bins == place).any()
        else None
        for place in range(num_bins)
    ]


def jackknifed(statistic: Callable[[Kept], Array], prompts: NDArray[np.intp]) -> list[Estimate]:
    """Each entry of a statistic of the positions that are kept, with its leave-one-prompt-out standard error.

    Source:  Efron and Stein 1981
    """
    labels = np.unique(prompts)
    found = statistic(np.ones(len(prompts), dtype=bool))
    if len(labels) == 1:
        return [Estimate(float(value), math.nan, 0) for value in found]
    left_out = np.stack([statistic(prompts != label) for label in labels])
    variance = (len(labels) - 1) / len(labels) * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)
    return [
        Estimate(float(value), float(error), len(labels) - 1)
        for value, error in zip(found, np.sqrt(variance), strict=True)
    ]


def correlations(data: Positions) -> dict[str, Estimate]:
    """Of acceptance with each covariate: Spearman's, and for length in bytes Pearson's (point-biserial) too."""
    from scipy.stats import rankdata

    def statistic(kept: Kept) -> Array:
        values, accepted = data.covariates[kept], data.accepted[kept]
        # Ranks of a variable with two values are that variable on another scale.
        of_ranks = _correlation(rankdata(values, axis=0), accepted)
        return np.append(of_ranks, _correlation(values[:, :1], accepted))

    names = (*COVARIATES, f"{LENGTH} (point-biserial)")
    return dict(zip(names, jackknifed(statistic, data.prompts), strict=True))


def _correlation(columns: Array, accepted: Array) -> Array:
    """Pearson's, of each column with acceptance; NaN where one of them does not vary."""
    columns, accepted = columns - columns.mean(axis=0), accepted - accepted.mean()
    scale = np.sqrt((columns**2).sum(axis=0) * (accepted**2).sum())
    return np.divide(accepted @ columns, scale, out=np.full(len(scale), math.nan), where=scale > 1e-9 * len(accepted))


def length_models(data: Positions) -> LengthModels:
    """The models of MODELS, with a constant for each temperature there is."""
    designs = [_design(data, names) for names in MODELS.values()]
    starts = [fit_logistic(design, data.accepted) for design in designs]
    num_full = len(MODELS[FULL])

    def statistic(kept: Kept) -> Array:
        fits = [
            fit_logistic(design[kept], data.accepted[kept], start=start)
            for design, start in zip(designs, starts, strict=True)
        ]
        of_length = [fit[1] for fit in fits]
        return np.array([*of_length, of_length[-1] - of_length[0], *fits[-1][1 : 1 + num_full]])

    found = list(map(_if_told, jackknifed(statistic, data.prompts)))
    return LengthModels(
        length=dict(zip(MODELS, found, strict=False)),
        change=found[len(MODELS)],
        full=dict(zip(MODELS[FULL], found[-num_full:], strict=True)),
    )


def _design(data: Positions, names: Sequence[str]) -> Array:
    """A constant, the covariates, and a constant for each temperature but the first."""
    chosen = data.standardised[:, [COVARIATES.index(name) for name in names]]
    others = np.unique(data.temperatures)[1:]
    return np.column_stack((np.ones(len(chosen)), chosen, data.temperatures[:, None] == others))


def _if_told(estimate: Estimate) -> Estimate:
    """NaN for a covariate that parts accepted from rejected, and for one that does not vary (the ridge makes it 0)."""
    told = 0 < abs(estimate.value) < SEPARATED
    return estimate if told else replace(estimate, value=math.nan, standard_error=math.nan)


def fit_logistic(design: Array, accepted: Array, *, start: Array | None = None) -> Array:
    """Coefficients of a logistic model by maximum likelihood, less RIDGE / 2 times the sum of their squares.

    Args:    design: (N, M), its constant included; accepted: (N,) 0 or 1; start: where Newton's method begins
    Returns: (M,); large, and not infinite, along directions that part accepted from rejected
    """
    from scipy.special import expit

    def objective(coefficients: Array) -> float:
        scores = design @ coefficients
        return float(accepted @ scores - np.logaddexp(0, scores).sum() - RIDGE / 2 * coefficients @ coefficients)

    coefficients = np.zeros(design.shape[1]) if start is None else start
    reached = objective(coefficients)
    for _ in range(NEWTON_STEPS):
        probs = expit(design @ coefficients)
        slope = design.T @ (accepted - probs) - RIDGE * coefficients
        curvature = (design.T * (probs * (1 - probs))) @ design + RIDGE * np.eye(len(slope))
        step = np.linalg.solve(curvature, slope)
        while np.abs(step).max() > NEWTON_TOLERANCE and objective(coefficients + step) < reached:
            step = step / 2
        coefficients = coefficients + step
        reached = objective(coefficients)
        if np.abs(step).max() <= NEWTON_TOLERANCE:
            break
    return coefficients


def length_effects(path: Path) -> tuple[Effect, Effect]:
    """The coefficient of length over all temperatures of a record, alone and with the other covariates in, for the ledger.

    Returns: a standard error of infinity where the record cannot tell it
    """
    from bench.statistics.effects import Effect

    found = length_models(positions(load(path))).length
    alone, full = (
        Effect(each.value, math.inf if math.isnan(each.standard_error) else each.standard_error, each.freedom)
        for each in (found[ALONE], found[FULL])
    )
    return alone, full
