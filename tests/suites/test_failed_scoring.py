"""A run whose tokens cannot be scored keeps its timed pairs, and is certified later."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.analysis.rows import newest_rows
from bench.commands import main
from bench.measurement.suite_run import SuiteRun
from bench.orchestration import sweep
from bench.records import files
from bench.records.journal import Journal
from bench.records.runs import Cell, Evidence, TimedPair
from bench.reporting.tables import cell_table
from tests.suites.test_suites import GRID, SMALL, journals
from tests.support.children import ENVIRONMENT, start_suites
from tests.support.record_builder import make_cell, make_record, make_run
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

# A plugin of pytest that makes scoring at T = 1 fail, in the way that a variable names.
BROKEN_SCORER = f"""
import os, signal
from backends.certification import scoring
evidence_for_cell = scoring.evidence_for_cell
def broken(pairs, prompt_ids, cell, scorer, near_tie):
    if cell.temperature == 1 and (how := os.environ.get("BREAK")):
        if how == "kill":
            os.kill(os.getpid(), {int(signal.SIGKILL)})
        raise RuntimeError("out of memory\\nmore of it")
    return evidence_for_cell(pairs, prompt_ids, cell, scorer, near_tie)
scoring.evidence_for_cell = broken
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_llama(seed=1)
    draft = nearby(target, seed=2)
    return ("--target", save_checkpoint(target, folder / "target"), "--draft", save_checkpoint(draft, folder / "draft"))


