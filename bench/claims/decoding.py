"""Functions of the claims that cells of suites decide. Each compares cells of one run."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence

from bench.analysis import quantities
from bench.analysis.certificate import LOSSY_RULES
from bench.analysis.metrics import JOINT_RULES
from bench.analysis.quantities import EXPECTED_ALPHA, LOG_GAMMA, Finding, Quantity, compared, largest, trend, weighted
from bench.analysis.rows import Row, identity
from bench.analysis.stretches import Stretch, counts_in, probs_in, stretches
from bench.analysis.token_length import length_effects
from bench.claims.claim import Find, Records
from bench.records.decoding import schedule_text
from bench.statistics.effects import Statistic, contrast

LEAST_SAMPLED = 0.01  # lowest T that counts as sampled; T = 0 draws nothing
INSTRUCTIONS, PROBLEMS = (("instructions", "alpaca"), ("word_problems", "gsm8k"))  # in names of prompt sets; our own set first
Design = Callable[[Sequence[Row]], Finding | None]  # of the cells of one run, the coldest first; None: they lack something


def in_one_run(suite: str, design: Design, *varied: str) -> Find:
    """Return the function that finds the effect of a design in the first series of a suite that has all its cells."""

    def find(records: Records) -> Finding | None:
        findings = (design(rows) for rows in series(records.rows.get(suite, ()), *varied))
        return next((finding for finding in findings if finding is not None), None)

    return find


def series(rows: Sequence[Row], *varied: str) -> list[tuple[Row, ...]]:
    """Return the series among rows: cells of one run that differ only in the varied names, under a lossless rule with an alpha.

    They are sorted by this rule, which does not depend on what was measured: the pair's own draft first, then the reference
    backend, the rejection rule, more cells, more prompts, and the newest run. In one run, the prompt set whose name comes
    first, and the smallest k.
    """
    found: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        facts = identity(row)
        if facts["draft_temperature"] == facts["temperature"] and "draft_temperature" not in varied:
            facts["draft_temperature"] = "= temperature"
        if facts["rule"] not in JOINT_RULES | LOSSY_RULES:
            found[row.file, frozenset(item for item in facts.items() if item[0] not in varied)].append(row)
    every = [tuple(sorted(each, key=lambda row: row.record.cell.temperature)) for each in found.values()]
    every.sort(key=lambda each: min((row.record.cell.prompt_set, row.record.cell.num_draft_tokens) for row in each))
    return sorted(every, key=_preference, reverse=True)  # equal ones keep their order, in reverse too


def _preference(rows: Sequence[Row]) -> tuple[object, ...]:
    cell, run = rows[0].record.cell, rows[0].run
    own_draft = cell.draft == run.model_pair.draft
    rejection = any(row.record.cell.rule == "rejection" for row in rows)
    num_prompts = min(row.record.cell.num_prompts for row in rows)
    return own_draft, cell.backend == "reference", rejection, len(rows), num_prompts, run.created, rows[0].file


def _up_to_one(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.cell.temperature <= 1]


def _temperatures(*rows: Row) -> str:
    return f"T = {' against '.join(f'{row.record.cell.temperature:g}' for row in rows)}"


# Findings
def over_temperature(suite: str, quantity: Quantity, *, coldest: float = 0.0) -> Find:
    """Return the function that finds the trend of a quantity over T from `coldest` to 1."""

    def slope(rows: Sequence[Row]) -> Finding | None:
        return trend(quantity, [row for row in _up_to_one(rows) if row.record.cell.temperature >= coldest])

    return in_one_run(suite, slope, "temperature")


def beyond_one(rows: Sequence[Row], *, quantity: Quantity) -> Finding | None:
    """Return a quantity at the hottest T less the same at the T nearest to the middle between it and 1."""
    hot = [row for row in rows if row.record.cell.temperature >= 1]
    if len(hot) < 2:
        return None
    middle = (1 + hot[-1].record.cell.temperature) / 2
    nearest = min(hot[:-1], key=lambda row: abs(row.record.cell.temperature - middle))
    return weighted(quantity, [(1, hot[-1]), (-1, nearest)], _temperatures(hot[-1], nearest))


def between_domains(rows: Sequence[Row]) -> Finding | None:
    """Return alpha on word problems less alpha on instructions, mean over T > 0."""
    problems, instructions = (_of_first_set(rows, names) for names in (PROBLEMS, INSTRUCTIONS))
    both = sorted(temperature for temperature in problems.keys() & instructions.keys() if temperature > 0)
    cells = [(sign / len(both), found[at]) for sign, found in ((1, problems), (-1, instructions)) for at in both]
    return weighted(EXPECTED_ALPHA, cells, f"T = {', '.join(f'{at:g}' for at in both)}") if both else None


def _of_first_set(rows: Sequence[Row], names: Sequence[str]) -> dict[float, Row]:
    """Return rows by temperature, of the first of these prompt sets that was measured."""
    of_sets = [[row for row in rows if name in row.record.cell.prompt_set.lower()] for name in names]
    return {row.record.cell.temperature: row for row in next(filter(None, of_sets), [])}


def tuned_draft_temperature(rows: Sequence[Row]) -> Finding | None:
    """Return the largest gain of alpha by another draft T over alpha at draft T = decode T, at the hottest T up to 1."""
    cold = _up_to_one(rows)
    hottest = [row for row in cold if row.record.cell.temperature == cold[-1].record.cell.temperature]
    matched = [row for row in hottest if row.record.cell.draft_temperature == row.record.cell.temperature]
    others = [row for row in hottest if row.record.cell.draft_temperature != row.record.cell.temperature]
    if len(matched) != 1 or not others:
        return None
    tried = ", ".join(f"{row.record.cell.draft_temperature:g}" for row in others)
    cells = [(row, EXPECTED_ALPHA) for row in (*matched, *others)]
    return largest(gains_over_first(EXPECTED_ALPHA, len(cells)), cells, f"{_temperatures(*matched)}, draft T of {tried}")


def gains_over_first(quantity: Quantity, num_cells: int) -> list[Statistic]:
    """Return for each further cell the statistic that is its quantity less that of the first cell."""
    return [contrast(quantity.of, [-1, *(place == other for other in range(1, num_cells))]) for place in range(1, num_cells)]


def tuned_draft_length(rows: Sequence[Row]) -> Finding | None:
    """Return the largest gain of log gamma at the hottest T up to 1 by another k than the one that is best at the coldest T."""
    at: dict[float, dict[int, Row]] = defaultdict(dict)
    for row in _up_to_one(rows):
        at[row.record.cell.temperature][row.record.cell.num_draft_tokens] = row
    hot, cold = (at[max(at)], at[min(at)]) if len(at) > 1 else ({}, {})
    lengths = sorted(hot.keys() & cold.keys())
    of_cold = {length: weighted(LOG_GAMMA, [(1, cold[length])], "") for length in lengths}
    estimates = {length: found.effect.estimate for length, found in of_cold.items() if found is not None}
    if len(estimates) < len(lengths) or len(lengths) < 2:
        return None
    best = max(estimates, key=estimates.__getitem__)
    others = [length for length in lengths if length != best]
    detail = f"{_temperatures(hot[best], cold[best])}, k of {', '.join(map(str, others))} against {best}"
    cells = [(hot[length], LOG_GAMMA) for length in (best, *others)]
    # The data of the coldest T chose the k to beat, so all of them count as tried.
    return largest(gains_over_first(LOG_GAMMA, len(lengths)), cells, detail, num_choices=len(lengths))


def rule_against_temperature(rows: Sequence[Row]) -> Finding | None:
    """Return what exact match loses against rejection at T = 1, less what rejection loses from T = 0 to 1, in alpha."""
    found = {(row.record.cell.rule, row.record.cell.temperature): row for row in rows}
    weights = {("rejection", 1.0): 2, ("exact_match", 1.0): -1, ("rejection", 0.0): -1}
    if not weights.keys() <= found.keys():
        return None
    return weighted(EXPECTED_ALPHA, [(weight, found[at]) for at, weight in weights.items()], "rules at T = 1; T = 1 against 0")


def within_a_text(rows: Sequence[Row]) -> Finding | None:
    """Return alpha of the hot half of outputs less alpha of the cold half, mean of hot-first and cold-first outputs."""
    halves = [(row, of) for row in rows if len(of := stretches(row.record.cell)) == 2]
    starts_hot = [(row, of) for row, of in halves if of[0].temperature > of[1].temperature]
    starts_cold = [(row, of[::-1]) for row, of in halves if of[0].temperature < of[1].temperature]
    if not starts_hot or not starts_cold:
        return None
    both = (starts_hot[0], starts_cold[0])  # hot half first in each; over both, the effect of the place in an output cancels
    detail = " and ".join(schedule_text(row.record.cell.schedule) for row, _ in both)
    cells = [(row, _alpha_in(half)) for row, of in both for half in of]
    return compared(contrast(quantities.share_of, (0.5, -0.5, 0.5, -0.5)), cells, detail)


def _alpha_in(stretch: Stretch) -> Quantity:
    counted = functools.partial(counts_in, stretch=stretch)
    return Quantity(quantities.expected(functools.partial(probs_in, stretch=stretch), counted), quantities.share_of)


def length_of_tokens(records: Records, place: int) -> Finding | None:
    """Return the coefficient of length in the newest record; place 0: alone, 1: beside entropy, frequency and position."""
    found = records.lines.get("token_length")
    if not found:
        return None
    newest = found[-1]
    return Finding(length_effects(newest.path)[place], "all temperatures", (newest.file,), (newest.command,))


FIND: dict[str, Find] = {
    "hotter-slower": over_temperature("temperature_grid", LOG_GAMMA),
    "hotter-rejects": over_temperature("temperature_grid", EXPECTED_ALPHA),
    "u-curve-alpha": in_one_run("out_of_range", functools.partial(beyond_one, quantity=EXPECTED_ALPHA), "temperature"),
    "u-curve-gamma": in_one_run("out_of_range", functools.partial(beyond_one, quantity=LOG_GAMMA), "temperature"),
    "word-problems-easier": in_one_run(
        "out_of_domain", between_domains, "temperature", "prompt_set", "prompts_hash", "num_prompts"
    ),
    "longer-tokens": lambda records: length_of_tokens(records, 0),
    "criterion-costs": over_temperature("cost_of_temperature", quantities.ACCEPT_SHARE),
    "criterion-costs-the-same": over_temperature("cost_of_temperature", quantities.ACCEPT_SHARE, coldest=LEAST_SAMPLED),
    "rounds-cost-the-same": over_temperature("cost_of_temperature", quantities.LOG_ROUND_COST),
    "draft-temperature": in_one_run("draft_temperature", tuned_draft_temperature, "temperature", "draft_temperature"),
    "draft-length": in_one_run("draft_length", tuned_draft_length, "temperature", "num_draft_tokens"),
    "rule-over-temperature": in_one_run("acceptance_rules", rule_against_temperature, "temperature", "rule"),
    "length-alone": lambda records: length_of_tokens(records, 1),
    "temperature-of-the-moment": in_one_run("dynamic_temperature", within_a_text, "schedule"),
}
