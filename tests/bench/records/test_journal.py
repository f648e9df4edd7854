"""What was measured survives: a kill, a full disk, torn lines; and only the same experiment is resumed."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bench.records import files, machine_lock
from bench.records.decoding import ForwardSeconds, ModelPair, PhaseSeconds, Replay, Round
from bench.records.files import load_run, load_runs
from bench.records.journal import CellEnd, Journal, Pair, Triple, Warmup, find_resumable
from bench.records.runs import SCHEMA, SHARED_BY, BaselineTriple, Cell, CellRecord, RunRecord, TimedArm, TimedPair
from bench.records.storage import StorageError

HEADER = RunRecord(
    schema=SCHEMA,
    suite="temperature_grid",
    preset="quick",
    command=("pytest", "--benchmark-only", "suites"),
    created="2026-11-22T12:54:00+00:00",
    environment={
        "cpu_model": "AMD EPYC",
        "num_physical_cores": 2,
        "device_type": "cpu",
        "harness_commit": "0123456789",
    },
    model_pair=ModelPair("tiny", "target", "draft", "causal", "float32"),
    model_hashes={"target": "aa", "draft": "bb"},
    prompt_format={"chat_template": "default"},
    backend_settings={"threads": 2, "dtype": "float32"},
    baseline=(),
    cells=(),
)
CELL = Cell(
    suite="temperature_grid",
    backend="fake",
    rule="rejection",
    pair="tiny",
    draft="draft",
    dtype="float32",
    device="cpu",
    temperature=0.5,
    draft_temperature=0.5,
    num_draft_tokens=3,
    top_k=0,
    top_p=1.0,
    max_new_tokens=64,
    end_token="natural",
    prompt_set="instructions:held_out",
    num_prompts=8,
    repeats=1,
    prompts_hash="cc",
    chat_template="default",
    chat_template_hash="dd",
    seed=0,
    options=(("sweep", 1.5),),
)
ROUNDS = tuple(Round(drafted=3, accepted=1, emitted=2) for _ in range(20))
AR = TimedArm(1, 1.25, 0.1, tuple(range(40)), "length", ())
SD = TimedArm(1, 0.75, 0.1, tuple(range(40)), "length", ROUNDS)
PAIR = TimedPair(
    prompt_index=0,
    repeat=0,
    order="ar_first",
    ar=AR,
    sd=SD,
    forwards=(ForwardSeconds(12, 0.03, 0.01, 0.04),),
    replay=Replay(SD.token_ids, ROUNDS, ((0.25, 0.5),) * 20, None, PhaseSeconds(0.1, 0.2, 0.3, 0.01, 0.02)),
)
TRIPLE = BaselineTriple(prompt_index=0, order=("ar", "ar_again", "native"), ar=AR, ar_again=AR, native=None)
RECORD = CellRecord(CELL, "2026-11-22T12:55:00+00:00", (0.02, 0.01), True, (PAIR, replace(PAIR, prompt_index=1)))

# Arguments: results folder, header, cell, pair, and the largest file allowed, if any.
# Prints a line after every pair that is safe.
WRITER = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import msgspec
from bench.records.runs import Cell, RunRecord, TimedPair
from bench.records.journal import Journal, Pair
kinds = (RunRecord, Cell, TimedPair)
header, cell, pair = (msgspec.json.decode(text, type=kind) for text, kind in zip(sys.argv[2:5], kinds))
if len(sys.argv) > 5:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]), int(sys.argv[5])))
journal = Journal.start(Path(sys.argv[1]), header, backend="fake")
for number in range(1_000_000):
    journal.append(Pair(cell, replace(pair, prompt_index=number)))
    print(number, flush=True)
"""


def start(results: Path, **changes: object) -> Journal:
    return Journal.start(results, replace(HEADER, **changes), backend="fake")  # type: ignore[arg-type]


