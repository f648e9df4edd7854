"""Functions of the claims that cells of suites decide. Each compares cells that differ only in what the claim names."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence

from bench.analysis import quantities
from bench.analysis.certificate import LOSSY_RULES
from bench.analysis.metrics import JOINT_RULES
from bench.analysis.quantities import Finding, Quantity, compared, largest, weighted
from bench.analysis.rows import Row, identity
from bench.analysis.stretches import counts_in, stretches
from bench.analysis.token_length import length_effects
from bench.claims.claim import Find, Records
from bench.records.decoding import schedule_text
from bench.statistics.effects import Statistic, contrast

LEAST_SAMPLED = 0.01  # lowest T that counts as sampled; T = 0 draws nothing
INSTRUCTIONS, PROBLEMS = (("instructions", "alpaca"), ("word_problems", "gsm8k"))  # in names of prompt sets; our own set first


def series(records: Records, suite: str, *varied: str) -> tuple[Row, ...]:
    """Return cells of a suite that differ only in the varied names, under a lossless rule with an alpha; coldest first.

    Of several such series, these are preferred, in this order: the pair's own draft, the reference backend, the rejection
    rule, more cells, the newest.
    """
    found: dict[object, list[Row]] = defaultdict(list)
    for row in records.rows.get(suite, ()):
        facts = identity(row)
        if facts["draft_temperature"] == facts["temperature"] and "draft_temperature" not in varied:
            facts["draft_temperature"] = "= temperature"
        kept = frozenset(item for item in facts.items() if item[0] not in varied)
        if facts["rule"] not in JOINT_RULES | LOSSY_RULES:
            found[kept, frozenset(row.run.model_hashes.items())].append(row)
    return tuple(sorted(max(found.values(), key=_preference, default=()), key=lambda row: row.record.cell.temperature))


def _preference(rows: Sequence[Row]) -> tuple[object, ...]:
    cell, run = rows[0].record.cell, rows[0].run
    own_draft = cell.draft == run.model_pair.draft
    rejection = any(row.record.cell.rule == "rejection" for row in rows)
    return own_draft, cell.backend == "reference", rejection, len(rows), max(row.run.created for row in rows)


def _up_to_one(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.cell.temperature <= 1]


def _temperatures(*rows: Row) -> str:
    return f"T = {' against '.join(f'{row.record.cell.temperature:g}' for row in rows)}"


# Findings
def hot_against_cold(records: Records, suite: str, quantity: Quantity, *, coldest: float = 0.0) -> Finding | None:
    """Return a quantity at the hottest T up to 1 less the same at the coldest T from `coldest` on."""
    rows = [row for row in _up_to_one(series(records, suite, "temperature")) if row.record.cell.temperature >= coldest]
    if len(rows) < 2:
        return None
    return weighted(quantity, [(1, rows[-1]), (-1, rows[0])], _temperatures(rows[-1], rows[0]))


def beyond_one(records: Records, quantity: Quantity) -> Finding | None:
    """Return a quantity at the hottest T less the same at the T nearest to the middle between it and 1."""
    rows = [row for row in series(records, "out_of_range", "temperature") if row.record.cell.temperature >= 1]
    if len(rows) < 2:
        return None
    middle = (1 + rows[-1].record.cell.temperature) / 2
    nearest = min(rows[:-1], key=lambda row: abs(row.record.cell.temperature - middle))
    return weighted(quantity, [(1, rows[-1]), (-1, nearest)], _temperatures(rows[-1], nearest))


def between_domains(records: Records) -> Finding | None:
    """Return alpha on word problems less alpha on instructions, mean over T > 0."""
    rows = series(records, "out_of_domain", "temperature", "prompt_set", "prompts_hash", "num_prompts")
    problems, instructions = (_of_first_set(rows, names) for names in (PROBLEMS, INSTRUCTIONS))
    both = sorted(temperature for temperature in problems.keys() & instructions.keys() if temperature > 0)
    cells = [(sign / len(both), found[at]) for sign, found in ((1, problems), (-1, instructions)) for at in both]
    return weighted(quantities.ALPHA, cells, f"T = {', '.join(f'{at:g}' for at in both)}") if both else None


def _of_first_set(rows: Sequence[Row], names: Sequence[str]) -> dict[float, Row]:
    """Return rows by temperature, of the first of these prompt sets that was measured."""
    of_sets = [[row for row in rows if name in row.record.cell.prompt_set.lower()] for name in names]
    return {row.record.cell.temperature: row for row in next(filter(None, of_sets), [])}


def draft_temperatures(records: Records) -> tuple[Row, ...]:
    """Return the cells at the hottest T up to 1: first that whose draft T is the decode T; empty if either kind is missing."""
    rows = _up_to_one(series(records, "draft_temperature", "temperature", "draft_temperature"))
    hottest = [row for row in rows if row.record.cell.temperature == rows[-1].record.cell.temperature]
    matched = [row for row in hottest if row.record.cell.draft_temperature == row.record.cell.temperature]
    others = [row for row in hottest if row.record.cell.draft_temperature != row.record.cell.temperature]
    return (*matched, *others) if len(matched) == 1 and others else ()


def tuned_draft_temperature(records: Records) -> Finding | None:
    """Return the largest gain of alpha by another draft T over alpha at draft T = decode T."""
    rows = draft_temperatures(records)
    if not rows:
        return None
    tried = ", ".join(f"{row.record.cell.draft_temperature:g}" for row in rows[1:])
    detail = f"{_temperatures(rows[0])}, draft T of {tried}"
    gains = gains_over_first(quantities.ALPHA, len(rows))
    return largest(gains, [(row, quantities.ALPHA) for row in rows], detail)


def gains_over_first(quantity: Quantity, num_cells: int) -> list[Statistic]:
    """Return for each further cell the statistic that is its quantity less that of the first cell."""
    return [contrast(quantity.of, [-1, *(place == other for other in range(1, num_cells))]) for place in range(1, num_cells)]


def tuned_draft_length(records: Records) -> Finding | None:
    """Return the largest gain of log gamma at the hottest T by another k than the one that is best at the coldest T."""
    rows = _up_to_one(series(records, "draft_length", "temperature", "num_draft_tokens"))
    at: dict[float, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        at[row.record.cell.temperature][row.record.cell.num_draft_tokens] = row
    hot, cold = (at[max(at)], at[min(at)]) if len(at) > 1 else ({}, {})
    lengths = sorted(hot.keys() & cold.keys())
    of_cold = {length: weighted(quantities.LOG_GAMMA, [(1, cold[length])], "") for length in lengths}
    estimates = {length: found.effect.estimate for length, found in of_cold.items() if found is not None}
    if len(estimates) < len(lengths) or len(lengths) < 2:
        return None
    best = max(estimates, key=estimates.__getitem__)
    others = [length for length in lengths if length != best]
    detail = f"{_temperatures(rows[-1], rows[0])}, k of {', '.join(map(str, others))} against {best}"
    cells = [(hot[length], quantities.LOG_GAMMA) for length in (best, *others)]
    # The data of the coldest T chose the k to beat, so all of them count as tried.
    return largest(gains_over_first(quantities.LOG_GAMMA, len(lengths)), cells, detail, num_choices=len(lengths))


def rule_against_temperature(records: Records) -> Finding | None:
    """Return alpha of rejection less alpha of exact match at the hottest T, less the drop of rejection's alpha over T."""
    rules = _up_to_one(series(records, "acceptance_rules", "temperature", "rule"))
    rejection, exact = ([row for row in rules if row.record.cell.rule == rule] for rule in ("rejection", "exact_match"))
    # Without several T in this suite, the drop is that of the temperature grid.
    drop = rejection if len(rejection) > 1 else _up_to_one(series(records, "temperature_grid", "temperature"))
    if not rejection or not exact or len(drop) < 2 or _temperatures(rejection[-1]) != _temperatures(exact[-1]):
        return None
    cells = [(1, rejection[-1]), (-1, exact[-1]), (-1, drop[0]), (1, drop[-1])]
    return weighted(quantities.ALPHA, cells, f"rules at {_temperatures(exact[-1])}; {_temperatures(drop[-1], drop[0])}")


