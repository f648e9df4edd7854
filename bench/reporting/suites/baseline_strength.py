"""TODO: purpose."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.analysis import metrics
from bench.records.decoding import ModelPair
from bench.records.files import Runs
from bench.records.runs import RunRecord, TimedArm
from bench.reporting.captions import facts_of_run, title
from bench.reporting.numbers import interval_text, percent_text, point_text
from bench.reporting.table import MISSING, Entry, Table
from bench.statistics import intervals
from bench.statistics.intervals import RatioInterval


def baseline_table(runs: Runs) -> Table:
    """Runs that have no cells: the autoregressive arm against itself and against the engine's own plain decode."""
    facts, records = facts_of_run(runs)
    own = "engine's own"
    times = ("AR\nms/token", "AR'\nms/token", f"{own}\nms/token", f"AR tokens/s /\n{own} tokens/s")
    headers = ("pair", *times, "A/A\nfloor", "prompts", "backend")
    facts = {
        "AR, AR'": "the autoregressive arm twice, with other seeds",
        "engine's own": "its plain decode, on the same prompts",
        "intervals": "95 % over prompts",
        **{name: text for name, text in facts.items() if name not in ("A/A floor", "AR arm")},
    }
    body = tuple(tuple(map(Entry, _baseline_texts(run))) for run in runs.values())
    return Table(title(next(iter(runs.values()))), headers, body, (), facts, records)


def newest_baselines(runs: Runs) -> Runs:
    """Of the runs without cells, the newest of each backend and pair."""
    newest: dict[tuple[str, ModelPair], tuple[str, RunRecord]] = {}
    for file, run in sorted(runs.items(), key=lambda item: (item[1].created, item[0])):
        if run.baseline and not run.cells:
            newest[_backend_of(run), run.model_pair] = file, run
    return dict(sorted(newest.values()))


def _baseline_texts(run: RunRecord) -> tuple[str, ...]:
    ratio = metrics.native_ratio(run)
    own_tokens_per_s = ratio and RatioInterval(
        1 / ratio.estimate,
        1 / ratio.high,
        1 / ratio.low if ratio.low else math.inf,
        ratio.num_clusters,
        ratio.confidence,
    )
    arms = ([getattr(triple, name) for triple in run.baseline] for name in ("ar", "ar_again", "native"))
    return (
        run.model_pair.name,
        *(point_text(_seconds_per_token(run, of_prompts), scale=1000) for of_prompts in arms),
        interval_text(own_tokens_per_s),
        percent_text(metrics.aa_floor(run)),
        str(len({triple.prompt_index for triple in run.baseline})),
        _backend_of(run),
    )


def _seconds_per_token(run: RunRecord, arms: Sequence[TimedArm | None]) -> RatioInterval | None:
    """Decode seconds per token of one arm of the baseline; whole calls where an engine cannot tell the first token."""
    timed = [arm for arm in arms if arm is not None]
    after_first = all(arm.first_token_s is not None for arm in timed)
    tokens = [len(arm.token_ids) - after_first for arm in timed]
    if len(timed) < len(arms) or not any(tokens):
        return None
    spent = [arm.seconds - (arm.first_token_s or 0.0) if after_first else arm.seconds for arm in timed]
    seconds = [s if n else 0.0 for s, n in zip(spent, tokens, strict=True)]
    return intervals.mean_ratio(seconds, tokens, [triple.prompt_index for triple in run.baseline])


def _backend_of(run: RunRecord) -> str:
    return str(run.backend_settings.get("backend", MISSING))