def writer(results: Path, *extra: str) -> subprocess.Popen[str]:
    arguments = [msgspec.json.encode(value).decode() for value in (HEADER, CELL, PAIR)]
    command = [sys.executable, "-c", WRITER, str(results), *arguments, *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_finished_run_is_one_file_that_gives_back_the_very_record(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(Triple(TRIPLE))
    journal.append(Warmup(CELL, seconds_per_token=RECORD.warmup_s, settled=True))
    for pair in RECORD.pairs:
        journal.append(Pair(CELL, pair))
    journal.append(CellEnd(RECORD))
    path = journal.finish()
    assert path.relative_to(tmp_path) == Path("amd-epyc-2c/temperature_grid/records/20261122T125400Z-0123456789-fake.json")
    assert list(path.parent.iterdir()) == [path]
    assert load_run(path) == replace(HEADER, baseline=(TRIPLE,), cells=(RECORD,))
    assert load_runs(tmp_path) == (load_run(path),)


def test_a_record_is_read_line_by_line_with_its_numbers_kept_together(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(CellEnd(RECORD))
    lines = [line.strip() for line in journal.finish().read_text().splitlines()]
    assert '"preset": "quick",' in lines
    numbers = json.dumps([msgspec.to_builtins(item) for item in ROUNDS])
    assert f'"rounds": {numbers},' in lines
    assert sum(line.startswith('"token_ids": [0, 1, 2') for line in lines) == 6
    assert len(lines) < 145


def test_a_journal_gives_back_what_is_finished_and_what_is_not(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(Triple(TRIPLE))
    journal.append(Pair(CELL, PAIR))
    journal.append(CellEnd(RECORD))
    other = replace(CELL, temperature=1.0)
    journal.append(Warmup(other, seconds_per_token=(0.5,), settled=False))
    journal.append(Pair(other, PAIR))
    journal.close()
    resumed = Journal.resume(journal.path)
    assert resumed.header == HEADER
    assert resumed.measured.baseline == [TRIPLE]
    assert resumed.measured.finished == {CELL: RECORD}
    assert resumed.measured.pairs == {other: [PAIR]}
    assert resumed.measured.warmups[other].seconds_per_token == (0.5,)
    assert str(resumed.measured) == "1 finished cells, 3 pairs and 1 baseline triples"


def test_a_resumed_run_ends_in_the_same_file_as_an_uninterrupted_one(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(Pair(CELL, RECORD.pairs[0]))
    journal.close()
    resumed = Journal.resume(journal.path)
    resumed.append(Pair(CELL, RECORD.pairs[1]))
    resumed.append(CellEnd(replace(RECORD, pairs=tuple(resumed.measured.pairs[CELL]))))
    assert load_run(resumed.finish()).cells == (RECORD,)


def test_a_cell_that_failed_may_be_measured_again(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(Pair(CELL, PAIR))
    journal.append(CellEnd(replace(RECORD, pairs=(), error="out of memory")))
    assert journal.measured.pairs == {}
    journal.append(Pair(CELL, PAIR))
    journal.append(CellEnd(RECORD))
    assert load_run(journal.finish()).cells == (RECORD,)


def test_a_run_with_an_unfinished_cell_cannot_be_finished_and_stays_resumable(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(Pair(CELL, PAIR))
    with pytest.raises(ValueError, match=r"unfinished fake tiny rejection T=0\.5 k=3"):
        journal.finish()
    journal.close()
    assert Journal.resume(journal.path).measured.pairs == {CELL: [PAIR]}


def test_a_number_that_could_not_be_read_back_is_refused_when_it_is_written(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(Pair(CELL, PAIR))
    with pytest.raises(ValueError, match="Expected `float`, got `null`"):
        journal.append(Pair(CELL, replace(PAIR, ar=replace(AR, seconds=math.nan))))
    journal.close()
    assert Journal.resume(journal.path).measured.pairs == {CELL: [PAIR]}


def test_every_pair_reported_before_a_kill_is_read_back(tmp_path: Path) -> None:
    process = writer(tmp_path)
    assert process.stdout is not None
    reported = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    reported += [int(line) for line in process.communicate()[0].split()]
    (path,) = tmp_path.rglob("*.partial.jsonl")
    pairs = Journal.resume(path).measured.pairs[CELL]
    assert [pair.prompt_index for pair in pairs][: len(reported)] == reported
    # The kill may fall between a line's arrival on the disk and its report.
    assert len(pairs) - len(reported) in (0, 1)


def test_a_file_that_may_not_grow_ends_the_run_in_one_line_and_keeps_the_whole_pairs(tmp_path: Path) -> None:
    process = writer(tmp_path, "20000")
    reported, errors = process.communicate()
    (path,) = tmp_path.rglob("*.partial.jsonl")
    num_pairs = len(reported.split())
    assert num_pairs > 0
    assert errors.splitlines()[-1] == (
        f"bench.records.storage.StorageError: cannot write results: File too large; 0 finished cells, {num_pairs} pairs and "
        f"0 baseline triples are kept in {path}; put it right and run again with --resume"
    )
    assert path.read_bytes().endswith(b"\n")
    assert len(Journal.resume(path).measured.pairs[CELL]) == num_pairs


def test_a_full_disk_loses_no_pair_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, full_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = start(tmp_path)
    journal.append(Pair(CELL, PAIR))
    full_disk(100)
    with pytest.raises(StorageError, match=r"No space left on device; 0 finished cells, 1 pairs .* with --resume$"):
        journal.append(Pair(CELL, replace(PAIR, prompt_index=1)))
    monkeypatch.undo()
    journal.append(Pair(CELL, replace(PAIR, prompt_index=2)))
    journal.close()
    assert [pair.prompt_index for pair in Journal.resume(journal.path).measured.pairs[CELL]] == [0, 2]


def test_a_disk_that_fills_while_the_record_is_written_leaves_the_journal_and_no_half_record(
    tmp_path: Path, full_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = start(tmp_path)
    journal.append(CellEnd(RECORD))
    full_disk(100)
    with pytest.raises(StorageError, match=r"1 finished cells, 2 pairs .* with --resume$"):
        journal.finish()
    assert list(journal.path.parent.iterdir()) == [journal.path]
    monkeypatch.undo()
    assert load_run(journal.finish()).cells == (RECORD,)


def test_a_journal_that_cannot_be_started_leaves_nothing(tmp_path: Path, full_disk: Callable[[int], None]) -> None:
    full_disk(10)
    with pytest.raises(StorageError, match="No space left on device; nothing was measured"):
        start(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_run_never_takes_the_name_of_another_one(tmp_path: Path) -> None:
    start(tmp_path).finish()
    with pytest.raises(StorageError, match="File exists"):
        start(tmp_path)


def test_a_torn_last_line_is_left_out_and_overwritten(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(Pair(CELL, PAIR))
    journal.append(Pair(CELL, replace(PAIR, prompt_index=1)))
    journal.close()
    os.truncate(journal.path, journal.path.stat().st_size - 7)
    resumed = Journal.resume(journal.path)
    assert resumed.measured.pairs == {CELL: [PAIR]}
    resumed.append(Pair(CELL, replace(PAIR, prompt_index=2)))
    resumed.close()
    assert [pair.prompt_index for pair in Journal.resume(journal.path).measured.pairs[CELL]] == [0, 2]


def test_a_last_line_that_a_power_cut_left_as_zeros_is_left_out(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(Pair(CELL, PAIR))
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b"\0" * 500)
    assert Journal.resume(journal.path).measured.pairs == {CELL: [PAIR]}


def test_a_torn_line_in_the_middle_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    journal = start(tmp_path)
    for _ in range(3):
        journal.append(Pair(CELL, PAIR))
    journal.close()
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:50] + b"\n"
    journal.path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=r"-fake\.partial\.jsonl, line 3: "):
        Journal.resume(journal.path)


def test_the_newest_journal_of_the_same_experiment_is_found(tmp_path: Path) -> None:
    old = start(tmp_path)
    old.close()
    new = start(tmp_path, created="2026-11-23T08:00:00+00:00")
    new.close()
    Journal.start(tmp_path, replace(HEADER, created="2026-11-24T08:00:00+00:00"), backend="not-fake").close()
    header = replace(
        HEADER,
        created="2026-11-25T08:00:00+00:00",
        command=("python", "-m", "pytest", "--benchmark-only", "suites", "--resume"),
    )
    assert find_resumable(tmp_path, header, backend="fake") == (new.path, ())
    assert find_resumable(tmp_path, header, backend="other") == (None, ())
    assert find_resumable(tmp_path / "nowhere", header, backend="fake") == (None, ())


def test_what_lies_in_hidden_folders_or_is_unfinished_is_no_record(tmp_path: Path) -> None:
    for name in ("a/b/1.json", "a/b/2.partial.jsonl", ".sweep/x/shard-0.json", "a/.hidden/3.json", "a/b/4.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in files.record_files(tmp_path, "**/*.json*")]
    assert found == ["a/b/1.json", "a/b/4.jsonl"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"preset": "paper"}, "another experiment, with a different preset"),
        (
            {"command": ("pytest", "--benchmark-only", "suites", "--seed", "1")},
            "another command, pytest --benchmark-only suites --seed 1",
        ),
        ({"model_hashes": {"target": "aa", "draft": "xx"}}, "a different model_hashes"),
        ({"backend_settings": {"threads": 1}, "prompt_format": {}}, "a different prompt_format, backend_settings"),
        ({"environment": HEADER.environment | {"harness_commit": "ff"}}, r"harness_commit \(ff against 0123456789\)"),
        ({"environment": HEADER.environment | {"harness_diff": "ff"}}, r"harness_diff \(ff against absent\)"),
        ({"environment": HEADER.environment | {"torch": "1.0"}}, r"torch \(1\.0 against absent\)"),
    ],
)
def test_a_journal_of_another_experiment_is_passed_over_with_a_reason(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    journal = start(tmp_path, **changes)
    journal.close()
    path, (line,) = find_resumable(tmp_path, HEADER, backend="fake")
    assert path is None
    assert re.fullmatch(rf"{journal.path.name} is not resumable: .*{reason}", line)


def test_a_journal_of_another_schema_is_passed_over_with_a_reason(tmp_path: Path) -> None:
    journal = start(tmp_path)
    journal.append(Pair(CELL, PAIR))
    journal.close()
    content = journal.path.read_text()
    journal.path.write_text(content.replace(f'"schema":{SCHEMA}', f'"schema":{SCHEMA + 1}'))
    path, (line,) = find_resumable(tmp_path, HEADER, backend="fake")
    assert path is None
    assert line.endswith(f"line 1: expected a record of schema 1 or {SCHEMA}, got {SCHEMA + 1}")


def test_a_journal_that_another_process_writes_is_neither_found_nor_resumed(tmp_path: Path) -> None:
    process = writer(tmp_path)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        (path,) = tmp_path.rglob("*.partial.jsonl")
        found, (line,) = find_resumable(tmp_path, HEADER, backend="fake")
        assert found is None
        assert line.endswith("is not resumable: another process is still writing it")
        with pytest.raises(StorageError, match="another process is still writing it"):
            Journal.resume(path)
    finally:
        process.kill()
        process.communicate()
    assert find_resumable(tmp_path, HEADER, backend="fake") == (path, ())


def test_a_resumed_journal_is_held_against_other_processes_too(tmp_path: Path) -> None:
    start(tmp_path).close()
    (path,) = tmp_path.rglob("*.partial.jsonl")
    resumed = Journal.resume(path)
    code = f"from pathlib import Path; from bench.records.journal import Journal; Journal.resume(Path({str(path)!r}))"
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    resumed.close()
    assert "another process is still writing it" in result.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Input data was truncated"),
        ("{}", "missing required field `schema`"),
        (f'{{"schema": {SCHEMA}}}', "missing required field `suite`"),
        (f'{{"schema": {SCHEMA + 1}}}', f"expected a record of schema 1 or {SCHEMA}, got {SCHEMA + 1}"),
    ],
)
def test_a_broken_record_is_refused_with_its_path(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "machine/suite/broken.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"broken\.json: .*{reason}"):
        load_runs(tmp_path)


def test_missing_results_are_refused_with_their_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder of results, got .*nowhere"):
        load_runs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"nowhere\.json: .*No such file"):
        load_run(tmp_path / "nowhere.json")


def test_records_come_oldest_first_whatever_their_folder(tmp_path: Path) -> None:
    for suite, created in (("a", "2026-11-24T00:00:00+00:00"), ("b", "2026-11-23T00:00:00+00:00")):
        start(tmp_path, suite=suite, created=created).finish()
    assert [run.suite for run in load_runs(tmp_path)] == ["b", "a"]


def test_a_run_that_another_one_joined_is_marked_also_after_it_was_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = start(tmp_path)
    journal.append(Pair(CELL, PAIR))
    monkeypatch.setattr(machine_lock, "num_runs", lambda: 2)
    journal.append(Pair(CELL, replace(PAIR, prompt_index=1)))
    journal.close()
    monkeypatch.setattr(machine_lock, "num_runs", lambda: 1)
    resumed = Journal.resume(journal.path)
    assert len(resumed.measured.pairs[CELL]) == 2
    resumed.append(CellEnd(CellRecord(CELL, "", (), True, (PAIR,))))
    assert files.load_run(resumed.finish()).environment[SHARED_BY] == 2
