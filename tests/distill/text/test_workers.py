"""Several processes do what one does: same text asked, same weights learned, each file written once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.commands import main
from distill.runs.distillation import distill
from distill.text.table import open_table
from distill.text.workers import ALONE, Workers, launched
from distill.training.loop import TrainPlan, fixed_text, text_labels, train
from distill.training.recipes import recipe
from tests.distill.commands.test_distill import arguments
from tests.support import children
from tests.support.tiny_distillation import in_training, tiny_job, tiny_text

pytestmark = pytest.mark.usefixtures("one_thread")

BIN = Path(sys.executable).parent
TWO = (
    *(str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    *("--no_python", str(BIN / "specheat")),
)


def run_two(*options: object) -> str:
    done = subprocess.run(
        [*TWO, "distill", *map(str, options)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def share_one(*options: object) -> None:
    """Run the command in two processes with the environment that a launcher gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    two = [children.start(run_one, *options, RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]
    for process in two:
        process.join()
    assert [process.exitcode for process in two] == [0, 0]


def run_one(*options: object) -> None:
    assert main.main(["distill", *map(str, options)]) == 0


def card(out: Path) -> dict:
    return json.loads((out / "card.json").read_text())


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    given = ("soft", "--data-temperature", 1, *arguments(tmp_path), "--text-tokens", 400, "--accumulate", 2)
    said = run_two(*given, "--out", tmp_path / "two", "--texts", tmp_path / "texts")
    assert said.count("card:") == 1
    run_one(*given, "--out", tmp_path / "one", "--texts", tmp_path / "texts")
    one, two = (load_file(tmp_path / name / "draft" / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        # bfloat16, whose digits end at 1/256; float32 sums in another order decide which way a weight is rounded.
        assert torch.allclose(weight.float(), two[name].float(), rtol=1 / 128, atol=1e-5)
    assert card(tmp_path / "one")["tokens"] == card(tmp_path / "two")["tokens"]

    # Which text is asked for does not depend on who samples it.
    run_one(*given, "--out", tmp_path / "alone", "--texts", tmp_path / "own")
    for folder in (tmp_path / "own").iterdir():
        tables = [open_table(parent / folder.name) for parent in (tmp_path / "own", tmp_path / "texts")]
        prompts, temperatures = (
            [[asked(row) for row in table.rows] for table in tables]
            for asked in (lambda row: row.prompt.tolist(), lambda row: row.temperature)
        )
        assert prompts[0] == prompts[1]
        assert temperatures[0] == temperatures[1]
        seeds = [load_file(table.folder / "text-00000.safetensors")["seeds"] for table in tables]
        assert torch.equal(*seeds)


def test_two_processes_share_what_the_draft_writes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    options = ("--data-temperature", 1, "--on-policy", 0.5, "--accumulate", 2)
    share_one("online", *options, *arguments(tmp_path), "--out", tmp_path / "two")
    tokens = card(tmp_path / "two")["tokens"]
    assert tokens["trained"] >= 1500
    assert tokens["text_by_draft"] > 0
    assert tokens["text_by_target"] > 0


def test_a_step_that_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    rows = tiny_text(tmp_path / "text", 0.7, num_tokens=50)
    plan = TrainPlan(num_tokens=10, accumulate=3)
    with pytest.raises(ValueError, match="multiple of 2 processes, got 3"):
        train(in_training(), fixed_text(rows, 99, 0), text_labels(), plan, tmp_path, workers=Workers(0, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ValueError, match="torch finds no GPU"), launched("cuda"):
        pass


def test_a_run_that_nobody_launched_is_alone(tmp_path: Path) -> None:
    assert ALONE.is_main
    assert ALONE.spread(lambda asked: [2 * value for value in asked], [1, 2, 3]) == [2, 4, 6]
    assert ALONE.decided_by_main(True)
    distill(tiny_job(tmp_path, recipe("offline", 0.7)), tmp_path / "out", tmp_path / "texts", workers=ALONE)
    assert not torch.distributed.is_initialized()
