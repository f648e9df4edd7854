"""All timed pairs of a folder of results as one tidy pandas DataFrame, to look at them in ways that no table here does.

Not called `frame`, because `bench.frame` is the function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from bench.analysis import metrics
from bench.analysis.rows import Row, model_hashes, oldest_first, rows_of
from bench.progress import with_bar
from bench.records.decoding import Scalar, schedule_text
from bench.records.environment import machine_slug
from bench.records.files import Runs, read_runs
from bench.records.runs import Cell, RunRecord, TimedArm, TimedPair

if TYPE_CHECKING:
    import pandas as pd


OPTION = "option_"  # before the name of what a suite varies beyond the fields of a cell
_TEXT, _COUNT, _NUMBER, _FLAG = "string", "Int64", "Float64", "boolean"  # pandas' types that know missing values
_CELL = {
    "suite": _TEXT,
    "backend": _TEXT,
    "rule": _TEXT,
    "pair": _TEXT,
    "draft": _TEXT,
    "temperature": _NUMBER,
    "draft_temperature": _NUMBER,
    "num_draft_tokens": _COUNT,
    "prompt_set": _TEXT,
}
_PAIR = {
    "prompt": _COUNT,
    "repeat": _COUNT,
    "order": _TEXT,
    "group": _COUNT,
    "ar_s": _NUMBER,
    "ar_first_token_s": _NUMBER,
    "ar_tokens": _COUNT,
    "ar_decode_s": _NUMBER,
    "ar_decode_tokens": _COUNT,
    "sd_s": _NUMBER,
    "sd_first_token_s": _NUMBER,
    "sd_tokens": _COUNT,
    "sd_decode_s": _NUMBER,
    "sd_decode_tokens": _COUNT,
    "drafted": _COUNT,
    "tested": _COUNT,
    "accepted": _COUNT,
    "emitted": _COUNT,
    "rounds": _COUNT,
}
_JUDGED = {"verdict": _TEXT, "reasons": _TEXT, "certificate": _TEXT}
_RUN = {
    "machine": _TEXT,
    "commit": _TEXT,
    "dirty": _FLAG,
    "created": _TEXT,
    "preset": _TEXT,
    "target": _TEXT,
    "target_hash": _TEXT,
    "draft_hash": _TEXT,
    "file": _TEXT,
}
_FURTHER = {
    "dtype": _TEXT,
    "device": _TEXT,
    "top_k": _COUNT,
    "top_p": _NUMBER,
    "max_new_tokens": _COUNT,
    "end_token": _TEXT,
    "num_prompts": _COUNT,
    "repeats": _COUNT,
    "prompts_hash": _TEXT,
    "chat_template": _TEXT,
    "chat_template_hash": _TEXT,
    "seed": _COUNT,
    "concurrency": _COUNT,
    "draft_length": _TEXT,
    "schedule": _TEXT,
    "inflation": _TEXT,
}
_COLUMNS = _CELL | _PAIR | _JUDGED | _RUN | _FURTHER

_Values = dict[str, Scalar]


def frame(results: str | Path, *, suite: str | None = None) -> pd.DataFrame:
    """Every timed pair below a folder of results, or of one record: a row a pair, in the order in which they ran.

    What the cell is (`pair` is the model pair, and everything that a suite varies besides has a column `option_<name>`):
    suite, backend, rule, pair, draft, temperature, draft_temperature, num_draft_tokens, prompt_set, and at the end dtype,
    device, top_k, top_p, max_new_tokens, end_token, num_prompts, repeats, prompts_hash, chat_template(_hash), seed.

    What the pair is: `prompt` (index in the prompt set), `repeat`, `order` (ar_first or sd_first), `group` (first prompt of
    those decoded together with this one; missing: alone).

    Of each arm, AR and SD (`ar_`, `sd_`):
        `_s`              wall-clock seconds of the whole call
        `_first_token_s`  seconds from the call to its first token; missing where the engine cannot tell
        `_tokens`         new tokens, the first and the end token included
        `_decode_s`, `_decode_tokens`   what gamma sums: without the call up to its first token and without the tokens that
                          came with it; 0 and 0 for a text of one token. Missing where one arm of a cell cannot tell its first
                          token: its gamma is of `_s` and `_tokens`

    Draft tokens of the SD text: `drafted`, `tested` (accepted + rejected; missing for rules that judge rounds jointly),
    `accepted`; `emitted` tokens in so many `rounds`. All are missing where the engine does not report rounds.

    Of the cell: `verdict` (FASTER, SLOWER, INDISTINGUISHABLE, INCONCLUSIVE, or INVALID: then no number of its rows may be
    claimed), its `reasons`, `certificate`. Cells that failed have no pairs, and no rows. Of the run: `machine`, `commit`,
    `dirty` (uncommitted changes), `created` (ISO 8601, UTC), `preset`, `target`, `target_hash`, `draft_hash`, `file`.

    A cell that was measured again has rows of every record: take one `file`, or the newest `created`.

    Args:    results: folder or record; suite: only this one's records
    Raises:  ValueError: no records there, or a broken one
    """
    return frame_of(read_runs(Path(results), suite=suite))


def frame_of(runs: Runs) -> pd.DataFrame:
    """The same of records that are read already, oldest first."""
    import pandas as pd

    judged = (row for one in with_bar(oldest_first(runs), "judging records") for row in rows_of(*one))
    rows = [values for row in judged for values in _rows(row)]
    options = {name: None for row in rows for name in row if name.startswith(OPTION)}
    table = pd.DataFrame(rows, columns=[*_COLUMNS, *options]).astype(_COLUMNS)
    return table.astype({name: _type_of([row.get(name) for row in rows]) for name in options})


def _rows(row: Row) -> Iterator[_Values]:
    record, run, verdict = row.record, row.run, row.verdict
    shared: _Values = {
        **{field.name: getattr(record.cell, field.name) for field in fields(Cell) if field.name != "options"},
        "schedule": schedule_text(record.cell.schedule) or None,
        **{f"{OPTION}{name}": value for name, value in record.cell.options},
        "verdict": verdict.label,
        "reasons": "; ".join(verdict.reasons),
        "certificate": verdict.certificate,
        **{f"{role}_hash": value for role, value in model_hashes(record.cell, run).items()},
        **_of_run(row.file, run),
    }
    decode = metrics.time_columns(record, "decode") if metrics.times_measured(record) == "decode" else None
    for index, pair in enumerate(record.pairs):
        yield shared | _of_pair(pair, record.cell.rule) | _of_decoding(decode, index)


def _of_run(file: str, run: RunRecord) -> _Values:
    return {
        "machine": machine_slug(run.environment),
        "commit": run.environment.get("harness_commit"),
        "dirty": run.environment.get("harness_dirty"),
        "created": run.created,
        "preset": run.preset,
        "target": run.model_pair.target,
        "file": file,
    }


def _of_pair(pair: TimedPair, rule: str) -> _Values:
    return {
        "prompt": pair.prompt_index,
        "repeat": pair.repeat,
        "order": pair.order,
        "group": pair.group,
        **_of_arm("ar", pair.ar),
        **_of_arm("sd", pair.sd),
        **_of_rounds(pair.sd, rule),
    }


def _of_arm(name: metrics.ArmName, arm: TimedArm) -> _Values:
    return {
        f"{name}_s": arm.seconds,
        f"{name}_first_token_s": arm.first_token_s,
        f"{name}_tokens": len(arm.token_ids),
    }


def _of_rounds(arm: TimedArm, rule: str) -> _Values:
    if arm.rounds is None:
        return {}
    counts = metrics.count_rounds(arm.rounds)
    return {
        "drafted": counts.drafted,
        "tested": None if rule in metrics.JOINT_RULES else counts.tested,
        "accepted": counts.accepted,
        "emitted": counts.emitted,
        "rounds": counts.rounds,
    }


def _of_decoding(columns: metrics.Columns | None, index: int) -> _Values:
    if columns is None:
        return {}
    ar_s, ar_tokens, sd_s, sd_tokens = columns
    return {
        "ar_decode_s": ar_s[index],
        "ar_decode_tokens": ar_tokens[index],
        "sd_decode_s": sd_s[index],
        "sd_decode_tokens": sd_tokens[index],
    }


def _type_of(values: list[Scalar]) -> str:
    """One type that holds all values of an option; text where suites gave it values of several kinds."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return _FLAG
    if kinds <= {int}:
        return _COUNT
    return _NUMBER if kinds <= {int, float} else _TEXT
