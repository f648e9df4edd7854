"""One suite on one backend: a baseline once, then cells, every measurement journalled as soon as it exists."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec

from bench.analysis.verdict import verdict_of
from bench.measurement import timing, turns
from bench.measurement.baseline import HOTTEST_BASELINE, Baselines
from bench.measurement.cells import check_cell_schedule, unsupported
from bench.measurement.recording import NotMeasured, Recording, Workload, utc_now
from bench.measurement.stopping import reason_to_stop
from bench.measurement.timing import ArmRounds
from bench.protocols import Backend, NativeBaseline
from bench.records import decoding, environment
from bench.records.decoding import DecodeRequest, Scalar
from bench.records.journal import Journal
from bench.records.runs import STEPS, BaselineTriple, Cell, CellRecord, Evidence, RunRecord, TimedArm, TimedPair


class _Enough(BaseException):
    """Ends pytest-benchmark's rounds of a cell; no Exception, which it would take for a failure of the cell."""


class SuiteRun:
    """The measuring side of a suite on one draft and one set of prompts. Suites call `measure` once a cell."""

    def __init__(
        self,
        recording: Recording,
        backend: Backend,
        *,
        workload: Workload,
        score: Callable[[Cell, Sequence[TimedPair]], Evidence] | None,
        baselines: Baselines,
    ) -> None:
        self.recording = recording
        self.suite = recording.suite
        self.backend = backend
        self.score = score
        self.workload = workload
        self.settings = recording.settings
        self.reporter = recording.reporter
        self.baselines = baselines

    @property
    def backend_options(self) -> tuple[tuple[str, str], ...]:
        return self.settings.options_of(self.recording.backend_name)

    @property
    def journal(self) -> Journal:
        """Of the record; opened with the first measurement."""
        return self.recording.journal(self.backend)

    def cell(
        self,
        *,
        temperature: float,
        rule: str,
        num_draft_tokens: int,
        draft_temperature: float | None = None,
        options: Mapping[str, Scalar] | None = None,
    ) -> Cell:
        """The identity of one measurement of this run."""
        settings, workload = self.settings, self.workload
        if draft_temperature is None:
            draft_temperature = settings.draft_temperatures[0]
        if draft_temperature is None:
            draft_temperature = temperature
        return Cell(
            suite=self.suite,
            backend=self.backend.name,
            rule=rule,
            pair=workload.model_pair.name,
            draft=workload.recorded_pair.draft,
            dtype=workload.model_pair.dtype,
            device=settings.device,
            temperature=temperature,
            draft_temperature=draft_temperature,
            num_draft_tokens=num_draft_tokens,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            end_token=settings.end_token,
            prompt_set=workload.prompt_set,
            num_prompts=len(workload.prompt_ids),
            repeats=settings.repeats,
            prompts_hash=workload.prompts_hash,
            chat_template=str(workload.prompt_format["chat_template"]),
            chat_template_hash=str(workload.prompt_format["chat_template_hash"]),
            seed=settings.seed,
            options=tuple(sorted({**dict(self.backend_options), **(options or {})}.items())),
        )

    def request(self, cell: Cell, prompt_index: int) -> DecodeRequest:
        """The speculative request of a cell on one prompt; arms and repeats get their own seeds from `measure`."""
        return DecodeRequest(
            prompt_ids=self.workload.prompt_ids[prompt_index],
            max_new_tokens=cell.max_new_tokens,
            num_draft_tokens=cell.num_draft_tokens,
            temperature=cell.temperature,
            draft_temperature=None if cell.schedule else cell.draft_temperature,
            top_k=cell.top_k,
            top_p=cell.top_p,
            rule=cell.rule,
            # Cells draw independently of each other, so that their tokens can be pooled.
            seed=decoding.derive_seed(cell.seed, *cell.draws),
            eos_token_ids=self.workload.end_token_ids if cell.end_token == "natural" else (),
            schedule=cell.schedule,
            draft_length=cell.draft_length,
        )

    def measure(
        self,
        benchmark: Any,
        *,
        temperature: float,
        rule: str,
        num_draft_tokens: int,
        draft_temperature: float | None = None,
        options: Mapping[str, Scalar] | None = None,
    ) -> CellRecord:
        """Measure one cell through `benchmark.pedantic`; only the pairs that a resumed journal lacks are run.

        Args:   draft_temperature: None for the one that the settings say, which is the decode temperature as a rule;
                options: what the suite varies beyond the rest; of these `concurrency` is how many texts are decoded at once,
                `schedule` the temperature by token (`parse_schedule`), `temperature` being its hottest, and `draft_length`
                "adaptive" where num_draft_tokens is the most that a round drafts

        Raises: NotMeasured: nothing is to be done, and why. An error of the backend is recorded, without numbers,
        and raised.
        """
        _check_enabled(benchmark)
        cell = self.cell(
            temperature=temperature,
            rule=rule,
            num_draft_tokens=num_draft_tokens,
            draft_temperature=draft_temperature,
            options=options,
        )
        check_cell_schedule(cell)
        if reason := unsupported(cell, self.backend):
            self.reporter.step(cell.label, None, pairs=cell.num_prompts * cell.repeats)
            raise NotMeasured(f"{self.backend.name}: {reason}")
        measured = self.journal.measured
        finished = measured.finished.get(cell)
        if finished is not None and finished.error is None:
            self.reporter.step(cell.label, None, pairs=len(finished.pairs))
            raise NotMeasured(f"{cell.label}: measured before the interruption")
        started, pairs = utc_now(), _whole_groups(measured.pairs.get(cell, ()), cell.concurrency)
        self.peak_memory_bytes = 0
        turns.wait_for_others()
        whole = not pairs and not turns.are_taken()
        laps = [time.perf_counter()]
        try:
            self._take_over_baseline(cell)
            self._baseline_rounds(cell, pairs_each=0).run_all()
            laps.append(time.perf_counter())
            warmup_s, settled = self._warm_up(cell)
            laps.append(time.perf_counter())
            throttle = set(environment.throttle_reasons(cell.device))
            stopped = self._measure_pairs(benchmark, cell, pairs, throttle)
            laps.append(time.perf_counter())
            evidence = self.score(cell, pairs) if self.score else None
            laps.append(time.perf_counter())
        except (RuntimeError, ValueError, AssertionError) as error:
            self.journal.finish_cell(CellRecord(cell, started, (), False, (), error=f"{type(error).__name__}: {error}"))
            raise
        wall_s = dict(zip(STEPS, (end - start for start, end in pairwise(laps)), strict=True))
        record = CellRecord(
            cell,
            started,
            warmup_s,
            settled,
            tuple(pairs),
            evidence,
            scoring_s=wall_s["certificate"] if self.score else None,
            peak_memory_bytes=self.peak_memory_bytes or None,
            throttle=tuple(sorted(throttle)),
            wall_s=wall_s if whole else {},
            stopped=stopped,
        )
        self.journal.finish_cell(record)
        measured = self.journal.measured
        so_far = replace(
            self.journal.header, baseline=tuple(measured.baseline), cells=tuple(measured.finished.values())
        )
        benchmark.extra_info["specheat"] = msgspec.to_builtins(alone(record, so_far))
        return record

    def measure_baseline(self, benchmark: Any) -> None:
        """Only the baseline, through `benchmark.pedantic`, which times the AR arm.

        Raises: as `measure`
        """
        _check_enabled(benchmark)
        cell = self.cell(
            temperature=max(self.settings.temperatures),
            rule=self.settings.rules[0],
            num_draft_tokens=self.settings.num_draft_tokens[0],
        )
        rounds = self._baseline_rounds(cell, pairs_each=1)
        if not rounds.orders:
            raise NotMeasured(f"{self.backend.name} baseline: measured before the interruption")
        _run_pedantic(benchmark, rounds, group=f"{self.suite} {cell.pair}")

    def _warm_up(self, cell: Cell) -> tuple[tuple[float, ...], bool]:
        warmup_s, settled = timing.warm_up(self.backend, self.request(cell, 0), concurrency=cell.concurrency)
        self.journal.append_warmup(cell, seconds_per_token=warmup_s, settled=settled)
        return warmup_s, settled

    def _take_over_baseline(self, cell: Cell) -> None:
        """What an earlier suite of this session measured under the same conditions counts for this one."""
        measured = {triple.prompt_index for triple in self.journal.measured.baseline}
        known = self._known_baseline(cell)
        for index, prompt_ids in enumerate(self.workload.prompt_ids[: cell.num_prompts]):
            if prompt_ids in known and index not in measured and self._is_first:
                self.journal.append_baseline(replace(known[prompt_ids], prompt_index=index))

    def _baseline_rounds(self, cell: Cell, *, pairs_each: int) -> ArmRounds[TimedArm]:
        """Once a record: what is left to do of A/A and the engine's own plain decode, on the prompts of its first cells.

        At the hottest temperature of the run up to 1, so that another seed gives another text. `pairs_each` is what one
        round counts in the progress.
        """
        native = isinstance(self.backend, NativeBaseline)
        measured = {triple.prompt_index for triple in self.journal.measured.baseline}
        orders = timing.plan_baseline(cell.num_prompts, seed=cell.seed, native=native)
        wanted = self._is_first and not self.settings.pairs_only
        left = {index: order for index, order in enumerate(orders) if index not in measured and wanted}
        temperature = self._baseline_temperature
        if left:
            timing.warm_up(self.backend, self.request(cell, 0))

        def on_triple(triple: BaselineTriple) -> None:
            self.journal.append_baseline(triple)
            self._known_baseline(cell)[self.workload.prompt_ids[triple.prompt_index]] = triple
            self.reporter.step(f"{self.backend.name} baseline", None, pairs=pairs_each)
            self._pass_turn_on(f"{self.backend.name} baseline")

        return timing.baseline_rounds(
            self.backend,
            tuple(left),
            tuple(left.values()),
            lambda index: replace(
                self.request(cell, index), temperature=temperature, draft_temperature=temperature, schedule=()
            ),
            on_triple=on_triple,
        )

    @property
    def _is_first(self) -> bool:
        """Whether this is the run that measures the record's baseline: no other draft or prompts came before."""
        return self.workload is self.recording.workloads[0] or not self.journal.measured.baseline

    @property
    def _baseline_temperature(self) -> float:
        return min(max(self.settings.temperatures), HOTTEST_BASELINE)

    def _known_baseline(self, cell: Cell) -> dict[tuple[int, ...], BaselineTriple]:
        """By prompt, under all else that an arm without speculation depends on."""
        conditions = (
            *(
                cell.backend,
                self.workload.model_hashes["target"],
                cell.dtype,
                cell.device,
                self.backend_options,
            ),
            *(self._baseline_temperature, cell.top_k, cell.top_p, cell.max_new_tokens, cell.end_token, cell.seed),
        )
        return self.baselines.setdefault(conditions, {})

    def _measure_pairs(self, benchmark: Any, cell: Cell, pairs: list[TimedPair], throttle: set[str]) -> str:
        """Measure what is missing from `pairs`, and add it to them; what throttled meanwhile is added too.

        Returns: what ended it early, if anything did
        """
        started = time.monotonic()
        stopping = self.settings.stopping
        stopped = reason_to_stop(stopping, cell, pairs, elapsed_s=0.0)
        concurrency = cell.concurrency
        self.reporter.step(cell.label, None, pairs=len(pairs) // concurrency)
        done = {(pair.prompt_index, pair.repeat) for pair in pairs}
        plans = timing.plan_pairs(cell.num_prompts, cell.repeats, seed=cell.seed, concurrency=concurrency)
        plans = () if stopped else tuple(plan for plan in plans if plan.texts[0] not in done)

        def on_pairs(together: tuple[TimedPair, ...]) -> None:
            nonlocal stopped
            for pair in together:
                self.journal.append_pair(cell, pair)
            pairs.extend(together)
            throttle.update(environment.throttle_reasons(cell.device))
            self.peak_memory_bytes = max(self.peak_memory_bytes, environment.resident_memory_bytes())
            self.reporter.step(cell.label, _gamma_so_far(pairs))
            self._pass_turn_on(cell.label)
            stopped = reason_to_stop(stopping, cell, pairs, elapsed_s=time.monotonic() - started)
            if stopped:
                raise _Enough

        rounds = timing.pair_rounds(
            self.backend,
            plans,
            lambda index: self.request(cell, index),
            on_pairs=on_pairs,
            instrument_every=self.settings.instrument_every,
        )
        benchmark.extra_info.update(
            backend=cell.backend, rule=cell.rule, temperature=cell.temperature, num_draft_tokens=cell.num_draft_tokens
        )
        if plans:
            with suppress(_Enough):
                _run_pedantic(benchmark, rounds, group=f"{self.suite} {cell.pair}")
        left = cell.num_prompts * cell.repeats - len(pairs) // concurrency
        if stopped and left:
            self.reporter.step(cell.label, None, pairs=left)
        # pytest-benchmark times whole texts; gamma is per token, so the counts it needs travel with its file.
        benchmark.extra_info.update(
            sd_tokens=sum(len(pair.sd.token_ids) for pair in pairs),
            ar_tokens=sum(len(pair.ar.token_ids) for pair in pairs),
            ar_seconds=sum(pair.ar.seconds for pair in pairs),
        )
        return stopped if left else ""

    def _pass_turn_on(self, label: str) -> None:
        """Behind every round."""
        num_triples = len(self.journal.measured.baseline)
        turns.pass_on(turns.Round(label, self.reporter.done, num_triples, self.reporter.total))


def alone(record: CellRecord, run: RunRecord) -> RunRecord:
    """A run of one cell, as pytest-benchmark's file holds it: what `specheat compare` needs, and the verdict by then."""
    verdict = verdict_of(record, run)
    pairs = tuple(replace(pair, forwards=(), replay=None) for pair in record.pairs) if verdict.valid else ()
    error = None if verdict.valid else "; ".join(verdict.reasons)
    return replace(run, cells=(replace(record, pairs=pairs, evidence=None, error=error),))


def _check_enabled(benchmark: Any) -> None:
    """Raises: NotMeasured: pytest-benchmark would call what it should time once, and keep nothing."""
    if getattr(benchmark, "disabled", False):
        raise NotMeasured("pytest-benchmark is disabled; run with --benchmark-only, and without -n")


def _whole_groups(pairs: Sequence[TimedPair], concurrency: int) -> list[TimedPair]:
    """Without the last group, where the run ended in the middle of writing it."""
    groups = Counter((pair.group, pair.repeat // concurrency) for pair in pairs)
    return [
        pair for pair in pairs if pair.group is None or groups[pair.group, pair.repeat // concurrency] == concurrency
    ]


def _run_pedantic(benchmark: Any, rounds: ArmRounds[Any], *, group: str) -> None:
    benchmark.group = group
    benchmark.pedantic(
        rounds.timed, setup=rounds.setup, teardown=rounds.teardown, rounds=len(rounds.orders), iterations=1
    )


def _gamma_so_far(pairs: Sequence[TimedPair]) -> float:
    """Whole calls, no interval: for the progress bar only."""
    ar_s, sd_s = (sum(getattr(pair, arm).seconds for pair in pairs) for arm in ("ar", "sd"))
    ar_tokens, sd_tokens = (sum(len(getattr(pair, arm).token_ids) for pair in pairs) for arm in ("ar", "sd"))
    return (ar_s / ar_tokens) / (sd_s / sd_tokens)
