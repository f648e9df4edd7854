"""What only one suite has to say: a further table for each, of the same records as its main table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from bench import draft_lengths, metrics, schedules, tables, virtual_scale
from bench.records import CellRecord, PhaseSeconds, TimedArm
from bench.rendering import MISSING, Entry, Table
from bench.rows import Row

REPEATED = 4  # tokens of a repeat
ROUND_PHASES = tuple(name for name in PhaseSeconds.__slots__ if name != "prefill")
FORWARDS: tuple[metrics.Forward, ...] = ("ar", "draft", "verify")
COST_SECONDS = ("text_by_target_s", "text_by_draft_s", "trained_s")  # of a draft's card


def further_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """One for each group of a suite's rows; empty where the suite has none, or its records do not hold what it takes."""
    make = _MAKERS.get(rows[0].run.suite) if rows else None
    if make is None:
        return ()
    groups = tables.row_groups(rows)
    found = [(group, table) for group in groups if (table := make(group)).body]
    if len(groups) == 1:
        return tuple(table for _, table in found)
    return tuple(replace(table, facts={"every cell": _what_is_alike(group), **table.facts}) for group, table in found)


def _what_is_alike(rows: Sequence[Row]) -> str:
    """Of one group of several."""
    constant = tables.split_identity(rows)[1]
    told_apart = ("pair", "draft", "dtype", "num_prompts", "repeats", "max_new_tokens")
    return tables.listing({name: constant[name] for name in told_apart if name in constant})