def within_a_text(records: Records) -> Finding | None:
    """Return alpha of the hot half of outputs less alpha of the cold half, mean of hot-first and cold-first outputs."""
    rows = series(records, "dynamic_temperature", "schedule")
    halves = [(row, of) for row in rows if len(of := stretches(row.record.cell)) == 2]
    starts_hot = [(row, of) for row, of in halves if of[0].temperature > of[1].temperature]
    starts_cold = [(row, of[::-1]) for row, of in halves if of[0].temperature < of[1].temperature]
    if not starts_hot or not starts_cold:
        return None
    both = (starts_hot[0], starts_cold[0])  # hot half first in each; over both, the effect of the place in an output cancels
    detail = " and ".join(schedule_text(row.record.cell.schedule) for row, _ in both)
    halves_of = [(row, functools.partial(counts_in, stretch=half)) for row, of in both for half in of]
    cells = [(row, Quantity(counts, quantities.alpha_of)) for row, counts in halves_of]
    return compared(contrast(quantities.alpha_of, (0.5, -0.5, 0.5, -0.5)), cells, detail)


def length_of_tokens(records: Records, place: int) -> Finding | None:
    """Return the coefficient of length in the newest record; place 0: alone, 1: beside entropy, frequency and position."""
    found = records.lines.get("token_length")
    if not found:
        return None
    newest = found[-1]
    return Finding(length_effects(newest.path)[place], "all temperatures", (newest.file,), (newest.command,))


FIND: dict[str, Find] = {
    "hotter-slower": lambda records: hot_against_cold(records, "temperature_grid", quantities.LOG_GAMMA),
    "hotter-rejects": lambda records: hot_against_cold(records, "temperature_grid", quantities.ALPHA),
    "u-curve-alpha": lambda records: beyond_one(records, quantities.ALPHA),
    "u-curve-gamma": lambda records: beyond_one(records, quantities.LOG_GAMMA),
    "word-problems-easier": between_domains,
    "longer-tokens": lambda records: length_of_tokens(records, 0),
    "criterion-costs": lambda records: hot_against_cold(records, "cost_of_temperature", quantities.LOG_ACCEPT_COST),
    "criterion-costs-the-same": lambda records: hot_against_cold(
        records, "cost_of_temperature", quantities.LOG_ACCEPT_COST, coldest=LEAST_SAMPLED
    ),
    "rounds-cost-the-same": lambda records: hot_against_cold(records, "cost_of_temperature", quantities.LOG_ROUND_COST),
    "draft-temperature": tuned_draft_temperature,
    "draft-length": tuned_draft_length,
    "rule-over-temperature": rule_against_temperature,
    "length-alone": lambda records: length_of_tokens(records, 1),
    "temperature-of-the-moment": within_a_text,
}
