"""The record of a suite keeps what was measured, whatever happens to a cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.measurement import recording
from bench.measurement.recording import Recording, Workload
from bench.options.settings import PRESETS, Settings
from bench.progress import Meter
from bench.records import environment, files
from bench.records.journal import CellEnd, Pair, Triple
from tests.support.fakes import AsynchronousFake, FakeClock
from tests.support.record_builder import PAIR, make_baseline, make_cell, make_record

WORKLOAD = Workload(
    model_pair=PAIR,
    recorded_pair=PAIR,
    model_hashes={"target": "aa", "draft": "bb"},
    prompt_set="instructions",
    prompts_hash="cc",
    prompt_format={"chat_template": "none", "chat_template_hash": ""},
    prompt_ids=((1, 2), (3,)),
    end_token_ids=(2,),
)
BACKEND = AsynchronousFake(FakeClock())


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(environment, "capture", lambda device: {"cpu_model": "Example", "device_type": device})
    preset = PRESETS["smoke"]
    amounts: dict[str, Any] = {"repeats": 1, "max_new_tokens": preset.max_new_tokens}
    return Settings(preset="smoke", temperatures=preset.temperatures, results=tmp_path, **amounts)


def a_recording(settings: Settings, *workloads: Workload) -> Recording:
    return Recording("temperature_grid", "fake", settings=settings, workloads=workloads or (WORKLOAD,), meter=Meter())


def test_a_cell_whose_test_ended_early_does_not_keep_the_record_from_being_written(settings: Settings, tmp_path: Path) -> None:
    whole, cut = make_record(make_cell(temperature=0.0)), make_record(make_cell(temperature=1.0))
    record = a_recording(settings)
    journal = record.journal(BACKEND)
    journal.append(CellEnd(whole))
    journal.append(Pair(cut.cell, cut.pairs[0]))
    path = record.finish()
    assert path is not None
    kept, failed = files.load_run(path).cells
    assert kept == whole
    assert (failed.cell, failed.pairs) == (cut.cell, ())
    assert failed.error == "its test ended before the cell was measured"
    assert not list(tmp_path.rglob("*.partial.jsonl"))


def test_a_record_of_nothing_is_not_written(settings: Settings, tmp_path: Path) -> None:
    assert a_recording(settings).finish() is None
    opened = a_recording(settings)
    opened.journal(BACKEND)
    assert opened.finish() is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_two_records_that_begin_within_a_second_have_different_names(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(["2026-11-20T10:00:00+00:00", "2026-11-20T10:00:00+00:00", "2026-11-20T10:00:01+00:00"])
    monkeypatch.setattr(recording, "utc_now", lambda: next(moments))
    monkeypatch.setattr(recording.time, "sleep", lambda seconds: None)
    first, second = (a_recording(settings).journal(BACKEND) for _ in range(2))
    assert first.path != second.path
    assert first.header.suite == second.header.suite


def test_resume_goes_on_with_the_journal_of_the_same_experiment(settings: Settings) -> None:
    interrupted = a_recording(settings).journal(BACKEND)
    (triple, *_) = make_baseline(num_prompts=1)
    interrupted.append(Triple(triple))
    interrupted.close()
    resumed = a_recording(replace(settings, resume=True))
    assert resumed.so_far(BACKEND).baseline == (triple,)


def test_the_record_has_the_hash_of_every_draft_and_the_settings_of_the_end(settings: Settings) -> None:
    other = replace(WORKLOAD, recorded_pair=replace(PAIR, draft="other"), model_hashes={"target": "aa", "draft": "dd"})
    record = a_recording(settings, WORKLOAD, other)
    record.journal(BACKEND).append(CellEnd(make_record()))
    record.leave(BACKEND)
    path = record.finish()
    assert path is not None
    run = files.load_run(path)
    assert run.model_hashes == {"target": "aa", "draft": "bb", "draft other": "dd"}
    assert run.backend_settings == {"backend": "asynchronous fake"}
    assert run.prompt_format["end_token_ids"] == "2"
