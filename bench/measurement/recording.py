"""The record of one suite on one backend: its header, its journal, and how it is finished."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measurement import turns
from bench.options.settings import Settings
from bench.progress import Meter
from bench.protocols import Backend
from bench.records import environment
from bench.records.command_line import own_words
from bench.records.decoding import ModelPair, Scalar
from bench.records.journal import CellEnd, Journal, find_resumable
from bench.records.runs import SCHEMA, CellRecord, RunRecord
from bench.records.storage import StorageError


@dataclass(frozen=True, slots=True)
class Workload:
    """What every cell of a run decodes: one model pair, prompts as ids, and how the text became ids."""

    model_pair: ModelPair
    recorded_pair: ModelPair  # the same pair as records name it, without this machine's folders
    model_hashes: Mapping[str, str]
    prompt_set: str
    prompts_hash: str
    prompt_format: Mapping[str, Scalar]
    prompt_ids: tuple[tuple[int, ...], ...]  # one entry per prompt
    end_token_ids: tuple[int, ...]
    draft_card: Mapping[str, Scalar] = field(default_factory=dict)  # how the draft was made; empty: it has no card


class NotMeasured(Exception):
    """The cell is not measured: the engine cannot decode it, or the resumed run had finished it."""


class NotCertified(Exception):
    """The cell is measured and stored, but its certificate could not be made: the message says why."""


@dataclass(slots=True)
class Recording:
    """The record of one suite on one backend. Runs on several drafts or prompt sets write it one after the other."""

    suite: str
    backend_name: str
    settings: Settings
    workloads: Sequence[Workload]
    meter: Meter
    _journal: Journal | None = None
    _backend_settings: Mapping[str, Scalar] = field(default_factory=dict)

    def journal(self, backend: Backend) -> Journal:
        """Return the journal, opened on first use; with --resume it is the newest unfinished one of the same experiment."""
        if self._journal is None:
            self._journal = self._opened(backend)
        return self._journal

    def _opened(self, backend: Backend) -> Journal:
        first = self.workloads[0]
        others = [each for each in self.workloads if each.recorded_pair.draft != first.recorded_pair.draft]
        hashes = {f"draft {each.recorded_pair.draft}": each.model_hashes["draft"] for each in others}  # of further drafts
        header = RunRecord(
            schema=SCHEMA,
            **shared_header(self.suite, self.settings, first) | {"model_hashes": {**first.model_hashes, **hashes}},
            prompt_format={**first.prompt_format, "end_token_ids": ",".join(map(str, first.end_token_ids))},
            backend_settings=_backend_settings(backend),
            baseline=(),
            cells=(),
            drafts={each.recorded_pair.draft: dict(each.draft_card) for each in self.workloads if each.draft_card},
        )
        if self.settings.resume:
            path, passed_over = find_resumable(self.settings.results, header, backend=self.backend_name)
            for line in passed_over:
                self.meter.note(line)
            if path is not None:
                return Journal.resume(path)
            self.meter.note(f"nothing to resume for {self.suite} on {self.backend_name}: starting a new run")
        try:
            return Journal.start(self.settings.results, header, backend=self.backend_name)
        except StorageError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
        # Another run of this suite began in the same second, after which records are named: wait for the next.
        time.sleep(1)
        return Journal.start(self.settings.results, replace(header, created=utc_now()), backend=self.backend_name)

    def so_far(self, backend: Backend) -> RunRecord:
        """Return the record with what is measured by now."""
        journal = self.journal(backend)
        measured = journal.measured
        return replace(journal.header, baseline=tuple(measured.baseline), cells=tuple(measured.finished.values()))

    def end_round(self, backend: Backend, label: str) -> None:
        """Let other processes measure the same round, if there are any (`bench.measurement.turns`)."""
        num_triples = len(self.journal(backend).measured.baseline)
        turns.pass_on(turns.Turn(label, self.meter.done, num_triples, self.meter.total))

    def leave(self, backend: Backend) -> None:
        """Record the backend's final settings before it closes."""
        self._backend_settings = _backend_settings(backend)

    def finish(self) -> Path | None:
        """Write the record and remove the journal; None where nothing was measured."""
        if self._journal is None:
            return None
        if not (self._journal.measured.finished or self._journal.measured.baseline):
            self._journal.discard()
            return None
        for cell in tuple(self._journal.measured.pairs):
            reason = "its test ended before the cell was measured"
            self._journal.append(CellEnd(CellRecord(cell, utc_now(), (), False, (), error=reason)))
        return self._journal.finish(self._backend_settings)


def shared_header(suite: str, settings: Settings, workload: Workload) -> dict[str, Any]:
    """Return what the header of every record begins with."""
    return {
        "suite": suite,
        "preset": settings.preset,
        "command": own_words(),
        "created": utc_now(),
        "environment": environment.capture(settings.device),
        "model_pair": workload.recorded_pair,
        "model_hashes": dict(workload.model_hashes),
    }


def _backend_settings(backend: Backend) -> dict[str, Scalar]:
    """Return the settings that the backend reports, and the gaps that it declares."""
    gaps = {f"gap_{check}": reason for check, reason in (backend.capabilities.gaps or {}).items()}
    return {"backend": backend.name, **gaps, **backend.settings()}


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
