"""The table of the suite `baseline_strength`: the AR arm against itself and against the engine's own plain decode."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.analysis import metrics
from bench.analysis.rows import oldest_first
from bench.records.files import Runs
from bench.records.runs import RunRecord, TimedArm
from bench.reporting.captions import ONE_LAUNCH, facts_of_runs, title
from bench.reporting.numbers import interval_text, percent_text, point_text
from bench.reporting.table import MISSING, Table, table_of
from bench.statistics import intervals
from bench.statistics.intervals import Interval

_OWN = "engine's own"


def baseline_table(runs: Runs) -> Table:
    """Return the table of runs that have no cells."""
    facts, records = facts_of_runs(runs)
    times = ("AR\nms/token", "AR'\nms/token", f"{_OWN}\nms/token", f"AR tokens/s /\n{_OWN} tokens/s")
    headers = ("pair", *times, "A/A\nfloor", "prompts", "backend")
    caption = {
        "AR, AR'": "the autoregressive arm twice, with other seeds",
        _OWN: "its plain decode, on the same prompts",
        "intervals": ONE_LAUNCH,
        **{name: text for name, text in facts.items() if name not in ("A/A floor", "AR arm")},
    }
    return table_of(title(next(iter(runs.values()))), headers, map(_texts, runs.values()), caption, records=records)


def newest_baselines(runs: Runs) -> Runs:
    """Return the newest of the runs without cells, for each backend and pair."""
    without_cells = [(file, run) for file, run in oldest_first(runs) if run.baseline and not run.cells]
    newest = {(_backend_of(run), run.model_pair): (file, run) for file, run in without_cells}  # a later run replaces older ones
    return dict(sorted(newest.values()))


def _texts(run: RunRecord) -> tuple[str, ...]:
    arms = ([getattr(triple, name) for triple in run.baseline] for name in ("ar", "ar_again", "native"))
    return (
        run.model_pair.name,
        *(point_text(_seconds_per_token(run, of_prompts), scale=1000) for of_prompts in arms),
        interval_text(_inverse(metrics.native_ratio(run))),
        percent_text(metrics.aa_floor(run)),
        str(len({triple.prompt_index for triple in run.baseline})),
        _backend_of(run),
    )


def _inverse(ratio: Interval | None) -> Interval | None:
    """Return a ratio of speeds from one of seconds."""
    if ratio is None:
        return None
    high = 1 / ratio.low if ratio.low else math.inf
    return Interval(1 / ratio.estimate, 1 / ratio.high, high, ratio.num_clusters, ratio.confidence)


def _seconds_per_token(run: RunRecord, arms: Sequence[TimedArm | None]) -> Interval | None:
    """Return decode seconds per token of one arm; of whole calls where an engine does not report the first token."""
    timed = [(arm, triple.prompt_index) for arm, triple in zip(arms, run.baseline, strict=True) if arm is not None]
    times: metrics.Times = "decode" if all(arm.first_token_s is not None for arm, _ in timed) else "end_to_end"
    spent = [(*metrics.spent(arm, times), prompt) for arm, prompt in timed]
    if len(timed) < len(arms) or not any(tokens for _, tokens, _ in spent):
        return None
    return intervals.mean_ratio(*zip(*spent, strict=True))


def _backend_of(run: RunRecord) -> str:
    return str(run.backend_settings.get("backend", MISSING))
