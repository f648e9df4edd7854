"""The baseline of a record: the AR arm against itself (A/A) and against the engine's own plain decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.measurement import timing
from bench.measurement.recording import Recording, Workload
from bench.measurement.work import triple_work
from bench.protocols import Backend, NativeBaseline
from bench.records.decoding import DecodeRequest
from bench.records.journal import Triple
from bench.records.runs import BaselineTriple, Cell

Baselines = dict[tuple[object, ...], dict[tuple[int, ...], BaselineTriple]]  # conditions -> prompt -> what was measured

Left = dict[int, tuple[tuple[str, ...], DecodeRequest]]  # prompt -> order of the arms, and the request without speculation


@dataclass(frozen=True, slots=True)
class Baseline:
    """Measures the baseline of a record once, on the prompts of its first workload, or takes it from an earlier suite."""

    recording: Recording
    backend: Backend
    workload: Workload
    known: Baselines  # what earlier suites of this session measured, by conditions

    def take_over(self, cell: Cell) -> None:
        """Add to the record what an earlier suite of this session measured under the same conditions."""
        journal, known = self.recording.journal(self.backend), self._known(cell)
        measured = {triple.prompt_index for triple in journal.measured.baseline}
        for index, prompt_ids in enumerate(self.workload.prompt_ids):
            if prompt_ids in known and index not in measured and self._is_first:
                journal.append(Triple(replace(known[prompt_ids], prompt_index=index)))

    def begin(self, cell: Cell, requests: Sequence[DecodeRequest]) -> Left:
        """Warm up, if anything is to be measured, and return the prompts that the record still lacks.

        Args: requests: those of the cell, one for each prompt
        """
        journal, recording = self.recording.journal(self.backend), self.recording
        measured = {triple.prompt_index for triple in journal.measured.baseline}
        wanted = self._is_first and not recording.settings.pairs_only
        native, temperature = isinstance(self.backend, NativeBaseline), self._temperature
        orders = timing.plan_baseline(cell.num_prompts, seed=cell.seed, native=native)
        num_wanted = min(cell.num_prompts, recording.settings.baseline_prompts or cell.num_prompts) if wanted else 0
        left: Left = {}
        for index, order in enumerate(orders[:num_wanted]):
            if index not in measured:
                # The seeds stay those of the cell, although its temperature is replaced.
                hot = replace(requests[index], temperature=temperature, draft_temperature=temperature, schedule=())
                left[index] = order, hot
        recording.meter.skip((num_wanted - len(left)) * triple_work(recording.settings))
        if left:
            _, hot = next(iter(left.values()))
            timing.warm_up(self.backend, hot, native=native, interleave=recording.settings.interleaves)
        return left

    def measure(self, cell: Cell, left: Left, prompt: int, *, pairs_each: int = 0) -> BaselineTriple:
        """Measure one of the prompts that are left. pairs_each: how many pairs the progress counts for it."""
        recording = self.recording
        order, hot = left[prompt]
        interleave = recording.settings.interleaves
        triple = timing.time_triple(self.backend, prompt, order, hot, interleave=interleave, device=cell.device)
        del left[prompt]
        recording.journal(self.backend).append(Triple(triple))
        self._known(cell)[self.workload.prompt_ids[prompt]] = triple
        label = f"{recording.suite} {self.backend.name} baseline"
        recording.meter.also(triple_work(recording.settings))
        recording.meter.step(pairs_each, label=label)
        recording.end_round(self.backend, label)
        return triple

    @property
    def _is_first(self) -> bool:
        """Return whether no run on another draft or other prompts has measured the baseline of this record."""
        first = self.workload is self.recording.workloads[0]
        return first or not self.recording.journal(self.backend).measured.baseline

    @property
    def _temperature(self) -> float:
        return min(max(self.recording.settings.temperatures), 1.0)  # hot, so that another seed gives other tokens

    def _known(self, cell: Cell) -> dict[tuple[int, ...], BaselineTriple]:
        """Return what is known by prompt, under everything else that an arm without speculation depends on."""
        engine = (cell.backend, self.workload.model_hashes["target"], cell.dtype, cell.device)
        options = self.recording.settings.options_of(self.recording.backend_name)
        decoding = (self._temperature, cell.top_k, cell.top_p, cell.max_new_tokens, cell.end_token, cell.seed)
        return self.known.setdefault((*engine, options, *decoding), {})