def _valid(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Those whose seconds may be printed."""
    return tuple(row for row in rows if row.verdict.valid)


# Cost of temperature


def round_costs(record: CellRecord) -> dict[str, float] | None:
    """Seconds of a round by phase, from the replays; None without them."""
    replays = [pair.replay for pair in record.pairs if pair.replay is not None]
    num_rounds = sum(len(replay.rounds) for replay in replays)
    if not num_rounds:
        return None
    return {name: sum(getattr(replay.phase_s, name) for replay in replays) / num_rounds for name in ROUND_PHASES}


def _cost_table(rows: Sequence[Row]) -> Table:
    """Seconds per token = seconds per round / tokens per round, so logs of the two parts add up to the slow-down."""
    varying = tables.split_identity(rows)[0]
    body = []
    for group in _groups(_valid(rows), without="temperature"):
        measured = [(row, costs) for row in group if (costs := round_costs(row.record)) is not None]
        for row, costs in measured:
            own, coldest = _per_round(row, costs), _per_round(*measured[0])
            slower = math.log(own[0] / own[1] * coldest[1] / coldest[0])
            fewer, dearer = math.log(coldest[1] / own[1]), math.log(own[0] / coldest[0])
            texts = [tables.scalar_text(name, tables.identity(row).get(name)) for name in varying]
            texts += [f"{1000 * costs[name]:.2f}" for name in ROUND_PHASES]
            texts += [f"{1000 * own[0]:.2f}", f"{own[1]:.2f}", f"{1000 * own[0] / own[1]:.2f}"]
            texts += [_percent(slower), _percent(fewer), _percent(dearer)]
            body.append(tuple(map(Entry, texts)))
    headers = (
        *varying,
        *(f"{name}\nms/round" for name in ROUND_PHASES),
        *("all\nms/round", "tokens\n/ round", "SD\nms/token"),
        *("slower than\ncoldest", "of it: fewer\ntokens a round", "of it:\ndearer rounds"),
    )
    facts = {
        "seconds": "of the replays, synchronised at every phase: a round costs more there than in the timed arm",
        "slower": "logarithm of seconds per token over those of the coldest row, in hundredths; the two parts add up to it",
    }
    return Table(f"{_title(rows)}: why it is slower", headers, tuple(body), (), facts, {})


def _per_round(row: Row, costs: Mapping[str, float]) -> tuple[float, float]:
    """Seconds and tokens of a round."""
    efficiency = metrics.block_efficiency(row.record)
    return sum(costs.values()), efficiency.estimate if efficiency else math.nan


# Out of range


def repeated_share(token_ids: Sequence[int], length: int = REPEATED) -> float | None:
    """Share of a text's `length`-grams that stood in it before; None for a text too short to repeat one."""
    grams = [tuple(token_ids[start : start + length]) for start in range(len(token_ids) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else None


def _degeneracy_table(rows: Sequence[Row]) -> Table:
    varying = tables.split_identity(rows)[0]
    body = []
    for row in rows:
        texts = [tables.scalar_text(name, tables.identity(row).get(name)) for name in varying]
        for arm in ("ar", "sd"):
            texts += _degeneracy([getattr(pair, arm) for pair in row.record.pairs])
        body.append(tuple(map(Entry, texts)))
    columns = (f"repeated\n{REPEATED}-grams", "distinct\ntokens", "ended by\nitself", "tokens\n/ text")
    headers = (*varying, *(f"{arm} {column}" for arm in ("AR", "SD") for column in columns))
    facts = {
        f"repeated {REPEATED}-grams": "share that stood in the same text before: near 1 is a loop, as greedy text tends to be",
        "distinct tokens": "different tokens / tokens of a text: near 1 is word salad",
        "ended by itself": "share of texts with an end token before the limit; gibberish does not end",
    }
    return Table(f"{_title(rows)}: are these still texts?", headers, tuple(body), (), facts, {})


def _degeneracy(arms: Sequence[TimedArm]) -> Iterator[str]:
    repeated = [share for arm in arms if (share := repeated_share(arm.token_ids)) is not None]
    yield f"{_mean(repeated):.1%}" if repeated else MISSING
    yield f"{_mean([len(set(arm.token_ids)) / len(arm.token_ids) for arm in arms]):.1%}" if arms else MISSING
    yield f"{_mean([arm.finish_reason == 'stop' for arm in arms]):.0%}" if arms else MISSING
    yield f"{_mean([len(arm.token_ids) for arm in arms]):.0f}" if arms else MISSING


# Deployment


def payback_tokens(row: Row) -> float | None:
    """Generated tokens after which the seconds saved exceed what training the draft took; None where either is unknown.

    Infinite where speculation saves nothing. Whole calls count, prefill included.
    """
    card = row.run.drafts.get(row.record.cell.draft, {})
    cost_s = sum(float(card.get(name) or 0.0) for name in COST_SECONDS)
    seconds = [sum(getattr(pair, arm).seconds for pair in row.record.pairs) for arm in ("ar", "sd")]
    tokens = [sum(len(getattr(pair, arm).token_ids) for pair in row.record.pairs) for arm in ("ar", "sd")]
    if not cost_s or not all(tokens):
        return None
    saved_s = seconds[0] / tokens[0] - seconds[1] / tokens[1]
    return cost_s / saved_s if saved_s > 0 else math.inf


def _deployment_table(rows: Sequence[Row]) -> Table:
    varying = tables.split_identity(rows)[0]
    body = []
    for row in _valid(rows):
        texts = [tables.scalar_text(name, tables.identity(row).get(name)) for name in varying]
        texts += [_first_token_ms(row, "ar"), _first_token_ms(row, "sd")]
        texts += [_end_to_end(row, "ar"), _end_to_end(row, "sd"), tables.interval_text(metrics.gamma_e2e(row.record))]
        card = row.run.drafts.get(row.record.cell.draft, {})
        cost_s = sum(float(card.get(name) or 0.0) for name in COST_SECONDS)
        texts += [f"{cost_s:,.0f}" if cost_s else MISSING, _payback_text(payback_tokens(row))]
        body.append(tuple(map(Entry, texts)))
    headers = (
        *varying,
        *("first token\nAR ms", "first token\nSD ms", "AR tokens/s\nend to end", "SD tokens/s\nend to end"),
        *("gamma_e2e", "KD\nseconds", "tokens to\npay it back"),
    )
    facts = {
        "KD seconds": "sampling and training as the draft's own card says; the draft it was started from is not in it",
        "tokens to pay it back": "KD seconds / seconds saved per generated token, end to end",
    }
    return Table(f"{_title(rows)}: does it pay?", headers, tuple(body), (), facts, {})


def _first_token_ms(row: Row, arm: metrics.ArmName) -> str:
    seconds = metrics.first_token_seconds(row.record, arm)
    return MISSING if seconds is None else f"{1000 * seconds.estimate:.0f}"


def _end_to_end(row: Row, arm: str) -> str:
    arms: list[TimedArm] = [getattr(pair, arm) for pair in row.record.pairs]
    return f"{sum(len(one.token_ids) for one in arms) / sum(one.seconds for one in arms):.1f}"


def _payback_text(tokens: float | None) -> str:
    if tokens is None:
        return MISSING
    return "never" if math.isinf(tokens) else f"{tokens:,.0f}"


# Floor


def _floor_table(rows: Sequence[Row]) -> Table:
    """How far each forward is from its linear layers alone, and each arm from its forwards."""
    varying = tables.split_identity(rows)[0]
    body = []
    for row in _valid(rows):
        record = row.record
        if metrics.floor_seconds(record, "ar") is None:
            continue
        texts = [tables.scalar_text(name, tables.identity(row).get(name)) for name in varying]
        for forward in FORWARDS:
            seconds, over = metrics.floor_seconds(record, forward), metrics.over_floor(record, forward)
            texts += [MISSING, MISSING] if seconds is None or over is None else [f"{1000 * seconds:.2f}", f"{over:.2f}"]
        arm, floor_s = metrics.seconds_per_token(record, "ar"), metrics.floor_seconds(record, "ar")
        texts.append(f"{arm.estimate / floor_s:.2f}" if arm and floor_s else MISSING)
        measured, predicted = metrics.gamma(record), metrics.predicted_gamma(record)
        texts.append(f"{measured.estimate / predicted:.2f}" if measured and predicted else MISSING)
        body.append(tuple(map(Entry, texts)))
    headers = (
        *varying,
        *(header for name in FORWARDS for header in (f"{name} floor\nms", f"{name} forward\n/ floor")),
        "AR token\n/ floor",
        "gamma measured\n/ predicted",
    )
    facts = {
        "floor": "the linear layers of one forward alone, timed beside it: every weight is read once",
        "forward / floor": "median over the samples of a bare forward and its floor",
        "AR token / floor": "seconds per token of the timed AR arm, sampling and loop included",
        "gamma measured / predicted": "what is left of the gamma that bare forwards and block efficiency would give",
    }
    return Table(f"{_title(rows)}: above the floor", headers, tuple(body), (), facts, {})


# All


_MAKERS: Mapping[str, Callable[[Sequence[Row]], Table]] = {
    "cost_of_temperature": _cost_table,
    "out_of_range": _degeneracy_table,
    "deployment": _deployment_table,
    "dynamic_temperature": schedules.halves_table,
    "draft_length": draft_lengths.retuning_table,
    "floor": _floor_table,
    virtual_scale.SUITE: virtual_scale.scale_table,
}


def _groups(rows: Sequence[Row], *, without: str) -> list[list[Row]]:
    """Rows that differ in nothing but one name, in ascending order of it."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        values = tables.identity(row)
        rest = {name: value for name, value in values.items() if name not in (without, "draft_temperature")}
        groups.setdefault(tuple(rest.items()), []).append(row)
    return [sorted(group, key=lambda row: float(str(tables.identity(row)[without]))) for group in groups.values()]


def _title(rows: Sequence[Row]) -> str:
    return tables.title(rows[0].run)


def _percent(log_ratio: float) -> str:
    return f"{100 * log_ratio:+.1f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
