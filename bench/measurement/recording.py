"""TODO: purpose."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.options.settings import Settings
from bench.progress import Reporter
from bench.protocols import Backend
from bench.records import environment, files
from bench.records.decoding import ModelPair, Scalar
from bench.records.journal import Journal, find_resumable
from bench.records.runs import SCHEMA, CellRecord, RunRecord


@dataclass(frozen=True, slots=True)
class Workload:
    """What every cell of a run decodes: one model pair, prompts as ids, and how the text became ids."""

    model_pair: ModelPair
    recorded_pair: ModelPair  # the same pair as records name it, without this machine's folders
    model_hashes: Mapping[str, str]
    prompt_set: str
    prompts_hash: str
    prompt_format: Mapping[str, Scalar]
    prompt_ids: tuple[tuple[int, ...], ...]  # one row a prompt
    end_token_ids: tuple[int, ...]
    draft_card: Mapping[str, Scalar] = field(default_factory=dict)  # how the draft was made, where that is known


class NotMeasured(Exception):
    """The cell needs no measuring: the engine cannot do what it asks, or the resumed run had finished it."""


class Recording:
    """The record of one suite on one backend, which SuiteRuns of several drafts or prompt sets write one after the other."""

    def __init__(
        self, suite: str, backend_name: str, *, settings: Settings, workloads: Sequence[Workload], reporter: Reporter
    ) -> None:
        self.suite = suite
        self.backend_name = backend_name
        self.settings = settings
        self.workloads = workloads
        self.reporter = reporter
        self._journal: Journal | None = None
        self._backend_settings: Mapping[str, Scalar] = {}

    def journal(self, backend: Backend) -> Journal:
        """Opened with the first measurement; with --resume, the newest unfinished one of the same experiment."""
        if self._journal is None:
            self._journal = self._opened(backend)
        return self._journal

    def _opened(self, backend: Backend) -> Journal:
        first = self.workloads[0]
        header = RunRecord(
            schema=SCHEMA,
            suite=self.suite,
            preset=self.settings.preset,
            command=environment.command_line(),
            created=utc_now(),
            environment=environment.capture(self.settings.device),
            model_pair=first.recorded_pair,
            model_hashes=_all_hashes(self.workloads),
            prompt_format={
                **first.prompt_format,
                "end_token_ids": ",".join(map(str, first.end_token_ids)),
            },
            backend_settings=_backend_settings(backend),
            baseline=(),
            cells=(),
            drafts={each.recorded_pair.draft: dict(each.draft_card) for each in self.workloads if each.draft_card},
        )
        if self.settings.resume:
            path, passed_over = find_resumable(self.settings.results, header, backend=self.backend_name)
            for line in passed_over:
                self.reporter.note(line)
            if path is not None:
                return Journal.resume(path)
            self.reporter.note(f"nothing to resume for {self.suite} on {self.backend_name}: starting anew")
        return self._started(header)

    def _started(self, header: RunRecord) -> Journal:
        """Records are named by the second: where one of the same suite began in this one, ours begins in the next."""
        try:
            return Journal.start(self.settings.results, header, backend=self.backend_name)
        except files.StorageError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
        time.sleep(1)
        return Journal.start(self.settings.results, replace(header, created=utc_now()), backend=self.backend_name)

    def leave(self, backend: Backend) -> None:
        """Before an engine is closed: what it says of itself by then."""
        self._backend_settings = _backend_settings(backend)

    def finish(self) -> Path | None:
        """Write the record and drop the journal. With nothing measured there is neither."""
        if self._journal is None:
            return None
        if not (self._journal.measured.finished or self._journal.measured.baseline):
            self._journal.discard()
            return None
        for cell in tuple(self._journal.measured.pairs):
            reason = "its test ended before the cell was measured"
            self._journal.finish_cell(CellRecord(cell, utc_now(), (), False, (), error=reason))
        return self._journal.finish(self._backend_settings)


def _all_hashes(workloads: Sequence[Workload]) -> dict[str, str]:
    """Of target and draft; of further drafts under their names."""
    first = workloads[0]
    hashes = dict(first.model_hashes)
    for workload in workloads:
        if workload.recorded_pair.draft != first.recorded_pair.draft:
            hashes[f"draft {workload.recorded_pair.draft}"] = workload.model_hashes["draft"]
    return hashes


def _backend_settings(backend: Backend) -> dict[str, Scalar]:
    """What the backend says of itself, and what it declares that it cannot do."""
    gaps = backend.capabilities.gaps or {}
    return {
        "backend": backend.name,
        **{f"gap_{check}": why for check, why in gaps.items()},
        **backend.settings(),
    }


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