def measured(folder: Path, models: Sequence[str], how: str, *options: str) -> tuple[int, str]:
    (folder / "broken_scorer.py").write_text(BROKEN_SCORER)
    environment = ENVIRONMENT | {"PYTHONPATH": str(folder), "BREAK": how}
    arguments = (GRID, *models, *SMALL, "--results", str(folder / "results"), "-p", "broken_scorer", *options)
    done = start_suites(*arguments, environment=environment).result()
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def uncertified(models: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished record of two cells, of which that at T = 1 is not certified, and what its run printed."""
    folder = tmp_path_factory.mktemp("uncertified")
    status, said = measured(folder, models, "raise")
    assert status == 1, said
    return files.record_files(folder / "results")[0], said


def test_pairs_are_kept_with_the_reason_and_the_run_goes_on_and_fails(uncertified: tuple[Path, str]) -> None:
    path, said = uncertified
    cold, hot = files.load_run(path).cells
    assert (cold.scoring_error, hot.scoring_error) == (None, "RuntimeError: out of memory")
    assert cold.evidence is not None
    assert (hot.evidence, hot.error, len(hot.pairs)) == (None, None, 6)
    complaint = "is measured, not certified: RuntimeError: out of memory; specheat certify --record FILE does it later"
    assert [line for line in said.splitlines() if complaint in line] != []
    assert "1 failed, 1 passed" in said
    assert "Traceback" not in said
    table = cell_table(newest_rows({"r.json": files.load_run(path)}))
    assert any("not certified: RuntimeError: out of memory" in note for note in table.notes)


def test_shards_of_a_sweep_keep_them_too(uncertified: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = uncertified
    plan = sweep.Plan((GRID,), (), (("one shard",),), tmp_path, "commit")
    done = sweep.Done(1, "here", "", 0.0, 1.0, ("record.json",))
    sweep.keep(plan, 0, done, {"record.json": path.read_bytes()})
    (merged,) = sweep.put_together(plan, [done])
    assert files.load_run(merged).cells == files.load_run(path).cells


def certify(*arguments: object) -> int:
    return main.main(["certify", "--record", *map(str, arguments)])


def test_a_finished_record_is_certified_later_in_a_copy(
    uncertified: tuple[Path, str], models: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = uncertified
    before = path.read_bytes()
    status = certify(path, *models, "--results", tmp_path)
    said = capsys.readouterr()
    assert status == 3, said  # 96 tokens are too few
    assert "INCONCLUSIVE: reference target+draft rejection T=1 k=2\n  no fault is found" in said.out
    copy = tmp_path / path.relative_to(path.parents[3]).with_name(f"{path.stem}_certified.json")
    assert said.out.splitlines()[-1] == str(copy)
    assert path.read_bytes() == before
    old, new = files.load_run(path), files.load_run(copy)
    assert new.certified["record"] == path.name
    assert new.cells[0] == old.cells[0]
    evidence = new.cells[1].evidence
    assert evidence is not None
    assert evidence.target == "loaded from the pair"
    assert new.cells[1] == replace(old.cells[1], evidence=evidence, scoring_error=None)
    assert new == replace(old, cells=new.cells, certified=new.certified)


def test_readers_take_the_certified_copy_beside_a_record(
    uncertified: tuple[Path, str], models: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "results" / uncertified[0].relative_to(uncertified[0].parents[3])
    path.parent.mkdir(parents=True)
    path.write_bytes(uncertified[0].read_bytes())
    assert certify(path, *models, "--json") == 3
    said = json.loads(capsys.readouterr().out)
    assert said["record"] == str(files.certified_path(path))
    assert [(cell["cell"][-8:], cell["num_cells"]) for cell in said["cells"]] == [(" T=1 k=2", 1)]
    assert files.record_files(tmp_path) == [files.certified_path(path)]
    assert list(files.read_runs(tmp_path / "results")) == [
        files.certified_path(path).relative_to(tmp_path / "results").as_posix()
    ]
    assert certify(path) == 2
    assert "is already there" in capsys.readouterr().err
    assert certify(files.certified_path(path)) == 2
    assert "expected cells without a certificate" in capsys.readouterr().err


def test_what_certify_refuses_is_one_line(
    uncertified: tuple[Path, str], models: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = uncertified
    run = files.load_run(path)
    other = save_checkpoint(tiny_llama(seed=9), tmp_path / "target")

    def changed(*, prompts_hash: str | None = None, **changes: Any) -> Path:
        cells = tuple(
            replace(record, cell=replace(record.cell, prompts_hash=prompts_hash or record.cell.prompts_hash))
            for record in run.cells
        )
        (tmp_path / "record.json").write_text(files.record_text(replace(run, cells=cells, **changes)))
        return tmp_path / "record.json"

    refused: list[tuple[Callable[[], int], str]] = [
        (lambda: certify(tmp_path / "none.json"), "none.json"),
        (lambda: certify(tmp_path / "x.partial.jsonl"), "expected a finished record"),
        (lambda: certify(path, "--temperature", 1), "expected --record without temperatures"),
        (lambda: certify(path, "--tokens", 9), "expected --record without tokens"),
        (lambda: main.main(["certify"]), "expected --temperature"),
        (lambda: main.main(["certify", "--temperature", "1", "--results", "x"]), "--results only with --record"),
        (lambda: certify(path), "pass --target DIR --draft DIR"),
        (lambda: certify(path, "--target", other, *models[2:]), "expected the target of the record, with hash"),
        (
            lambda: certify(changed(prompts_hash="0"), *models),
            "expected the prompts of the record, 6 of instructions",
        ),
        (
            lambda: certify(changed(prompt_format={**run.prompt_format, "chat_template": "default"}), *models),
            "another chat_template",
        ),
    ]
    for call, complaint in refused:
        capsys.readouterr()
        assert call() == 2, complaint
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("specheat:")]
        assert len(err) == 1
        assert complaint in err[0]
    (tmp_path / "broken.json").write_text("{")
    assert certify(tmp_path / "broken.json") == 2
    assert not list(path.parent.glob("*_certified*"))


def test_a_scorer_that_is_killed_leaves_the_pairs_and_the_run_can_be_resumed(models: tuple[str, ...], tmp_path: Path) -> None:
    status, _ = measured(tmp_path, models, "kill")
    assert status != 0
    assert len(journals(tmp_path)) == 1
    status, said = measured(tmp_path, models, "kill", "--resume")
    assert status == 0, said
    (run,) = files.load_runs(tmp_path / "results")
    assert [len(record.pairs) for record in run.cells] == [6, 6]
    assert run.cells[1].scoring_error == "the run ended while its tokens were scored"


ERRORS = [RuntimeError("x"), MemoryError(), ImportError("No module named 'y'"), OSError("disk"), AssertionError("z")]


@pytest.mark.parametrize("error", [*ERRORS, KeyError("a bug"), KeyboardInterrupt()], ids=repr)
def test_the_pairs_of_a_cell_are_in_the_journal_whatever_its_scorer_raises(error: BaseException, tmp_path: Path) -> None:
    def scorer(cell: Cell, pairs: Sequence[TimedPair]) -> Evidence:
        raise error

    record = make_record(make_cell())
    journal = Journal.start(tmp_path, make_run(), backend="reference")
    run: Any = SimpleNamespace(score=scorer, journal=journal)
    if error in ERRORS:
        kept = SuiteRun._scored(run, record)
        assert kept.scoring_error is not None
        assert kept.scoring_error.startswith(type(error).__name__)
    else:
        with pytest.raises(type(error)):
            SuiteRun._scored(run, record)
    (stored,) = journal.measured.finished.values()
    assert stored.pairs == record.pairs
    assert stored.scoring_error
    journal.close()
