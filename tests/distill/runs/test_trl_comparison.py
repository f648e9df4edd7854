"""The KD throughput suite: that both sides compute the same, what its record holds, and a whole run on a tiny pair."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.records.distill_speed import ArmRun, TrainingRound
from bench.records.environment import installed_version
from bench.reporting.formats import terminal
from bench.reporting.suites.distill_speed import derived
from distill.runs.trl_arms import ARMS, Training
from distill.runs.trl_comparison import SIZES, ArmProcess, check_same_steps, orders
from distill.training.losses import Loss
from tests.support.children import run_suites
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

ROOT = Path(__file__).parents[3]
SUITE = "suites/test_distill_speed.py"
needs_trl = pytest.mark.skipif(installed_version("trl") is None, reason="TRL is missing")
RUN = ArmRun(
    seconds=10.0,
    filling_s=0.0,
    num_tokens=1000,
    num_steps=4,
    first_loss=2.0,
    mean_loss=1.9,
    start_bytes=2**29,
    peak_bytes=2**31,
    num_threads=2,
)


def made_up_round(*, factor: float = 1.0) -> TrainingRound:
    runs = {
        "trl": replace(RUN, seconds=factor * 10.0),
        "target_in_step": replace(RUN, seconds=factor * 5.0),
        "target_cached": replace(RUN, seconds=factor * 2.5, filling_s=1.0, peak_bytes=2**30),
    }
    return TrainingRound(tuple(ARMS), runs)


@needs_trl
@pytest.mark.slow
@pytest.mark.parametrize(("beta", "loss"), [(0.0, Loss("forward_kl")), (0.3, Loss("js", beta=0.3))])
def test_trls_loss_and_gradient_are_ours(beta: float, loss: Loss) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL, that this part of it may change
        from trl.experimental.gkd import GKDTrainer
    generator = torch.Generator().manual_seed(0)
    target, draft = (2 * torch.randn(1, 6, 50, generator=generator) for _ in range(2))
    labels = torch.tensor([[-100, 3, 4, -100, 5, 6]])
    draft.requires_grad_()
    theirs = GKDTrainer.generalized_jsd_loss(draft, target, labels=labels, beta=beta)
    (their_slope,) = torch.autograd.grad(theirs, draft)
    answer = labels[0] != -100
    slope = draft.detach()[0, answer].clone()
    ours = loss.on_logits(target[0, answer].clone(), slope)
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-5)  # float32 sums over 50 tokens
    assert torch.allclose(slope / answer.sum(), their_slope[0, answer], atol=1e-6)
    assert not their_slope[0, ~answer].any()


@pytest.mark.parametrize("num_rounds", [3, 6])
def test_every_arm_has_every_place_equally_often(num_rounds: int) -> None:
    for place in zip(*orders(num_rounds), strict=True):
        assert {place.count(name) for name in ARMS} == {num_rounds // 3}
    assert len(set(orders(num_rounds))) == num_rounds


def test_every_preset_has_full_batches_and_rounds_with_an_order() -> None:
    for size in SIZES.values():
        assert size.rows % size.batch_rows == 0
        assert len(orders(size.rounds)) == size.rounds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_tokens": 999}, "expected num_tokens 1000 as TRL, got 999"),
        ({"num_steps": 5}, "expected num_steps 4"),
        ({"num_threads": 1}, "expected num_threads 2"),
        ({"first_loss": 2.02}, "expected a first_loss of 2.0000 as TRL, got 2.0200"),
        ({"mean_loss": float("nan")}, "expected a mean_loss of 1.9000"),
    ],
)
def test_arms_that_did_not_do_the_same_are_refused(change: dict[str, Any], said: str) -> None:
    runs = made_up_round().runs
    check_same_steps(runs)
    with pytest.raises(ValueError, match=f"target_cached: {said}"):
        check_same_steps({**runs, "target_cached": replace(runs["target_cached"], **change)})


@pytest.mark.slow
def test_an_arm_that_dies_is_said_so(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    training = Training(nowhere, nowhere, nowhere, batch_rows=1, epochs=1, learning_rate=1e-4, seed=0)
    with pytest.raises(RuntimeError, match="the process of an arm ended with status 1"):
        ArmProcess("target_in_step", training)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_llama(seed=1)
    pair = ["--target", save_checkpoint(target, folder / "target")]
    pair += ["--draft", save_checkpoint(nearby(target, seed=2), folder / "draft")]
    return [*pair, "--preset", "smoke", "--chat-template", "none", "--results", str(folder / "results")]


@needs_trl
@pytest.mark.slow
def test_a_run_leaves_a_record_of_arms_that_took_the_same_steps(asked: list[str], tmp_path: Path) -> None:
    report = tmp_path / "benchmark.json"
    done = run_suites(*asked, SUITE, f"--benchmark-json={report}")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = Path(asked[-1]).rglob("*.jsonl")
    assert str(path) in done.stdout
    header, *rounds = map(json.loads, path.read_text().splitlines())
    assert header["suite"] == "distill_speed"
    assert header["environment"]["trl"] == installed_version("trl")
    assert str(Path(asked[-1]).parent) not in path.read_text()  # no folder of this machine
    assert [each["order"] for each in rounds] == [list(order) for order in orders(2)]
    for each in rounds:
        assert set(each["runs"]) == set(ARMS)
        for name, arm in each["runs"].items():
            assert arm["seconds"] > arm["filling_s"] >= 0
            assert (arm["filling_s"] > 0) == (name == "target_cached")
            assert arm["num_steps"] == 3 * 8 / 4
            assert arm["num_tokens"] > arm["num_steps"]
            assert arm["peak_bytes"] >= arm["start_bytes"] > 0
            assert arm["mean_loss"] != arm["first_loss"]  # something was learnt in between
    assert terminal(derived([path]).tables[0]) in done.stdout
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    cached_s = sum(each["runs"]["target_cached"]["seconds"] for each in rounds)
    assert benchmark["extra_info"]["target_cached_seconds"] == pytest.approx(cached_s)
    assert cached_s <= sum(benchmark["stats"]["data"]) < cached_s + 1  # two messages to a process and back


@pytest.mark.slow
def test_it_runs_only_where_it_is_named(asked: list[str], tmp_path: Path) -> None:
    done = run_suites(*asked, "--results", str(tmp_path), "suites", "-k", "distill_speed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "name suites/test_distill_speed.py to run it" in done.stdout
    assert not list(tmp_path.iterdir())
