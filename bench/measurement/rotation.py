"""Measures the cells of a suite together: for each prompt one pair of every cell, in a random order.

If the cells were measured one after the other, by temperature, a drift of the machine would look like an effect of temperature.
The seed decides the order, so all sides of `specheat across` have the same one. Every pair stores its place in it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from bench.analysis import metrics
from bench.measurement import timing, turns
from bench.measurement.baseline import Baseline, Left
from bench.measurement.recording import Recording, utc_now
from bench.measurement.stopping import reason_to_stop
from bench.measurement.timing import PairPlan
from bench.protocols import Backend
from bench.records import machine
from bench.records.decoding import DecodeRequest, derive_seed
from bench.records.journal import CellEnd, Journal, Pair, Warmup
from bench.records.runs import STEPS, Cell, CellRecord, TimedPair
from bench.records.storage import StorageError

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class CellRun:
    """One cell while it is measured."""

    cell: Cell
    requests: Sequence[DecodeRequest]  # one for each prompt
    pairs: list[TimedPair]  # those of an interrupted run at first
    ended: Exception | None = None  # why no more is measured: NotMeasured, or an error of the engine
    stopped: str = ""  # why it has enough pairs
    is_resumed: bool = False
    started: str = field(default_factory=utc_now)
    warmup_s: tuple[float, ...] = ()
    warmup_settled: bool = False
    peak_memory_bytes: int = 0
    wall_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    plans: tuple[PairPlan, ...] = field(init=False)

    def __post_init__(self) -> None:
        cell = self.cell
        self.plans = timing.plan_pairs(cell.num_prompts, cell.repeats, seed=cell.seed, concurrency=cell.concurrency)

    def lacks(self, plan: PairPlan) -> bool:
        return not any((pair.prompt_index, pair.repeat) == plan.texts[0] for pair in self.pairs)

    @property
    def is_whole(self) -> bool:
        return not any(map(self.lacks, self.plans))

    @property
    def shape(self) -> tuple[str, int]:
        """Return for what an engine may have to be loaded."""
        return self.cell.rule, self.cell.num_draft_tokens


@dataclass(slots=True)
class Rotation:
    """The cells of one backend and workload that are measured together, those that need no measurement included."""

    recording: Recording
    backend: Backend
    baseline: Baseline
    runs: Sequence[CellRun]
    passed_over: int = 0  # visits without a measurement that the progress does not show yet
    next_visit: int = field(init=False)
    baseline_run: CellRun = field(init=False)
    baseline_left: Left = field(init=False)  # of its prompts

    def measure(self) -> None:
        """Measure what is left of every cell. An error of the engine ends its cell, and the others go on."""
        measured = self._journal.measured
        known = (*measured.pairs.values(), *(record.pairs for record in measured.finished.values()))
        self.next_visit = 1 + max((pair.visit for pairs in known for pair in pairs if pair.visit is not None), default=-1)
        with timing.frozen_garbage():
            self._begin_baseline()
            for block in self._blocks():
                for run in block:
                    self._warm_up(run)
                for index in range(len(block[0].plans)):  # all cells of a suite have the same prompts and repeats
                    self._measure_baseline(block[0].plans[index].texts[0][0])
                    lots = {run: visit_lot(run.cell, index) for run in block}
                    for run in sorted(block, key=lots.__getitem__):
                        self._visit(run, run.plans[index])
        self._show_passed_over()

    def _show_passed_over(self) -> None:
        if self.passed_over:
            self.recording.meter.step(self.passed_over)
            self.passed_over = 0

    @property
    def _journal(self) -> Journal:
        return self.recording.journal(self.backend)

    def _begin_baseline(self) -> None:
        """Find the first cell on which the engine does not fail, and with its requests what is left of the baseline."""
        self.baseline_left = {}
        for run in self.runs:
            if run.ended is None:
                turns.wait_for_others()
                self.baseline.take_over(run.cell)
                left = self._timed(run, "baseline", partial(self.baseline.begin, run.cell, run.requests))
                if left is not None:
                    self.baseline_run, self.baseline_left = run, left
                    return

    def _measure_baseline(self, prompt: int) -> None:
        """Measure the baseline on a prompt beside the cells, unless that is done. If the engine fails, the next cell tries."""
        if prompt in self.baseline_left:  # all sides of `across` are to be equally far now
            self._show_passed_over()
        while prompt in self.baseline_left:
            run = self.baseline_run
            if self._timed(run, "baseline", partial(self.baseline.measure, run.cell, self.baseline_left, prompt)) is None:
                self._begin_baseline()

    def _blocks(self) -> Iterator[list[CellRun]]:
        """Yield the cells that take turns: all, or those whose rules and draft lengths the engine can hold at once."""
        shapes = sorted({run.shape for run in self.runs}, key=lambda shape: derive_seed(self.runs[0].cell.seed, *shape))
        size = self.backend.capabilities.num_resident or len(shapes)
        for first in range(0, len(shapes), size):
            yield [run for run in self.runs if run.shape in shapes[first : first + size]]

    def _warm_up(self, run: CellRun) -> None:
        if run.ended is not None:
            return
        interleave = self.recording.settings.interleaves
        warm_up = partial(
            timing.warm_up, self.backend, run.requests[0], concurrency=run.cell.concurrency, interleave=interleave
        )
        if (done := self._timed(run, "warm-up", warm_up)) is not None:
            run.warmup_s, run.warmup_settled = done
            self._journal.append(Warmup(run.cell, *done))

    def _visit(self, run: CellRun, plan: PairPlan) -> None:
        """Measure one round of a cell, unless that is done or the cell has ended."""
        recording, meter, cell = self.recording, self.recording.meter, run.cell
        pairs: Sequence[TimedPair] | None = None
        if run.ended is None and not run.stopped and run.lacks(plan):
            if self.passed_over or meter.first is None:
                meter.step(self.passed_over, _gamma_so_far(run), label=f"{recording.suite} {cell.label}")
                self.passed_over = 0
            time_pair = partial(
                timing.time_pair,
                *(self.backend, plan, run.requests),
                instrument_every=recording.settings.instrument_every,
                interleave=recording.settings.interleaves,
                device=cell.device,
            )
            pairs = self._timed(run, "pairs", time_pair)
        if pairs is None:
            self.passed_over += 1
            return
        pairs = [replace(pair, visit=self.next_visit) for pair in pairs]
        self.next_visit += 1
        for pair in pairs:
            self._journal.append(Pair(cell, pair))
        run.pairs += pairs
        run.peak_memory_bytes = max(run.peak_memory_bytes, machine.resident_memory_bytes())
        meter.step(1, _gamma_so_far(run), label=f"{recording.suite} {cell.label}")
        recording.end_round(self.backend, cell.label)
        run.stopped = reason_to_stop(recording.settings.stopping, cell, run.pairs, elapsed_s=run.wall_s["pairs"])

    def _timed(self, run: CellRun, step: str, call: Callable[[], T]) -> T | None:
        """Call the engine, and add the seconds to this step of the cell; None: it failed, which ends the cell."""
        started = time.perf_counter()
        try:
            return call()
        except StorageError:
            raise
        except Exception as error:  # whatever an engine raises is about this cell only
            traceback.clear_frames(error.__traceback__)  # else it would keep the engine's tensors in memory
            run.ended = error
            failed = CellRecord(run.cell, run.started, (), False, (), error=f"{type(error).__name__}: {error}")
            self._journal.append(CellEnd(failed))
            return None
        finally:
            run.wall_s[step] += time.perf_counter() - started


def visit_lot(cell: Cell, index: int) -> int:
    """Return a random number by which the cells of a visit are sorted. It depends on no other cell and no earlier visit.

    So a resumed run, which lacks some of the cells, continues the same order.
    """
    return derive_seed(cell.seed, "visit", index, *cell.draws)


def _gamma_so_far(run: CellRun) -> str:
    gamma = metrics.gamma(CellRecord(run.cell, run.started, (), True, tuple(run.pairs)))
    if gamma is None or gamma.num_clusters < 2:  # one prompt has no interval
        return ""
    return f"gamma {gamma.estimate:.2f} [{gamma.low:.2f}, {gamma.high:.2f}]"
