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

    def measure(self, cell: Cell, requests: Sequence[DecodeRequest], *, pairs_each: int) -> tuple[BaselineTriple, ...]:
        """Measure the prompts that the record still lacks, after a warm-up if there are any, and return what was measured.

        Args: requests: those of the cell, one for each prompt; pairs_each: how many pairs the progress counts for one prompt
        """
        journal, recording = self.recording.journal(self.backend), self.recording
        measured = {triple.prompt_index for triple in journal.measured.baseline}
        wanted = self._is_first and not recording.settings.pairs_only
        native, interleave = isinstance(self.backend, NativeBaseline), recording.settings.interleaves
        orders = timing.plan_baseline(cell.num_prompts, seed=cell.seed, native=native)
        num_wanted = min(cell.num_prompts, recording.settings.baseline_prompts or cell.num_prompts) if wanted else 0
        left = {index: order for index, order in enumerate(orders[:num_wanted]) if index not in measured}
        # The seeds stay those of the cell, although its temperature is replaced.
        temperature = self._temperature
        hot = {
            index: replace(requests[index], temperature=temperature, draft_temperature=temperature, schedule=())
            for index in left
        }
        if hot:
            timing.warm_up(self.backend, next(iter(hot.values())), native=native, interleave=interleave)
        if self._is_first:
            recording.meter.skip((num_wanted - len(hot)) * triple_work(recording.settings))
        triples = []
        for index, order in left.items():
            triple = timing.time_triple(self.backend, index, order, hot[index], interleave=interleave, device=cell.device)
            triples.append(triple)
            journal.append(Triple(triple))
            self._known(cell)[self.workload.prompt_ids[index]] = triple
            label = f"{recording.suite} {self.backend.name} baseline"
            recording.meter.also(triple_work(recording.settings))
            recording.meter.step(pairs_each, label=label)
            recording.end_round(self.backend, label)
        return tuple(triples)

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
