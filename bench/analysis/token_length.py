"""Acceptance against the length of the emitted token: shares by bins, correlations, and logistic models with covariates.

Every number has the error of a jackknife that leaves one prompt out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.records.token_length import LengthRecord, load
from bench.statistics import intervals
from bench.statistics.effects import Effect
from bench.statistics.intervals import UNKNOWN, Array, Interval, jackknife

Kept = NDArray[np.bool_]

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

CONSTANT = 1e-9  # log-odds: the coefficient of a covariate that does not vary is 0, up to rounding
SEPARATED = 12.0  # log-odds per standard deviation; only a covariate that parts accepted from rejected reaches it
UNDETERMINED = Effect(math.nan, (UNKNOWN,))


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
class LengthModels:
    """Logistic models of acceptance; coefficients are log-odds per standard deviation over the record."""

    length: dict[str, Effect]  # the coefficient of length in each of MODELS
    change: Effect  # of that coefficient, from the first model to the last
    full: dict[str, Effect]  # all coefficients of the last model


def positions(record: LengthRecord) -> Positions:
    """Return all texts of a record as columns. Raise ValueError if no ordinary token was tested."""
    texts = sorted(record.texts, key=lambda text: (text.temperature, text.prompt_index))
    ordinary = np.array([not special for text in texts for special in text.special], dtype=bool)
    if not ordinary.any():
        raise ValueError(f"expected draft tokens that were tested, got {len(texts)} texts without any")

    def column(name: str) -> Array:
        return np.array([value for text in texts for value in getattr(text, name)], dtype=float)[ordinary]

    def repeated(name: str) -> NDArray[Any]:
        return np.repeat([getattr(text, name) for text in texts], [len(text.places) for text in texts])[ordinary]

    prompts, token_ids = repeated("prompt_index"), column("token_ids").astype(np.intp)
    log_ids, log_counts = np.log1p(token_ids), np.log1p(counts_elsewhere(token_ids, prompts))
    of_token = (column("num_bytes"), column("num_chars"), column("entropies"), log_ids, log_counts)
    covariates = np.column_stack((*of_token, column("slots"), np.log1p(column("places"))))
    spread = covariates.std(axis=0)
    standardised = (covariates - covariates.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    of_tests = (column("accepted"), column("acceptance_probs"))
    return Positions(prompts, repeated("temperature"), *of_tests, covariates, standardised)


def counts_elsewhere(token_ids: NDArray[np.intp], prompts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return how often the token of each position stands at positions of other prompts."""
    _, token, totals = np.unique(token_ids, return_inverse=True, return_counts=True)
    _, own, of_own = np.unique(np.stack((token, prompts)), axis=1, return_inverse=True, return_counts=True)
    return totals[token] - of_own[own]


def by_temperature(data: Positions) -> dict[str, Positions]:
    """Return the positions of each decode temperature by its heading, then all of them if there are several temperatures."""
    levels = np.unique(data.temperatures)
    groups = {f"T = {level:g}": data.where(data.temperatures == level) for level in levels}
    return groups | ({"all T": data} if len(levels) > 1 else {})


def length_bins(data: Positions) -> NDArray[np.intp]:
    """Return the index into LENGTH_BINS of each position."""
    return np.digitize(data.column(LENGTH), LENGTH_EDGES)


def entropy_bins(data: Positions) -> NDArray[np.intp]:
    """Return the index into ENTROPY_BINS of each position."""
    return np.digitize(data.column("entropy"), ENTROPY_EDGES)


def binned_shares(shares: Array, bins: NDArray[np.intp], num_bins: int, prompts: NDArray[np.intp]) -> list[Interval | None]:
    """Return the mean of values in 0..1 in each bin, with its interval over prompts; None for an empty bin."""
    inside = [bins == place for place in range(num_bins)]
    return [intervals.proportion(shares[own], np.ones(own.sum()), prompts[own]) if own.any() else None for own in inside]


def jackknifed(statistic: Callable[[Kept], Array], prompts: NDArray[np.intp]) -> list[Effect]:
    """Return each entry of a statistic of the positions that are kept, with its leave-one-prompt-out error."""
    found, labels = statistic(np.ones(len(prompts), dtype=bool)), np.unique(prompts)
    if len(labels) == 1:
        return [Effect(float(value), (UNKNOWN,)) for value in found]
    left_out = np.stack([statistic(prompts != label) for label in labels])
    return [Effect(float(value), (jackknife(column),)) for value, column in zip(found, left_out.T, strict=True)]


def correlations(data: Positions) -> dict[str, Effect]:
    """Return Spearman's correlation of acceptance with each covariate, and Pearson's with bytes; NaN without variation."""
    import pandas as pd

    def statistic(kept: Kept) -> Array:
        frame = pd.DataFrame(np.column_stack((data.covariates[kept], data.accepted[kept])))
        spearman, pearson = (frame.corr(method).to_numpy()[-1] for method in ("spearman", "pearson"))
        return np.append(spearman[:-1], pearson[0])  # Pearson's with a variable of two values is the point-biserial correlation

    names = (*COVARIATES, f"{LENGTH} (point-biserial)")
    return dict(zip(names, jackknifed(statistic, data.prompts), strict=True))


def length_models(data: Positions) -> LengthModels:
    """Fit the models of MODELS, with a constant for each temperature."""
    designs = [_design(data, names) for names in MODELS.values()]
    starts = [(design, fit_logistic(design, data.accepted)) for design in designs]  # one prompt less changes a fit little
    num_full = len(MODELS[FULL])

    def statistic(kept: Kept) -> Array:
        fits = [fit_logistic(design[kept], data.accepted[kept], start=start) for design, start in starts]
        of_length = [fit[1] for fit in fits]  # column 0 is the constant
        return np.array([*of_length, of_length[-1] - of_length[0], *fits[-1][1 : 1 + num_full]])

    effects = jackknifed(statistic, data.prompts)
    found = [each if CONSTANT < abs(each.estimate) < SEPARATED else UNDETERMINED for each in effects]
    of_length, of_full = dict(zip(MODELS, found, strict=False)), dict(zip(MODELS[FULL], found[-num_full:], strict=True))
    return LengthModels(of_length, found[len(MODELS)], of_full)


def _design(data: Positions, names: Sequence[str]) -> Array:
    """Return a constant, the covariates, and a constant for each temperature but the first."""
    chosen = data.standardised[:, [COVARIATES.index(name) for name in names]]
    others = np.unique(data.temperatures)[1:]
    return np.column_stack((np.ones(len(chosen)), chosen, data.temperatures[:, None] == others))


def fit_logistic(design: Array, accepted: Array, *, start: Array | None = None) -> Array:
    """Return the maximum-likelihood coefficients of a logistic model.

    Args:    design: (N, M), its constant included; accepted: (N,) 0 or 1; start: coefficients at which the fit begins
    Returns: (M,); about 0 for a column of zeros; large, but finite, along directions that part accepted from rejected
    """
    import statsmodels.api as sm

    model = sm.GLM(accepted, design, family=sm.families.Binomial())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # statsmodels warns of separation, which SEPARATED detects
        return model.fit(start_params=start, tol=1e-10).params


def length_effects(path: Path) -> tuple[Effect, Effect]:
    """Return the coefficient of length over all temperatures of a record, alone and beside the other covariates."""
    found = length_models(positions(load(path))).length
    return found[ALONE], found[FULL]
