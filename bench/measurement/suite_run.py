"""One suite on one backend: a baseline once, then cells, every measurement journalled as soon as it exists."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from bench.analysis.verdict import verdict_of
from bench.errors import BackendUnavailable, first_line
from bench.measurement import recorded_timer, timing, turns
from bench.measurement.baseline import Baseline, Baselines
from bench.measurement.cells import check_cell_schedule, first_cell, request_of, unsupported
from bench.measurement.recording import NotCertified, NotMeasured, Recording, Workload
from bench.measurement.rotation import CellRun, Rotation
from bench.measurement.stopping import reason_to_stop
from bench.measurement.work import SCORING_PER_PAIR
from bench.options.settings import Stopping
from bench.protocols import Backend
from bench.records.decoding import DecodeRequest, DraftLength, Schedule
from bench.records.journal import CellEnd, Journal
from bench.records.runs import Cell, CellRecord, Evidence, RunRecord, TimedPair

Score = Callable[[Cell, Sequence[TimedPair]], Evidence]
SCORING_ERRORS = (RuntimeError, ValueError, AssertionError, MemoryError, ImportError, OSError, BackendUnavailable)


class Declared(BaseException):
    """Ends a test that only declares its cell. An Exception might be caught by the test."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell


class SuiteRun:
    """Measures a suite on one draft and one set of prompts. Suites call `measure` once per cell.

    The first call measures its cell together with `others`, and later calls return what was measured then.
    """

    def __init__(
        self,
        recording: Recording,
        backend: Backend,
        *,
        workload: Workload,
        score: Score | None,
        baselines: Baselines,
        others: Callable[[SuiteRun], Iterable[Cell]] = lambda run: (),  # the cells that other tests will measure
    ) -> None:
        self.recording = recording
        # All sides of `across` measure the same pairs, so none of them ends a cell early.
        recording.settings = replace(recording.settings, stopping=Stopping()) if turns.are_taken() else recording.settings
        self.settings = recording.settings
        self.meter = recording.meter
        self.backend = backend
        self.workload = workload
        self.score = score
        self.others = others
        self.runs: dict[Cell, CellRun] = {}
        self.baseline = Baseline(recording, backend, workload, baselines)
        options = self.settings.options_of(recording.backend_name)
        self.cell = first_cell(recording.suite, backend.name, self.settings, workload, options=options)

    @property
    def journal(self) -> Journal:
        return self.recording.journal(self.backend)

    def measure(
        self,
        benchmark: Any,  # None: only declare the cell, by raising `Declared`
        *,
        temperature: float,  # with a schedule, its hottest
        rule: str,
        num_draft_tokens: int,  # with an adaptive draft length, the most that a round drafts
        draft_temperature: float | None = None,  # None: the one of the settings, by default the decode temperature
        concurrency: int = 1,  # generations decoded at once
        draft_length: DraftLength = "constant",
        schedule: Schedule = (),
    ) -> CellRecord:
        """Measure one cell, unless that is done, and pass its seconds to pytest-benchmark.

        An error of the backend is recorded, without numbers, and raised. Raise NotMeasured if nothing is to be done, and
        NotCertified if the cell is measured and stored but could not be scored.
        """
        if benchmark is not None:
            _check_enabled(benchmark)
        cell = replace(
            self._cell_at(temperature, draft_temperature),
            rule=rule,
            num_draft_tokens=num_draft_tokens,
            concurrency=concurrency,
            draft_length=draft_length,
            schedule=schedule,
        )
        check_cell_schedule(cell)
        if benchmark is None:
            raise Declared(cell)
        if cell not in self.runs:
            self._measure_together(cell)
        run = self.runs[cell]
        if run.ended is not None:
            raise run.ended
        try:
            record = self._record_of(run)
        except (RuntimeError, ValueError, AssertionError) as error:
            failed = CellRecord(cell, run.started, (), False, (), error=f"{type(error).__name__}: {error}")
            self.journal.append(CellEnd(failed))
            raise
        self.journal.append(CellEnd(record))
        run.ended = NotMeasured(f"{cell.label}: measured by another test")
        self._report(benchmark, record)
        if record.scoring_error:
            raise NotCertified(f"{cell.label} is measured, not certified: {record.scoring_error}")
        return record

    def measure_pilot(self) -> None:
        """Measure the coldest and the hottest cell for half a minute each, for the plan of a run."""
        settings = self.settings
        kind = {"rule": settings.rules[0], "num_draft_tokens": settings.num_draft_tokens[0]}
        ends = dict.fromkeys((min(settings.temperatures), max(settings.temperatures)))
        runs = [self._run_of(replace(self._cell_at(each, None), **kind)) for each in ends]  # type: ignore[arg-type]
        Rotation(self.recording, self.backend, self.baseline, runs).measure()
        for run in runs:
            if run.ended is not None:
                raise run.ended
            self.journal.append(CellEnd(self._record_of(run)))

    def measure_baseline(self, benchmark: Any) -> None:
        """Measure only the baseline, and pass the seconds of AR to pytest-benchmark. Raise NotMeasured as `measure`."""
        _check_enabled(benchmark)
        cell = self._cell_at(max(self.settings.temperatures), None)
        with timing.frozen_garbage():
            left = self.baseline.begin(cell, self._requests(cell))
            triples = [self.baseline.measure(cell, left, prompt, pairs_each=1) for prompt in tuple(left)]
        if not triples:
            raise NotMeasured(f"{self.backend.name} baseline: measured before the interruption")
        self._repeat(benchmark, [triple.ar.seconds for triple in triples])

    def _cell_at(self, temperature: float, draft_temperature: float | None) -> Cell:
        if draft_temperature is None:
            draft_temperature = self.settings.draft_temperatures[0]
        draft_temperature = temperature if draft_temperature is None else draft_temperature
        return replace(self.cell, temperature=temperature, draft_temperature=draft_temperature)

    def _requests(self, cell: Cell) -> tuple[DecodeRequest, ...]:
        ends = self.workload.end_token_ids
        return tuple(request_of(cell, prompt_ids, ends) for prompt_ids in self.workload.prompt_ids)

    def _measure_together(self, cell: Cell) -> None:
        """Measure this cell and all others that were not measured yet."""
        cells = dict.fromkeys((cell, *self.others(self)))
        runs = {each: self._run_of(each) for each in cells if each not in self.runs}
        Rotation(self.recording, self.backend, self.baseline, tuple(runs.values())).measure()
        self.runs |= runs

    def _run_of(self, cell: Cell) -> CellRun:
        """Return what is known of a cell before it is measured."""
        ended: NotMeasured | None = None
        finished = self.journal.measured.finished.get(cell)
        if reason := unsupported(cell, self.backend):
            ended = NotMeasured(f"{self.backend.name}: {reason}")
        elif finished is not None and finished.error is None:
            ended = NotMeasured(f"{cell.label}: measured before the interruption")
        pairs = whole_groups(self.journal.measured.pairs.get(cell, ()), cell.concurrency)
        stopped = "" if ended else reason_to_stop(self.settings.stopping, cell, pairs, elapsed_s=0.0)
        return CellRun(cell, self._requests(cell), pairs, ended, stopped, is_resumed=bool(pairs))

    def _record_of(self, run: CellRun) -> CellRecord:
        """Return the record of a measured cell, with the evidence for its certificate."""
        started = time.perf_counter()
        record = self._scored(
            CellRecord(
                *(run.cell, run.started, run.warmup_s, run.warmup_settled, tuple(run.pairs)),
                peak_memory_bytes=run.peak_memory_bytes or None,
                stopped="" if run.is_whole else run.stopped,
            )
        )
        run.wall_s["certificate"] = time.perf_counter() - started
        if self.score:
            label = f"{self.recording.suite} {run.cell.label} certificate"
            self.meter.also(SCORING_PER_PAIR * len(run.pairs), label=label)
        whole = not run.is_resumed and not turns.are_taken()  # else the wall-clock seconds are not those of this cell
        scoring_s = run.wall_s["certificate"] if self.score else None
        return replace(record, scoring_s=scoring_s, wall_s=run.wall_s if whole else {})

    def _scored(self, record: CellRecord) -> CellRecord:
        """Return the record with its evidence, or with the reason why there is none."""
        if self.score is None:
            return record
        # Stored before: whatever ends the scoring, also a signal that kills this process, the timed pairs are kept.
        self.journal.append(CellEnd(replace(record, scoring_error="the run ended while its tokens were scored")))
        try:
            return replace(record, evidence=self.score(record.cell, record.pairs))
        except SCORING_ERRORS as error:
            return replace(record, scoring_error=f"{type(error).__name__}: {first_line(error)}")

    def _report(self, benchmark: Any, record: CellRecord) -> None:
        """Pass the seconds of SD to pytest-benchmark, one round for each call. Its file also needs the token counts."""
        cell, pairs = record.cell, record.pairs
        benchmark.extra_info.update(
            backend=cell.backend,
            rule=cell.rule,
            temperature=cell.temperature,
            num_draft_tokens=cell.num_draft_tokens,
            sd_tokens=sum(len(pair.sd.token_ids) for pair in pairs),
            ar_tokens=sum(len(pair.ar.token_ids) for pair in pairs),
            ar_seconds=sum(pair.ar.seconds for pair in pairs),
            specheat=msgspec.to_builtins(alone(record, self.recording.so_far(self.backend))),
        )
        together = (pairs[first : first + cell.concurrency] for first in range(0, len(pairs), cell.concurrency))
        self._repeat(benchmark, [max(pair.sd.seconds for pair in batch) for batch in together])

    def _repeat(self, benchmark: Any, seconds: Sequence[float]) -> None:
        benchmark.group = f"{self.cell.suite} {self.cell.pair}"
        recorded_timer.repeat(benchmark, seconds)


def alone(record: CellRecord, run: RunRecord) -> RunRecord:
    """Return a run of one cell for pytest-benchmark's file: what `specheat compare` needs, with the verdict so far."""
    verdict = verdict_of(record, run)
    pairs = tuple(replace(pair, forwards=(), replay=None) for pair in record.pairs) if verdict.valid else ()
    error = None if verdict.valid else "; ".join(verdict.reasons)
    return replace(run, cells=(replace(record, pairs=pairs, evidence=None, error=error),))


def _check_enabled(benchmark: Any) -> None:
    """Raise NotMeasured where pytest-benchmark would call the timed function only once, and keep nothing."""
    if getattr(benchmark, "disabled", False):
        raise NotMeasured("pytest-benchmark is disabled; run with --benchmark-only, and without -n")


def whole_groups(pairs: Sequence[TimedPair], concurrency: int) -> list[TimedPair]:
    """Return the pairs without an incomplete group, which an interruption in the middle of writing leaves."""
    sizes = Counter((pair.group, pair.repeat // concurrency) for pair in pairs)
    return [pair for pair in pairs if pair.group is None or sizes[pair.group, pair.repeat // concurrency] == concurrency]
