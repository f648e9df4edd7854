"""Timed pairs as two pyperf suites, AR and SD, for pyperf's own commands to show.

A benchmark is a cell and has the same name in both suites. A run is one output, its only value the seconds per token that
gamma is made of; pyperf's `loops` is the number of tokens, so that its raw values are the seconds themselves. INVALID cells
are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, newest_rows, scalar_text, split_identity
from bench.records.decoding import Scalar
from bench.records.environment import machine_slug
from bench.records.files import Runs
from bench.reporting.numbers import interval_text
from bench.reporting.tables import valid_rows

if TYPE_CHECKING:
    import pyperf


# Ours -> pyperf's. Others that pyperf collects, such as aslr or cpu_freq, have its names in our records already.
_PYPERF_NAMES = {
    "cpu_model": "cpu_model_name",
    "num_logical_cores": "cpu_count",
    "python": "python_version",
    "harness_commit": "commit_id",
    "harness_dirty": "commit_dirty",
}
_IN_LABEL = {"backend", "pair", "rule", "temperature", "num_draft_tokens", "schedule", "draft_length"}


@dataclass(frozen=True, slots=True)
class Export:
    """The cells that are exported, and one line for each that is not."""

    rows: tuple[Row, ...]
    left_out: tuple[str, ...]


def exportable(runs: Runs) -> Export:
    """Return the newest record of each cell, where it is valid.

    Raises:  ValueError: records of several machines, or no valid cell
    """
    machines = sorted({machine_slug(run.environment) for run in runs.values()})
    if len(machines) > 1:
        raise ValueError(f"expected records of one machine, got {', '.join(machines)}; name one machine's folder")
    newest = newest_rows(runs)
    invalid = [(row.record.cell, row.verdict.reasons) for row in newest if not row.verdict.valid]
    left_out = tuple(f"{cell.suite} {cell.label}: INVALID, {'; '.join(reasons)}" for cell, reasons in invalid)
    if len(left_out) == len(newest):
        raise ValueError(f"expected a valid cell to export, found {', '.join(left_out) or 'no cells'}")
    return Export(valid_rows(newest), left_out)


def benchmark_suite(rows: Sequence[Row], arm: metrics.ArmName) -> pyperf.BenchmarkSuite:
    """Return one arm of every cell."""
    import pyperf

    benchmarks = []
    for row, name, tags in zip(rows, _names(rows), _tags(rows), strict=True):
        shared = _metadata(row) | {"name": name, "unit": "second"} | ({"tags": tags} if tags else {})
        runs = [
            pyperf.Run([seconds / tokens], metadata=shared | own | {"loops": tokens}, collect_metadata=False)
            for seconds, tokens, own in _outputs(row, arm)
        ]
        benchmarks.append(pyperf.Benchmark(runs))
    return pyperf.BenchmarkSuite(benchmarks)


def _outputs(row: Row, arm: metrics.ArmName) -> Iterator[tuple[float, int, dict[str, object]]]:
    """Yield seconds, tokens and metadata of each output. A pair has none if an arm ends at its first token."""
    columns = metrics.time_columns(row.record, metrics.times_measured(row.record))
    assert columns is not None, "a valid cell has a gamma"
    for pair, ar_s, ar_tokens, sd_s, sd_tokens in zip(row.record.pairs, *columns, strict=True):
        if ar_tokens and sd_tokens:
            seconds, tokens, whole = (ar_s, ar_tokens, pair.ar) if arm == "ar" else (sd_s, sd_tokens, pair.sd)
            about = {"prompt": pair.prompt_index, "repeat": pair.repeat, "order": pair.order}
            yield seconds, tokens, {"duration": whole.seconds, **about}


def _metadata(row: Row) -> dict[str, object]:
    """Return host and commit under pyperf's names, then the cell, and its gamma, verdict and certificate."""
    found: dict[str, Scalar] = {
        **{_PYPERF_NAMES.get(name, name): value for name, value in row.run.environment.items()},
        "suite": row.record.cell.suite,
        **identity(row),
        "date": f"{datetime.fromisoformat(row.record.started).astimezone(UTC):%Y-%m-%d %H:%M:%S}",  # pyperf's form
        "record": row.file,
        "gamma": interval_text(metrics.gamma(row.record)),
        "verdict": row.verdict.label,
        "certificate": row.verdict.certificate,
    }
    # pyperf takes neither missing values nor empty ones, nor line breaks
    lines = {name: " ".join(value.split()) if isinstance(value, str) else value for name, value in found.items()}
    return {name: value for name, value in lines.items() if value not in (None, "")}


def _names(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the label of each cell, with whatever else distinguishes it, and a mark where the rule is lossy by design."""
    further = [name for name in split_identity(rows)[0] if name not in _IN_LABEL]
    several_suites = len({row.record.cell.suite for row in rows}) > 1
    for row in rows:
        cell, values = row.record.cell, identity(row)
        parts = [f"{cell.suite}:"] if several_suites else []
        parts += [cell.label, *(f"{name}={scalar_text(name, values.get(name))}" for name in further)]
        yield " ".join([*parts, "LOSSY"] if row.lossy else parts)


def _tags(rows: Sequence[Row]) -> list[list[str]]:
    """Return suite, backend and rule of each row, where there are several: `compare_to` lists and averages each tag."""
    tags = [(row.record.cell.suite, row.record.cell.backend, row.record.cell.rule) for row in rows]
    several = [len(set(values)) > 1 for values in zip(*tags, strict=True)]
    return [[value for value, varies in zip(values, several, strict=True) if varies] for values in tags]
