"""The losslessness certificate: whether an engine's tokens follow its target, judged from the stored evidence.

Temperature > 0. If the engine is lossless, every `pit` is uniform and independent of the past, whatever the texts. So tokens
of different prompts and temperatures are pooled. Tokens of one slot are pooled too, because a slot is known before its
token is drawn. All tokens together and each slot are tested twice. One test uses D, the Kolmogorov-Smirnov distance of the
transforms. The other uses mean surprisal minus entropy: it detects a wrong temperature even if most tokens are certain, where
D is nearly blind.

LOSSY: a test of "no further from the target than numerical noise" is significant; all tests of a certificate share one
false-alarm rate (Holm). LOSSLESS: no test is, and the upper bounds of D and of the temperature's error are below their margins.
Otherwise INCONCLUSIVE, with the number of tokens that would be enough. Five sound cells could hide a faulty one in a pool of
six, so each pooled cell also has to pass wider bounds alone: D below CELL_MARGIN, and an interval of the temperature that
contains the requested one.

Bounds on D are one-sided 99 %. Lower: Massart's inequality, D - sqrt(ln(2 / 0.01) / 2n).
Upper: D + 2.33 / (2 sqrt(n)) + 1 / 2n. The true distance is reached at one point, which is unknown but not chosen by the data,
and one binomial bounds it there. So the upper bound needs no correction for a search over all points, which would take a third
more tokens than `tokens_for_lossless`.

Temperature 0. The logit of a token lies within tau of the best, where tau is the noise of that machine, a 99.9th percentile.
LOSSY: more tokens lie beyond tau than noise takes there, or more lie far beyond it (binomial tests with Holm's correction).
LOSSLESS: neither, and the share of tokens beyond tau is surely below the margin (99 %, Clopper and Pearson). A float32 text
that differs from the autoregressive one is reported only: within tau it is a genuine tie, and beyond tau its tokens count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.records.decoding import BONUS, FIRST, Schedule
from bench.records.runs import Cell, CellRecord, Evidence, TextEvidence
from bench.statistics.effects import holm
from bench.statistics.intervals import Array

CertificateVerdict = Literal["LOSSLESS", "LOSSY", "INCONCLUSIVE"]

FALSE_ALARM = 0.01  # chance of LOSSY for a lossless decoder, over all tests of the cells that are judged together
MARGIN = 0.05  # of D; at T = 0 of the share of wrong tokens
CELL_MARGIN = 0.1  # of D, for each of several cells that are judged together
TEMPERATURE_MARGIN = 0.2  # relative; without it a greedy decoder would pass as T = 0.1, where D is nearly blind
ALLOWANCE = {"float32": 0.005, "bfloat16": 0.02}  # for noise, of D and of the relative error of the temperature
LOSSY_RULES = frozenset({"typical"})  # lossy by design, and declared so
MIN_SLOT_TOKENS = 20  # a smaller slot would only lower the level of the other tests
NOISE_RATE = 0.001  # near_tie is a 99.9th percentile: noise takes up to one token in a thousand beyond it
FAR, FAR_RATE = 4, 1e-5  # noise takes at most one token in 100,000 beyond FAR times near_tie
# Cells that are certified together may differ in the temperature, the prompt set, and what follows from these.
MAY_DIFFER = frozenset({"temperature", "draft_temperature", "schedule", "prompt_set", "prompts_hash", "num_prompts"})
POOLED_BY = tuple(field.name for field in fields(Cell) if field.name not in MAY_DIFFER)
ALL = None
Slot = int | None
Test = tuple[str, Slot]  # what is tested, and in which slot
_Z_99 = NormalDist().inv_cdf(0.99)
_LOWER = math.sqrt(math.log(2 / 0.01) / 2)  # divided by sqrt(n); D of 99 % of lossless decoders also stays below it
UPPER_BOUND_LEVEL = _Z_99 / 2
_NOISE_QUANTILE = NormalDist().inv_cdf(0.9995)  # near_tie is this many standard deviations of the noise on logits


@dataclass(frozen=True, slots=True)
class Sample:
    """Evidence of texts that were decoded at one temperature, or by one schedule of temperatures above 0."""

    evidence: Evidence
    temperature: float  # the hottest of a schedule
    differing_texts: int = 0  # T = 0, float32: texts whose ids are not the autoregressive ones
    schedule: Schedule = ()  # empty: `temperature` throughout


@dataclass(frozen=True, slots=True)
class SlotResult:
    """The two tests of one slot. Bounds are one-sided 99 %; p-values are of "no further than numerical noise"."""

    slot: Slot  # None: all tokens
    num_tokens: int
    distance: float  # D
    distance_low: float
    distance_high: float
    distance_p: float
    surprisal_z: float  # of mean surprisal minus entropy; negative: tokens are too likely
    temperature_error: float  # relative, estimated from surprisal to first order; positive: hotter than requested
    temperature_low: float
    temperature_high: float
    surprisal_p: float

    @property
    def name(self) -> str:
        return {ALL: "all tokens", FIRST: "first token", BONUS: "bonus slot"}.get(self.slot, f"slot {self.slot}")


@dataclass(frozen=True, slots=True)
class Certificate:
    """The verdict and what it rests on."""

    verdict: CertificateVerdict
    words: tuple[str, ...]
    num_tokens: int  # of all cells that were judged together
    tokens_needed: int | None  # with which a lossless decoder gets LOSSLESS 99 times in 100; None: no number is enough
    num_cells: int = 1  # that were judged together
    slots: tuple[SlotResult, ...] = ()  # T > 0; all tokens first
    passes_alone: bool = True  # T > 0: the bounds that a cell has to pass alone if it is judged with others
    off_support: int = 0  # tokens that truncation forbids, beyond its boundary
    at_boundary: int = 0  # tokens that truncation forbids, within the numerical noise of its boundary
    near_ties: int = 0  # T = 0: tokens below the best, within tau of it
    beyond_tau: int = 0  # T = 0: tokens further below the best
    far_beyond_tau: int = 0  # T = 0: tokens further than FAR times tau below the best
    differing_texts: int = 0  # T = 0, float32; reported, not judged
    largest_gap: float = 0.0  # T = 0


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The columns that the tests need, with one entry for each token."""

    slots: NDArray[np.int64]
    pit: Array
    excess: Array
    variance: Array
    noise: Array  # relative error of the temperature that has the same effect as numerical noise

    def of(self, slot: int) -> _Tokens:
        return _Tokens(*(getattr(self, field.name)[self.slots == slot] for field in fields(self)))


