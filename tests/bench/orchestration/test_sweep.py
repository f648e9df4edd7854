"""Suites shared out over workers: what a shard is, whether it had its machine alone, and a real local Ray of two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.analysis.verdict import verdict_of
from bench.errors import IncomparableResults
from bench.orchestration import sweep
from bench.orchestration.sweep import Done
from bench.records import files
from bench.records.environment import installed_version, machine_slug
from bench.records.runs import SHARED_BY, RunRecord
from tests.support import ROOT
from tests.support.children import run_specheat, run_suites
from tests.support.record_builder import make_record, make_run
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama


def done(started: float, ended: float, *, machine: str = "a", devices: str = "") -> Done:
    return Done(0, machine, devices, started, ended)


@pytest.mark.parametrize(
    ("dones", "expected"),
    [
        ([done(0, 10)], 1),
        ([done(0, 10), done(10, 20)], 1),
        ([done(0, 10), done(5, 20)], 2),
        ([done(0, 10), done(5, 20), done(9, 11), done(30, 40)], 3),
        ([done(0, 10), done(5, 20, machine="b")], 1),
        ([done(0, 10, devices="0"), done(0, 10, devices="1")], 1),
    ],
)
def test_a_machine_is_shared_by_the_shards_that_ran_on_its_cpu_at_once(dones: list[Done], expected: int) -> None:
    assert sweep.shared_by(dones) == expected


@pytest.mark.parametrize(("cells", "parts", "sizes"), [(7, 3, [2, 2, 3]), (2, 5, [1, 1]), (4, 1, [4])])
def test_shards_are_neighbours_of_equal_number(cells: int, parts: int, sizes: list[int]) -> None:
    names = [f"suites/test_x.py::test[{index}]" for index in range(cells)]
    found = list(sweep.split(names, parts))
    assert [len(shard) for shard in found] == sizes
    assert [name for shard in found for name in shard] == names


def test_shards_of_different_conditions_are_not_put_together() -> None:
    run = make_run([make_record()])
    whole = sweep.merged([run, replace(run, baseline=())], command=("x",), shared_by=1)
    assert whole.cells == run.cells * 2
    assert whole.baseline == run.baseline
    assert SHARED_BY not in whole.environment
    other = replace(run, environment={**run.environment, "cpu_model": "another"})
    with pytest.raises(IncomparableResults, match="cpu_model"):
        sweep.merged([run, other], command=("x",), shared_by=1)
    with pytest.raises(IncomparableResults, match="model_hashes"):
        sweep.merged([run, replace(run, model_hashes={"target": "x"})], command=("x",), shared_by=1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--ray", "local"), "expected suites"),
        (("--ray", "local", "--workers", "0", "suites"), "expected --workers >= 1, got 0"),
        (("--ray", "local", "suites", "--temperatures", "0"), "unrecognized arguments: --temperatures 0"),
        (("--ray", "local", "suites", "--", "--resume"), "expected --resume before the -- or not at all"),
        (("--ray", "local", "nowhere.py"), "expected cells to measure, got none"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    done = run_specheat("sweep", "--results", str(tmp_path), *words)
    assert done.returncode == 2
    assert complaint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def run_sweep(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("specheat")), "sweep", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_llama(seed=1)
    models = ["--target", save_checkpoint(target, folder / "target")]
    models += ["--draft", save_checkpoint(nearby(target, seed=2), folder / "draft")]
    amount = ["--temperatures", "0,1", "--num-prompts", "2", "--max-new-tokens", "8"]
    return [*models, *amount, "--dtype", "float32", "--chat-template", "none"]


SUITE = "suites/test_temperature_grid.py"


@pytest.mark.slow
@pytest.mark.skipif(installed_version("ray") is None, reason="needs ray")
def test_more_gpus_than_this_machine_has_are_refused_at_once(options: list[str], tmp_path: Path) -> None:
    words = ["--ray", "local", "--gpus", "999", "--results", str(tmp_path), SUITE, "--", *options, "--device", "cuda"]
    done = run_sweep(*words)
    assert done.returncode == 2
    assert "expected --gpus of at most" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(installed_version("ray") is None, reason="needs ray")
def test_two_local_workers_decode_what_one_run_does_and_claim_no_times(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--assert=plain")  # to rewrite every assert statement takes a process a second
    alone = run_suites("-q", SUITE, *options, "--results", str(tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    # A sweep that was stopped after its first shard.
    plan = sweep.plan([SUITE], options, workers=2, results=tmp_path / "shared")
    assert len(plan.shards) == 2
    sweep.keep(
        plan,
        0,
        *sweep.run_shard(plan.shards[0], plan.options, f"{plan.folder.name}-0", os.environ.get("OMP_NUM_THREADS")),
    )
    (first,) = (files.load_run(path) for path in plan.folder.rglob("2*.json"))
    shared = run_sweep("--ray", "local", "--workers", "2", "--results", str(tmp_path / "shared"), SUITE, "--", *options)
    assert shared.returncode == 0, shared.stderr
    (expected,), (found,) = files.load_runs(tmp_path / "alone"), files.load_runs(tmp_path / "shared")
    assert found.cells[0] == first.cells[0]
    assert_same_texts(found, expected)
    assert not plan.folder.exists()
    assert str(machine_slug(found.environment)) in shared.stdout
    # Both at once.
    again = run_sweep("--ray", "local", "--workers", "2", "--results", str(tmp_path / "again"), SUITE, "--", *options)
    assert again.returncode == 0, again.stderr
    (both,) = files.load_runs(tmp_path / "again")
    assert_same_texts(both, expected)
    assert both.environment[SHARED_BY] == 2
    for record in both.cells:
        judged = verdict_of(record, both)
        assert "timed on a machine that 2 runs shared" in judged.reasons
        assert not judged.valid


def assert_same_texts(found: RunRecord, expected: RunRecord) -> None:
    assert [record.cell for record in found.cells] == [record.cell for record in expected.cells]
    for one, other in zip(found.cells, expected.cells, strict=True):
        assert [(pair.order, pair.ar.token_ids, pair.sd.token_ids, pair.sd.rounds) for pair in one.pairs] == [
            (pair.order, pair.ar.token_ids, pair.sd.token_ids, pair.sd.rounds) for pair in other.pairs
        ]
        assert one.evidence is not None
        assert other.evidence is not None
        assert len(one.evidence.texts) == len(other.evidence.texts)
        for text, same in zip(one.evidence.texts, other.evidence.texts, strict=True):
            assert (text.slots, text.off_support) == (same.slots, same.off_support)
            # The same model in another process rounds in another order.
            for name in ("pit", "excess_surprisal", "surprisal_variance", "logit_gap"):
                assert getattr(text, name) == pytest.approx(getattr(same, name), abs=1e-3)
    assert found.model_hashes == expected.model_hashes
    assert found.prompt_format == expected.prompt_format
    assert len(found.baseline) == len(expected.baseline)
    assert {key for key in expected.environment if key not in found.environment} == set()
