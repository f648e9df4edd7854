"""One suite on one backend: a baseline once, then cells, every measurement journalled as soon as it exists."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec

from bench.analysis.verdict import verdict_of
from bench.errors import BackendUnavailable, first_line
from bench.measurement import timing, turns
from bench.measurement.baseline import Baseline, Baselines
from bench.measurement.cells import check_cell_schedule, first_cell, request_of, unsupported
from bench.measurement.recording import NotCertified, NotMeasured, Recording, Workload, utc_now
from bench.measurement.stopping import reason_to_stop
from bench.measurement.timing import ArmRounds
from bench.protocols import Backend
from bench.records import machine
from bench.records.decoding import DecodeRequest, DraftLength, Schedule
from bench.records.journal import CellEnd, Journal, Pair, Warmup
from bench.records.runs import STEPS, Cell, CellRecord, Evidence, RunRecord, TimedPair

Score = Callable[[Cell, Sequence[TimedPair]], Evidence]
SCORING_ERRORS = (RuntimeError, ValueError, AssertionError, MemoryError, ImportError, OSError, BackendUnavailable)


class _Enough(BaseException):
    """Ends pytest-benchmark's rounds of a cell. An Exception would count as a failure of the cell there."""


class SuiteRun:
    """Measures a suite on one draft and one set of prompts. Suites call `measure` once per cell."""

    def __init__(
        self, recording: Recording, backend: Backend, *, workload: Workload, score: Score | None, baselines: Baselines
    ) -> None:
        self.recording = recording
        self.settings = recording.settings
        self.meter = recording.meter
        self.backend = backend
        self.workload = workload
        self.score = score
        self.baseline = Baseline(recording, backend, workload, baselines)
        options = self.settings.options_of(recording.backend_name)
        self.cell = first_cell(recording.suite, backend.name, self.settings, workload, options=options)

    @property
    def journal(self) -> Journal:
        return self.recording.journal(self.backend)

    def measure(
        self,
        benchmark: Any,
        *,
        temperature: float,  # with a schedule, its hottest
        rule: str,
        num_draft_tokens: int,  # with an adaptive draft length, the most that a round drafts
        draft_temperature: float | None = None,  # None: the one of the settings, by default the decode temperature
        concurrency: int = 1,  # generations decoded at once
        draft_length: DraftLength = "constant",
        schedule: Schedule = (),
    ) -> CellRecord:
        """Measure one cell through `benchmark.pedantic`; only the pairs that a resumed journal lacks are run.

        An error of the backend is recorded, without numbers, and raised. Raise NotMeasured if nothing is to be done, and
        NotCertified if the cell is measured and stored but could not be scored.
        """
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
        self._check_wanted(cell)
        started = utc_now()
        try:
            record = self._measured(benchmark, cell, started)
        except (RuntimeError, ValueError, AssertionError) as error:
            failed = CellRecord(cell, started, (), False, (), error=f"{type(error).__name__}: {error}")
            self.journal.append(CellEnd(failed))
            raise
        self.journal.append(CellEnd(record))
        benchmark.extra_info["specheat"] = msgspec.to_builtins(alone(record, self.recording.so_far(self.backend)))
        if record.scoring_error:
            raise NotCertified(f"{cell.label} is measured, not certified: {record.scoring_error}")
        return record

    def measure_baseline(self, benchmark: Any) -> None:
        """Measure only the baseline, through `benchmark.pedantic`, which times the AR arm. Raise NotMeasured as `measure`."""
        _check_enabled(benchmark)
        cell = self._cell_at(max(self.settings.temperatures), None)
        rounds = self.baseline.rounds(cell, self._requests(cell), pairs_each=1)
        if not rounds.orders:
            raise NotMeasured(f"{self.backend.name} baseline: measured before the interruption")
        self._run_pedantic(benchmark, rounds)

    def _cell_at(self, temperature: float, draft_temperature: float | None) -> Cell:
        if draft_temperature is None:
            draft_temperature = self.settings.draft_temperatures[0]
        draft_temperature = temperature if draft_temperature is None else draft_temperature
        return replace(self.cell, temperature=temperature, draft_temperature=draft_temperature)

    def _requests(self, cell: Cell) -> tuple[DecodeRequest, ...]:
        ends = self.workload.end_token_ids
        return tuple(request_of(cell, prompt_ids, ends) for prompt_ids in self.workload.prompt_ids)

    def _check_wanted(self, cell: Cell) -> None:
        """Raise NotMeasured where the engine cannot decode the cell, or a resumed run had measured it."""
        if reason := unsupported(cell, self.backend):
            self.meter.step(cell.num_prompts * cell.repeats, label=cell.label)
            raise NotMeasured(f"{self.backend.name}: {reason}")
        finished = self.journal.measured.finished.get(cell)
        if finished is not None and finished.error is None:
            self.meter.step(len(finished.pairs), label=cell.label)
            raise NotMeasured(f"{cell.label}: measured before the interruption")

    def _measured(self, benchmark: Any, cell: Cell, started: str) -> CellRecord:
        """Go through the steps of a cell, and note the wall-clock seconds of each."""
        requests = self._requests(cell)
        pairs = whole_groups(self.journal.measured.pairs.get(cell, ()), cell.concurrency)
        self.peak_memory_bytes = 0
        turns.wait_for_others()
        whole = not pairs and not turns.are_taken()  # else the wall-clock seconds are not those of this cell
        laps = [time.perf_counter()]
        self.baseline.take_over(cell)
        self.baseline.rounds(cell, requests, pairs_each=0).run_all()
        laps.append(time.perf_counter())
        warmup_s, settled = timing.warm_up(self.backend, requests[0], concurrency=cell.concurrency)
        self.journal.append(Warmup(cell, warmup_s, settled))
        laps.append(time.perf_counter())
        throttle = set(machine.throttle_reasons(cell.device))
        stopped = self._measure_pairs(benchmark, cell, requests, pairs, throttle)
        laps.append(time.perf_counter())
        record = CellRecord(
            *(cell, started, warmup_s, settled, tuple(pairs)),
            peak_memory_bytes=self.peak_memory_bytes or None,
            throttle=tuple(sorted(throttle)),
            stopped=stopped,
        )
        record = self._scored(record)
        laps.append(time.perf_counter())
        wall_s = dict(zip(STEPS, (end - start for start, end in pairwise(laps)), strict=True))
        return replace(record, scoring_s=wall_s["certificate"] if self.score else None, wall_s=wall_s if whole else {})

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

    def _measure_pairs(
        self, benchmark: Any, cell: Cell, requests: Sequence[DecodeRequest], pairs: list[TimedPair], throttle: set[str]
    ) -> str:
        """Add missing pairs to `pairs` and reasons to `throttle`. Return why the cell ended early, else an empty string."""
        started, concurrency = time.monotonic(), cell.concurrency
        stopped = reason_to_stop(self.settings.stopping, cell, pairs, elapsed_s=0.0)
        self.meter.step(len(pairs) // concurrency, label=cell.label)
        done = {(pair.prompt_index, pair.repeat) for pair in pairs}
        plans = timing.plan_pairs(cell.num_prompts, cell.repeats, seed=cell.seed, concurrency=concurrency)
        plans = () if stopped else tuple(plan for plan in plans if plan.texts[0] not in done)

        def on_pairs(together: tuple[TimedPair, ...]) -> None:
            nonlocal stopped
            for pair in together:
                self.journal.append(Pair(cell, pair))
            pairs.extend(together)
            throttle.update(machine.throttle_reasons(cell.device))
            self.peak_memory_bytes = max(self.peak_memory_bytes, machine.resident_memory_bytes())
            self.meter.step(1, f"gamma {_gamma_so_far(pairs):.2f}", label=cell.label)
            self.recording.end_round(self.backend, cell.label)
            stopped = reason_to_stop(self.settings.stopping, cell, pairs, elapsed_s=time.monotonic() - started)
            if stopped:
                raise _Enough

        every = self.settings.instrument_every
        rounds = timing.pair_rounds(self.backend, plans, requests, on_pairs=on_pairs, instrument_every=every)
        benchmark.extra_info.update(
            backend=cell.backend, rule=cell.rule, temperature=cell.temperature, num_draft_tokens=cell.num_draft_tokens
        )
        if plans:
            with suppress(_Enough):
                self._run_pedantic(benchmark, rounds)
        left = cell.num_prompts * cell.repeats - len(pairs) // concurrency
        if stopped and left:
            self.meter.step(left, label=cell.label)
        # pytest-benchmark times whole calls; gamma is per token, so its file needs the token counts.
        benchmark.extra_info.update(
            sd_tokens=sum(len(pair.sd.token_ids) for pair in pairs),
            ar_tokens=sum(len(pair.ar.token_ids) for pair in pairs),
            ar_seconds=sum(pair.ar.seconds for pair in pairs),
        )
        return stopped if left else ""

    def _run_pedantic(self, benchmark: Any, rounds: ArmRounds[Any]) -> None:
        benchmark.group = f"{self.cell.suite} {self.cell.pair}"
        benchmark.pedantic(rounds.timed, setup=rounds.setup, teardown=rounds.teardown, rounds=len(rounds.orders), iterations=1)


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


def _gamma_so_far(pairs: Sequence[TimedPair]) -> float:
    """Return the ratio of totals over whole calls, without an interval: for the progress bar only."""
    ar_s, sd_s = (sum(getattr(pair, arm).seconds for pair in pairs) for arm in ("ar", "sd"))
    ar_tokens, sd_tokens = (sum(len(getattr(pair, arm).token_ids) for pair in pairs) for arm in ("ar", "sd"))
    return (ar_s / ar_tokens) / (sd_s / sd_tokens)