def certify(samples: Sequence[Sample], *, margin: float = MARGIN, false_alarm: float = FALSE_ALARM) -> Certificate:
    """Judge one or several samples of the same decoder together.

    Args:    samples: all at T > 0, or all at T = 0; false_alarm: largest probability of LOSSY for a lossless decoder
    Raises:  ValueError: no tokens, an unknown dtype, or both T = 0 and T > 0
    """
    num_tokens = sum(len(text.slots) for sample in samples for text in sample.evidence.texts)
    if not num_tokens:
        raise ValueError("expected evidence of at least one token, got none")
    if all(sample.temperature == 0 for sample in samples):
        return _certify_greedy(samples, num_tokens, margin, false_alarm)
    if any(sample.temperature == 0 for sample in samples):
        raise ValueError("expected samples at T = 0 or at T > 0, got both: they are judged by different tests")
    return _certify_sampled(samples, margin, false_alarm)


def tokens_for_lossless(margin: float = MARGIN, *, distance: float = 0.0) -> int | None:
    """Return the tokens at which a decoder of true D `distance` gets an upper bound below the margin 99 times in 100."""
    if distance >= margin:
        return None
    return math.ceil(((_LOWER + UPPER_BOUND_LEVEL) / (margin - distance)) ** 2)


def certificates_of(cells: Sequence[CellRecord]) -> tuple[Certificate | None, ...]:
    """Return the certificate of each cell of a run; None where a cell has no evidence.

    A cell at T > 0 is judged alone, where only LOSSY counts. Then all cells that have POOLED_BY in common and are not LOSSY
    alone are judged together. All these tests share one false-alarm rate. A cell is LOSSLESS if all of them together are, and
    it passes the bounds of a single cell.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, record in enumerate(cells):
        if record.evidence is not None and record.evidence.texts:
            pool = _pool(record.cell) if record.cell.temperature > 0 else (place,)
            seeds = {pair.sd.seed for pair in record.pairs}
            # In older records, cells on other prompts had the same random numbers: they are no independent draws.
            while any(seeds & {pair.sd.seed for pair in cells[other].pairs} for other in groups[pool]):
                pool = ("another pool", *pool)
            groups[pool].append(place)
    found: list[Certificate | None] = [None] * len(cells)
    for places in groups.values():
        samples = [_sample(cells[place]) for place in places]
        level = FALSE_ALARM / (len(samples) + (len(samples) > 1))
        alone = [certify([sample], false_alarm=level) for sample in samples]
        kept = [sample for sample, judged in zip(samples, alone, strict=True) if judged.verdict != "LOSSY"]
        together = certify(kept, false_alarm=level) if len(kept) > 1 else None
        for place, judged in zip(places, alone, strict=True):
            found[place] = judged
            if together is not None and judged.verdict != "LOSSY":
                found[place] = _of_one(judged, together, len(kept))
    return tuple(found)


def _pool(cell: Cell) -> tuple[object, ...]:
    """Return what cells that are certified together have in common."""
    follows = cell.draft_temperature == cell.temperature
    draft_temperature = None if follows else (cell.temperature, cell.draft_temperature)
    return (draft_temperature, *(getattr(cell, name) for name in POOLED_BY))


def _of_one(alone: Certificate, together: Certificate, num_cells: int) -> Certificate:
    """Return the certificate of one of several cells that were judged together."""
    whole, verdict, needed = alone.slots[0], together.verdict, together.tokens_needed
    bounds = f"D is at most {whole.distance_high:.3f}, and {_temperature_interval(whole)}"
    words = [f"{num_cells} cells are judged together: {together.words[0]}", *together.words[1:]]
    words.append(f"the {whole.num_tokens} tokens of this cell alone: {bounds}")
    if verdict == "LOSSLESS" and not alone.passes_alone:
        verdict, needed = "INCONCLUSIVE", None
        if whole.distance_high >= CELL_MARGIN:
            needed = tokens_for_lossless(CELL_MARGIN, distance=whole.distance_low)
        enough = "too far from what is requested" if needed is None else f"about {needed} tokens of it are needed"
        words.append(f"{enough} (D of each cell has to be below {CELL_MARGIN:g})")
    return replace(together, verdict=verdict, words=tuple(words), tokens_needed=needed, num_cells=num_cells)


def _sample(record: CellRecord) -> Sample:
    assert record.evidence is not None
    differing = 0
    if record.cell.temperature == 0 and record.evidence.dtype == "float32":
        differing = sum(pair.ar.token_ids != pair.sd.token_ids for pair in record.pairs)
    return Sample(record.evidence, record.cell.temperature, differing, record.cell.schedule)


# Temperature 0
def _certify_greedy(samples: Sequence[Sample], num_tokens: int, margin: float, false_alarm: float) -> Certificate:
    from scipy.stats import beta, binom, nbinom

    gaps = [(np.array(text.logit_gap), sample.evidence.near_tie) for sample, text in _texts(samples)]
    beyond, far = (sum(int((gap > times * near_tie).sum()) for gap, near_tie in gaps) for times in (1, FAR))
    near_ties = sum(int(((gap > 0) & (gap <= near_tie)).sum()) for gap, near_tie in gaps)
    largest = max(float(gap.max()) for gap, _ in gaps)
    differing = sum(sample.differing_texts for sample in samples)
    p_values = holm([float(binom.sf(count - 1, num_tokens, rate)) for count, rate in ((beyond, NOISE_RATE), (far, FAR_RATE))])
    highest = float(beta.ppf(0.99, beyond + 1, num_tokens - beyond)) if beyond < num_tokens else 1.0  # Clopper and Pearson
    # So many tokens that a share of `margin` gives more wrong ones than were seen, 99 times in 100; noise may give one.
    allowed = max(beyond, 1)
    needed = allowed + 1 + int(nbinom.ppf(0.99, allowed + 1, margin))
    words = [f"{num_tokens} tokens: surely less than {highest:.1%} lie below the target's best by more than numerical noise"]
    if beyond:
        words = [f"{beyond} of {num_tokens} tokens are not the target's best, by logit gaps of up to {largest:.3g}"]
        words.append(f"noise explains 1 in {1 / NOISE_RATE:,.0f} beyond tau, and 1 in {1 / FAR_RATE:,.0f} beyond {FAR} tau")
    verdict: CertificateVerdict = "LOSSLESS" if highest < margin else "INCONCLUSIVE"
    if min(p_values) <= false_alarm:
        verdict = "LOSSY"
    elif verdict == "INCONCLUSIVE":
        words.append(f"{needed} tokens are needed")
    if near_ties:
        words.append(f"{near_ties} near-ties")
    if differing:
        words.append(f"{differing} texts differ from the autoregressive ones")
    return Certificate(
        *(verdict, tuple(words), num_tokens, needed),
        near_ties=near_ties,
        beyond_tau=beyond,
        far_beyond_tau=far,
        differing_texts=differing,
        largest_gap=largest,
    )


# Temperature > 0
def _certify_sampled(samples: Sequence[Sample], margin: float, false_alarm: float) -> Certificate:
    from scipy.stats import binom

    names = ("slots", "pit", "excess_surprisal", "surprisal_variance")
    columns = [[getattr(text, name) for _, text in _texts(samples)] for name in names]
    columns.append([_noise(sample, len(text.pit)) for sample, text in _texts(samples)])
    tokens = _Tokens(*map(np.concatenate, columns))
    if unknown := {sample.evidence.dtype for sample in samples} - ALLOWANCE.keys():
        raise ValueError(f"expected evidence of dtype {' or '.join(ALLOWANCE)}, got {', '.join(map(repr, unknown))}")
    allowance = max(ALLOWANCE[sample.evidence.dtype] for sample in samples)
    present, counts = np.unique(tokens.slots, return_counts=True)
    tested = [int(slot) for slot, count in zip(present, counts, strict=True) if count >= MIN_SLOT_TOKENS]
    results = [_test(tokens, ALL, allowance)]
    if len(present) > 1:
        results += [_test(tokens.of(slot), slot, allowance) for slot in sorted(tested, key=lambda s: (s == BONUS, s))]
    num_tokens = len(tokens.pit)
    off_support = sum(len(text.off_support) for _, text in _texts(samples))
    p_values: dict[Test, float] = {("off support", ALL): float(binom.sf(off_support - 1, num_tokens, NOISE_RATE))}
    for result in results:
        p_values["distance", result.slot] = result.distance_p
        p_values["surprisal", result.slot] = result.surprisal_p
    corrected = holm(list(p_values.values()))
    significant = [test for test, p_value in zip(p_values, corrected, strict=True) if p_value <= false_alarm]
    # Noise on logits makes tokens look hotter, so LOSSLESS allows for it on that side.
    whole, total = results[0], float(tokens.variance.sum())
    noise = float((tokens.noise * tokens.variance).sum()) / total if total > 0 else 0.0
    hottest = TEMPERATURE_MARGIN + noise
    within = -TEMPERATURE_MARGIN < whole.temperature_low <= whole.temperature_high < hottest
    contained = whole.temperature_low <= noise + allowance and whole.temperature_high >= -allowance
    needed = _tokens_needed(whole, hottest, margin)
    verdict: CertificateVerdict = "INCONCLUSIVE"
    words: tuple[str, ...] = _inconclusive_words(whole, needed, margin)
    if significant:
        verdict, words = "LOSSY", tuple(_lossy_words(significant, results, off_support))
    elif within and whole.distance_high < margin:
        bounds = f"D is at most {whole.distance_high:.3f}, and {_temperature_interval(whole)}"
        verdict, words = "LOSSLESS", (f"no test of {num_tokens} tokens finds a fault; {bounds}",)
    # A token that truncation forbids has a transform of 1.
    at_boundary = int((tokens.pit == 1).sum()) - off_support
    return Certificate(
        *(verdict, words, num_tokens, needed),
        slots=tuple(results),
        passes_alone=contained and whole.distance_high < CELL_MARGIN,
        off_support=off_support,
        at_boundary=at_boundary,
    )


def _texts(samples: Sequence[Sample]) -> Iterator[tuple[Sample, TextEvidence]]:
    return ((sample, text) for sample in samples for text in sample.evidence.texts)


def _noise(sample: Sample, num_tokens: int) -> Array:
    """Return the relative error of each token's temperature that has the same effect as numerical noise on logits.

    Noise only flattens. Between two tokens, averaging a logistic function over a normal error of standard deviation s divides
    its argument by about sqrt(1 + pi s^2 / 8), where s = sigma / T. The result is pi s^2 / 8, which is above that root less 1.
    """
    starts, temperatures = zip(*(sample.schedule or ((0, sample.temperature),)), strict=True)
    noise = [math.pi / 8 * (sample.evidence.near_tie / _NOISE_QUANTILE / each) ** 2 for each in temperatures]
    # A text may end before its schedule.
    return np.repeat(noise, np.diff(np.minimum((*starts, num_tokens), num_tokens)))


def _test(tokens: _Tokens, slot: Slot, allowance: float) -> SlotResult:
    num_tokens = len(tokens.pit)
    # As scipy.stats.ks_1samp, which spends a hundred times as long on a p value that is not used here.
    ordered, ranks = np.sort(tokens.pit), np.arange(num_tokens)
    distance = float(max(((ranks + 1) / num_tokens - ordered).max(), (ordered - ranks / num_tokens).max()))
    # The law of the transforms is within the allowance of uniform; Massart bounds how far a sample is from any law.
    distance_p = min(1.0, 2 * math.exp(-2 * num_tokens * max(0.0, distance - allowance) ** 2))
    surplus, variance = float(tokens.excess.sum()), float(tokens.variance.sum())
    # The variance alone is far off if a few rare tokens decide. With the squares mixed in like this, the tails of the ratio
    # are sub-Gaussian for any martingale (Delyon 2009, Electron. J. Probab. 14).
    scale = math.sqrt((float((tokens.excess**2).sum()) + 2 * variance) / 3)
    hottest = float(((allowance + tokens.noise) * tokens.variance).sum())
    beyond = max(surplus - hottest, -surplus - allowance * variance)
    # To first order surprisal grows by its variance times the relative error of the temperature.
    error, width = (surplus / variance, _Z_99 * scale / variance) if variance > 0 else (0.0, math.inf)
    return SlotResult(
        slot=slot,
        num_tokens=num_tokens,
        distance=distance,
        distance_low=max(0.0, distance - _LOWER / math.sqrt(num_tokens)),
        distance_high=min(1.0, distance + UPPER_BOUND_LEVEL / math.sqrt(num_tokens) + 0.5 / num_tokens),
        distance_p=distance_p,
        surprisal_z=surplus / scale if scale > 0 else 0.0,
        temperature_error=error,
        temperature_low=error - width,
        temperature_high=error + width,
        surprisal_p=min(1.0, math.erfc(beyond / scale / math.sqrt(2))) if scale > 0 else 1.0,
    )


def _tokens_needed(whole: SlotResult, hottest: float, margin: float) -> int | None:
    """Return the tokens needed for LOSSLESS if the truth is what the bounds cannot explain by chance; None: no number."""
    for_distance = tokens_for_lossless(margin, distance=whole.distance_low)
    if not math.isfinite(whole.temperature_high) or for_distance is None:
        return None
    low, high = whole.temperature_low, whole.temperature_high
    room = min(TEMPERATURE_MARGIN + min(0.0, high), hottest - max(0.0, low))
    if room <= 0:
        return None
    # The interval shrinks as 1 / sqrt(n), and its centre may lie one half-width from the truth.
    return max(for_distance, math.ceil(whole.num_tokens * ((high - low) / room) ** 2))


# In words
def _temperature_interval(whole: SlotResult) -> str:
    return f"the temperature is off by {whole.temperature_low:+.0%} to {whole.temperature_high:+.0%}"


def _inconclusive_words(whole: SlotResult, needed: int | None, margin: float) -> tuple[str, str]:
    bound = f"{whole.num_tokens} tokens only show that D is at most {whole.distance_high:.3f} (margin {margin:g})"
    too_far = "more tokens would not be enough: numerical noise, or a small fault, takes the output this far"
    enough = too_far if needed is None else f"about {needed} tokens are needed"
    return f"no fault is found, but {bound}, and that {_temperature_interval(whole)}", enough


def _lossy_words(significant: Sequence[Test], results: Sequence[SlotResult], off_support: int) -> Iterator[str]:
    whole, *of_slots = results
    if ("off support", ALL) in significant:
        yield f"{off_support} tokens lie outside what top-k and top-p leave: truncation was not applied, or not in the same way"
    if ("surprisal", ALL) in significant:
        yield _temperature_words(whole)
    elif ("distance", ALL) in significant:
        yield f"the tokens do not follow the target: D is {whole.distance:.3f}, at least {whole.distance_low:.3f}"
    # Slots are named only if the fault is not common to all: it shows more clearly in one slot than in all tokens together,
    # or a slot without it contradicts them.
    departing = {slot for _, slot in significant} - {ALL}
    error, others = whole.temperature_error, [result for result in of_slots if result.slot not in departing]
    contradicting = any(not each.temperature_low <= error <= each.temperature_high for each in others)
    if departing and (contradicting or min(map(_smaller_p, of_slots)) < _smaller_p(whole)):
        yield _slot_words(departing, of_slots)


def _smaller_p(result: SlotResult) -> float:
    return min(result.distance_p, result.surprisal_p)


def _temperature_words(whole: SlotResult) -> str:
    how, error = ("unlikely", "higher") if whole.temperature_error > 0 else ("likely", "lower")
    size = abs(whole.temperature_error)
    if size > 1:  # the estimate is of first order, so such a number means nothing
        return f"tokens are far too {how}: no temperature near the requested one explains it"
    error = f"the temperature was {error} than requested, by about {size:.0%}"
    return f"tokens are too {how}: {error}, or something has the same effect"


def _slot_words(departing: set[Slot], results: Sequence[SlotResult]) -> str:
    names = _listed([result.name for result in results if result.slot in departing])
    others = _listed([result.name for result in results if result.slot not in departing])
    drafted = {result.slot for result in results} - {BONUS, FIRST}
    if not others:
        return "every slot departs: suspect what they share, such as the temperature, truncation or the target's pass"
    suspects = {
        frozenset({BONUS}): "what the bonus token is drawn from, or its position",
        frozenset({FIRST}): "the prompt's pass, or how its token is drawn",
        frozenset(drafted): "the acceptance test or the residual distribution",
    }
    rest = "the position of the recovered token, or a stale cache" if departing < drafted else "what these have in common"
    return f"departing: {names}; not departing: {others}; suspect {suspects.get(frozenset(departing), rest)}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
