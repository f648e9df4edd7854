"""All timed pairs of a folder of results as one tidy pandas DataFrame."""

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
from bench.records.runs import Cell

if TYPE_CHECKING:
    import pandas as pd


OPTION = "option_"  # before the name of what a suite varies beyond the fields of a cell
_TEXT, _COUNT, _NUMBER, _FLAG = "string", "Int64", "Float64", "boolean"  # pandas' types with missing values
_OF_KIND = {"boolean": _FLAG, "integer": _COUNT, "floating": _NUMBER, "mixed-integer-float": _NUMBER}  # pandas' kinds
_ARM = {"s": _NUMBER, "first_token_s": _NUMBER, "tokens": _COUNT, "decode_s": _NUMBER, "decode_tokens": _COUNT}
_COLUMNS = {
    **dict.fromkeys(("suite", "backend", "rule", "pair", "draft"), _TEXT),
    **{"temperature": _NUMBER, "draft_temperature": _NUMBER, "num_draft_tokens": _COUNT, "prompt_set": _TEXT},
    **{"prompt": _COUNT, "repeat": _COUNT, "order": _TEXT, "group": _COUNT},
    **{f"{arm}_{name}": of_type for arm in ("ar", "sd") for name, of_type in _ARM.items()},
    **dict.fromkeys(("drafted", "tested", "accepted", "emitted", "rounds"), _COUNT),
    **dict.fromkeys(("verdict", "reasons", "certificate", "machine", "commit"), _TEXT),
    "dirty": _FLAG,
    **dict.fromkeys(("created", "preset", "target", "target_hash", "draft_hash", "file", "dtype", "device"), _TEXT),
    **{"top_k": _COUNT, "top_p": _NUMBER, "max_new_tokens": _COUNT, "end_token": _TEXT},
    **dict.fromkeys(("num_prompts", "repeats"), _COUNT),
    **dict.fromkeys(("prompts_hash", "chat_template", "chat_template_hash"), _TEXT),
    **{"seed": _COUNT, "concurrency": _COUNT},
    **dict.fromkeys(("draft_length", "schedule", "inflation"), _TEXT),
}


def frame(results: str | Path, *, suite: str | None = None) -> pd.DataFrame:
    """Return every timed pair below a folder of results, or of one record: one row per pair, in the order in which they ran.

    Columns of the cell: suite, backend, rule, pair (of models), draft, temperature, draft_temperature, num_draft_tokens,
    prompt_set, and at the end dtype, device, top_k, top_p, max_new_tokens, end_token, num_prompts, repeats, prompts_hash,
    chat_template(_hash), seed, concurrency, draft_length, schedule, inflation. What a suite varies besides is `option_<name>`.

    Columns of the pair: `prompt` (index in the prompt set), `repeat`, `order` (ar_first or sd_first), `group` (first prompt of
    those decoded together with this one; missing: alone).

    Columns of each arm, AR and SD (`ar_`, `sd_`):
        `_s`              wall-clock seconds of the whole call
        `_first_token_s`  seconds from the call to its first token; missing where the engine does not report it
        `_tokens`         new tokens, the first and the end token included
        `_decode_s`, `_decode_tokens`   what gamma sums: without the call up to its first token and without the tokens that
                          came with it; 0 and 0 for an output of one token. Missing where one arm of a cell does not report its
                          first token: its gamma is of `_s` and `_tokens`

    Draft tokens of the SD arm: `drafted`, `tested` (accepted + rejected; missing for rules that judge rounds jointly),
    `accepted`, and `emitted` tokens in so many `rounds`. All are missing where the engine does not report rounds.

    Judgement of the cell: `verdict` (SAME, FASTER, SLOWER, INCONCLUSIVE, or INVALID: then no number of its rows may be
    claimed), its `reasons`, `certificate`. Cells that failed have no pairs, and no rows. Columns of the run: `machine`,
    `commit`, `dirty` (uncommitted changes), `created` (ISO 8601, UTC), `preset`, `target`, `target_hash`, `draft_hash`, `file`.

    A cell that was measured again has rows of every record: use one `file`, or the newest `created`.

    Args:    results: folder or record; suite: only this one's records
    Raises:  ValueError: no records there, or a broken one
    """
    return frame_of(read_runs(Path(results), suite=suite))


def frame_of(runs: Runs) -> pd.DataFrame:
    """Return the frame of records that are read already, the oldest first."""
    import pandas as pd

    judged = (row for one in with_bar(oldest_first(runs), "judging records") for row in rows_of(*one))
    rows = [values for row in judged for values in _pairs(row)]
    options = {name: None for row in rows for name in row if name.startswith(OPTION)}
    # Suites may give an option values of several kinds; then it is text.
    kinds = {name: pd.api.types.infer_dtype([row.get(name) for row in rows], skipna=True) for name in options}
    types = _COLUMNS | {name: _OF_KIND.get(kind, _TEXT) for name, kind in kinds.items()}
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def _pairs(row: Row) -> Iterator[dict[str, Scalar]]:
    """Yield the values of each timed pair of a cell, by column."""
    record, run, cell, env = row.record, row.run, row.record.cell, row.run.environment
    shared: dict[str, Scalar] = {
        **{field.name: getattr(cell, field.name) for field in fields(Cell) if field.name != "options"},
        **{f"{OPTION}{name}": value for name, value in cell.options},
        **{f"{role}_hash": value for role, value in model_hashes(cell, run).items()},
        **{"schedule": schedule_text(cell.schedule) or None, "target": run.model_pair.target, "file": row.file},
        **{"verdict": row.verdict.label, "reasons": "; ".join(row.verdict.reasons), "certificate": row.verdict.certificate},
        **{"machine": machine_slug(env), "commit": env.get("harness_commit"), "dirty": env.get("harness_dirty")},
        **{"created": run.created, "preset": run.preset},
    }
    columns = metrics.time_columns(record, "decode") if metrics.times_measured(record) == "decode" else None
    decoding = zip(*columns, strict=True) if columns else [(None,) * 4] * len(record.pairs)
    for pair, (ar_s, ar_tokens, sd_s, sd_tokens) in zip(record.pairs, decoding, strict=True):
        values = shared | {
            **{"prompt": pair.prompt_index, "repeat": pair.repeat, "order": pair.order, "group": pair.group},
            **{"ar_decode_s": ar_s, "ar_decode_tokens": ar_tokens, "sd_decode_s": sd_s, "sd_decode_tokens": sd_tokens},
        }
        for name, arm in (("ar", pair.ar), ("sd", pair.sd)):
            values[f"{name}_s"], values[f"{name}_first_token_s"] = arm.seconds, arm.first_token_s
            values[f"{name}_tokens"] = len(arm.token_ids)
        if pair.sd.rounds is not None:
            counts = metrics.count_rounds(pair.sd.rounds)
            values |= {name: getattr(counts, name) for name in ("drafted", "accepted", "emitted", "rounds")}
            values["tested"] = None if cell.rule in metrics.JOINT_RULES else counts.tested
        yield values
