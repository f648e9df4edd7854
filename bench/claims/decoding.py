"""The claims that cells of suites decide. What each compares is fixed: cells that differ in nothing but what it names."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence

from bench.analysis.certificate import LOSSY_RULES
from bench.analysis.metrics import JOINT_RULES
from bench.analysis.quantities import (
    ALPHA,
    LOG_ACCEPT_COST,
    LOG_GAMMA,
    LOG_ROUND_COST,
    Finding,
    Quantity,
    alpha_of,
    compared,
    log_ratio_of,
    weighted,
)
from bench.analysis.rows import Row, identity
from bench.analysis.stretches import counts_in, stretches
from bench.claims.claim import Claim, Records, Rule
from bench.records.decoding import schedule_text
from bench.records.runs import Cell
from bench.statistics.effects import chosen_by_others, contrast
from bench.statistics.intervals import Array

TWO_PERCENT = math.log(1.02)
LEAST_SAMPLED = 0.01  # T = 0 draws nothing
INSTRUCTIONS, PROBLEMS = ("instructions", "alpaca"), ("word_problems", "gsm8k")  # in names of prompt sets; ours first


def series(records: Records, suite: str, *varied: str) -> tuple[Row, ...]:
    """Cells of a suite that differ in nothing but what is named, of a lossless rule with an alpha; coldest first.

    Of several such series it is that of the pair's own draft, of the reference, of the rejection rule, the longest, the newest.
    """
    found: dict[object, list[Row]] = defaultdict(list)
    for row in records.rows.get(suite, ()):
        facts = identity(row)
        if facts["draft_temperature"] == facts["temperature"] and "draft_temperature" not in varied:
            facts["draft_temperature"] = "= temperature"
        kept = frozenset(item for item in facts.items() if item[0] not in varied)
        if facts["rule"] not in JOINT_RULES | LOSSY_RULES:
            found[kept, frozenset(row.run.model_hashes.items())].append(row)
    return tuple(sorted(max(found.values(), key=_preference, default=()), key=lambda row: _cell(row).temperature))


def _preference(rows: Sequence[Row]) -> tuple[object, ...]:
    cell, run = _cell(rows[0]), rows[0].run
    own_draft = cell.draft == run.model_pair.draft
    rejection = any(_cell(row).rule == "rejection" for row in rows)
    return own_draft, cell.backend == "reference", rejection, len(rows), max(row.run.created for row in rows)


def _up_to_one(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if _cell(row).temperature <= 1]


def _cell(row: Row) -> Cell:
    return row.record.cell


def _temperatures(*rows: Row) -> str:
    return f"T = {' against '.join(f'{_cell(row).temperature:g}' for row in rows)}"


# What claims compare
def hot_against_cold(records: Records, suite: str, quantity: Quantity, *, coldest: float = 0.0) -> Finding | None:
    """At the hottest T up to 1, less at the coldest that is no colder than said."""
    rows = [row for row in _up_to_one(series(records, suite, "temperature")) if _cell(row).temperature >= coldest]
    if len(rows) < 2:
        return None
    return weighted(quantity, [(1, rows[-1]), (-1, rows[0])], _temperatures(rows[-1], rows[0]))


def beyond_one(records: Records, quantity: Quantity) -> Finding | None:
    """At the hottest T, less at the one nearest to the middle between it and 1."""
    rows = [row for row in series(records, "out_of_range", "temperature") if _cell(row).temperature >= 1]
    if len(rows) < 2:
        return None
    middle = (1 + _cell(rows[-1]).temperature) / 2
    nearest = min(rows[:-1], key=lambda row: abs(_cell(row).temperature - middle))
    return weighted(quantity, [(1, rows[-1]), (-1, nearest)], _temperatures(rows[-1], nearest))


def between_domains(records: Records) -> Finding | None:
    """Alpha on word problems less alpha on instructions, mean over T > 0."""
    rows = series(records, "out_of_domain", "temperature", "prompt_set", "prompts_hash", "num_prompts")
    problems, instructions = (_of_first_set(rows, names) for names in (PROBLEMS, INSTRUCTIONS))
    both = sorted(temperature for temperature in problems.keys() & instructions.keys() if temperature > 0)
    cells = [(sign / len(both), found[at]) for sign, found in ((1, problems), (-1, instructions)) for at in both]
    return weighted(ALPHA, cells, f"T = {', '.join(f'{at:g}' for at in both)}") if both else None


def _of_first_set(rows: Sequence[Row], names: Sequence[str]) -> dict[float, Row]:
    """By temperature, of the first of these prompt sets that was measured."""
    of_names = (
        {_cell(row).temperature: row for row in rows if name in _cell(row).prompt_set.lower()} for name in names
    )
    return next(filter(None, of_names), {})


def draft_temperatures(records: Records) -> tuple[Row, ...]:
    """At the hottest T up to 1: the cell whose draft T is the decode T, then the others; empty where either lacks."""
    rows = _up_to_one(series(records, "draft_temperature", "temperature", "draft_temperature"))
    hottest = [row for row in rows if _cell(row).temperature == _cell(rows[-1]).temperature]
    ordered = sorted(hottest, key=lambda row: _cell(row).draft_temperature != _cell(row).temperature)
    matched = [row for row in ordered if _cell(row).draft_temperature == _cell(row).temperature]
    return tuple(ordered) if len(matched) == 1 < len(ordered) else ()


def tuned_draft_temperature(records: Records) -> Finding | None:
    """Alpha at the best other draft T, chosen on other prompts, less at draft T = decode T."""
    rows = draft_temperatures(records)
    if not rows:
        return None

    tried = ", ".join(f"{_cell(row).draft_temperature:g}" for row in rows[1:])
    detail = f"{_temperatures(rows[0])}, draft T of {tried}"
    return compared(draft_temperature_gain, [(row, ALPHA.columns) for row in rows], detail)


def draft_temperature_gain(cells: Sequence[Array]) -> float:
    """Of counts: of the cell whose draft T is the decode T, then of the others."""
    return chosen_by_others(alpha_of, cells[1:], cells[1:]) - float(alpha_of(cells[0].sum(0)))


def tuned_draft_length(records: Records) -> Finding | None:
    """Log gamma at the hottest T with the k that is best there, less with the k best at the coldest, by other prompts."""
    rows = _up_to_one(series(records, "draft_length", "temperature", "num_draft_tokens"))
    at: dict[float, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        at[_cell(row).temperature][_cell(row).num_draft_tokens] = row
    hot, cold = (at[max(at)], at[min(at)]) if len(at) > 1 else ({}, {})
    lengths = sorted(hot.keys() & cold.keys())
    if len(lengths) < 2:
        return None

    detail = f"{_temperatures(rows[-1], rows[0])}, k of {', '.join(map(str, lengths))}"
    cells = [(of[length], LOG_GAMMA.columns) for of in (hot, cold) for length in lengths]
    return compared(draft_length_gain, cells, detail)


def draft_length_gain(cells: Sequence[Array]) -> float:
    """Of seconds and tokens: at the hottest T of each k, then at the coldest."""
    hot, cold = cells[: len(cells) // 2], cells[len(cells) // 2 :]
    return chosen_by_others(log_ratio_of, hot, hot) - chosen_by_others(log_ratio_of, hot, cold)


def rule_against_temperature(records: Records) -> Finding | None:
    """Alpha of rejection less of exact match at the hottest T, less the drop of rejection's alpha over T.

    The drop is that of the same suite; where it has one T, of the temperature grid.
    """
    rules = _up_to_one(series(records, "acceptance_rules", "temperature", "rule"))
    rejection, exact = ([row for row in rules if _cell(row).rule == rule] for rule in ("rejection", "exact_match"))
    drop = rejection if len(rejection) > 1 else _up_to_one(series(records, "temperature_grid", "temperature"))
    if not rejection or not exact or len(drop) < 2 or _temperatures(rejection[-1]) != _temperatures(exact[-1]):
        return None
    cells = [(1, rejection[-1]), (-1, exact[-1]), (-1, drop[0]), (1, drop[-1])]
    return weighted(ALPHA, cells, f"rules at {_temperatures(exact[-1])}; {_temperatures(drop[-1], drop[0])}")


def within_a_text(records: Records) -> Finding | None:
    """Alpha of the hot part of texts less of the cold part; mean of texts that start hot and texts that start cold.

    With both orders, what the place in a text does by itself cancels.
    """
    rows = series(records, "dynamic_temperature", "schedule")
    halves = [(row, stretches(_cell(row))) for row in rows]
    switching = [(row, of) for row, of in halves if len(of) == 2 and of[0].temperature != of[1].temperature]
    starts_hot = [(row, of) for row, of in switching if of[0].temperature > of[1].temperature]
    starts_cold = [(row, of[::-1]) for row, of in switching if of[0].temperature < of[1].temperature]
    if not starts_hot or not starts_cold:
        return None
    both = (starts_hot[0], starts_cold[0])  # hot half first in each
    detail = " and ".join(schedule_text(_cell(row).schedule) for row, _ in both)
    cells = [(row, functools.partial(counts_in, stretch=half)) for row, of in both for half in of]
    return compared(contrast(alpha_of, (0.5, -0.5, 0.5, -0.5)), cells, detail)


def length_of_tokens(records: Records, place: int) -> Finding | None:
    """The coefficient of length in the newest record: 0 alone, 1 beside entropy, frequency and position."""
    found = records.lines.get("token_length")
    if not found:
        return None
    from bench.analysis.token_length import length_effects

    newest = found[-1]
    return Finding(length_effects(newest.path)[place], "all temperatures", (newest.file,), (newest.command,))


FALLS, RISES = Rule("points", "<", 0.0), Rule("points", ">", 0.0)


def _suite(name: str) -> str:
    return f"pytest --benchmark-only suites/test_{name}.py"


_CLAIMS = (
    Claim(
        "hotter-slower",
        "Speculative decoding gains less at high temperature.",
        "paper",
        "gamma at the hottest T up to 1 / at the coldest",
        Rule("ratio", "<", 0.0),
        _suite("temperature_grid"),
        lambda records: hot_against_cold(records, "temperature_grid", LOG_GAMMA),
    ),
    Claim(
        "hotter-rejects",
        "Acceptance falls with temperature.",
        "paper",
        "alpha at the hottest T up to 1 - at the coldest",
        FALLS,
        _suite("temperature_grid"),
        lambda records: hot_against_cold(records, "temperature_grid", ALPHA),
    ),
    Claim(
        "u-curve-alpha",
        "Beyond T = 1 acceptance rises again.",
        "paper",
        "alpha at the hottest T - at the T in the middle between it and 1",
        RISES,
        _suite("out_of_range"),
        lambda records: beyond_one(records, ALPHA),
    ),
    Claim(
        "u-curve-gamma",
        "Beyond T = 1 the speed-up rises again.",
        "paper",
        "gamma at the hottest T / at the T in the middle between it and 1",
        Rule("ratio", ">", 0.0),
        _suite("out_of_range"),
        lambda records: beyond_one(records, LOG_GAMMA),
    ),
    Claim(
        "word-problems-easier",
        "Word problems (GSM8K) are accepted more than instructions (Alpaca).",
        "paper",
        "alpha on word problems - on instructions, mean over T > 0",
        RISES,
        _suite("out_of_domain"),
        between_domains,
    ),
    Claim(
        "longer-tokens",
        "Longer tokens are accepted less.",
        "paper",
        "log odds of acceptance for a standard deviation more of bytes, alone",
        Rule("log odds", "<", 0.0),
        _suite("token_length"),
        lambda records: length_of_tokens(records, 0),
    ),
    Claim(
        "criterion-costs",
        "The acceptance criterion costs more when hot.",
        "paper",
        "seconds of acceptance / of verification at the hottest T up to 1, / the same at the coldest",
        Rule("ratio", ">", TWO_PERCENT),
        _suite("cost_of_temperature"),
        lambda records: hot_against_cold(records, "cost_of_temperature", LOG_ACCEPT_COST),
    ),
    Claim(
        "criterion-costs-the-same",
        "Once tokens are sampled, the acceptance criterion costs the same at every temperature.",
        "contested",
        "seconds of acceptance / of verification at the hottest T up to 1, / the same at the coldest above 0",
        Rule("ratio", "<", TWO_PERCENT),
        _suite("cost_of_temperature"),
        lambda records: hot_against_cold(records, "cost_of_temperature", LOG_ACCEPT_COST, coldest=LEAST_SAMPLED),
    ),
    Claim(
        "rounds-cost-the-same",
        "It is slower when hot because fewer tokens are accepted, not because rounds cost more.",
        "contested",
        "seconds of a round / of an autoregressive token at the hottest T up to 1, / the same at the coldest",
        Rule("ratio", "<", TWO_PERCENT),
        _suite("cost_of_temperature"),
        lambda records: hot_against_cold(records, "cost_of_temperature", LOG_ROUND_COST),
    ),
    Claim(
        "draft-temperature",
        "Another draft T alone, which is free, raises acceptance when hot.",
        "contested",
        "alpha at the best other draft T, chosen on other prompts, - at draft T = decode T, at the hottest T up to 1",
        RISES,
        _suite("draft_temperature"),
        tuned_draft_temperature,
    ),
    Claim(
        "draft-length",
        "Another k gives lost speed back when hot.",
        "contested",
        "gamma at the hottest T up to 1 with the k best there / with the k best at the coldest, chosen on other prompts",
        Rule("ratio", ">", 0.0),
        _suite("draft_length"),
        tuned_draft_length,
    ),
    Claim(
        "rule-over-temperature",
        "The acceptance rule matters more than temperature.",
        "contested",
        "alpha of rejection - of exact match at the hottest T up to 1, - what rejection loses from the coldest T to there",
        RISES,
        _suite("acceptance_rules"),
        rule_against_temperature,
    ),
    Claim(
        "length-alone",
        "Longer tokens are accepted less even at equal entropy, frequency and position.",
        "contested",
        "log odds of acceptance for a standard deviation more of bytes, beside entropy, frequency and position",
        Rule("log odds", "<", 0.0),
        _suite("token_length"),
        lambda records: length_of_tokens(records, 1),
    ),
    Claim(
        "temperature-of-the-moment",
        "Within a text, acceptance follows the temperature of the moment.",
        "contested",
        "alpha where a text is hot - where it is cold, mean of texts that start hot and texts that start cold",
        FALLS,
        _suite("dynamic_temperature"),
        within_a_text,
    ),
)


def claims() -> tuple[Claim, ...]:
    """In the order of the ledger."""
    return _CLAIMS
