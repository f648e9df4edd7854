"""`specheat kd-matrix`: one line for bad input, and the same output again without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.commands import main
from bench.records.kd_matrix import RECORD, load
from bench.reporting.formats import pipe_table, terminal_page
from bench.reporting.suites.kd_matrix import tables
from distill.training.recipes import recipe
from tests.support.tiny_distillation import tiny_job

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--arms", "offline,magic"), "expected a recipe of"),
        (("--kd-temperatures", "0,hot"), "expected a number for --kd-temperatures, got 'hot'"),
        (("--prompts", "instructions:held_out"), "expected held-out prompts that are not trained on"),
        (("--seeds", "0"), "expected --seeds >= 1, got 0"),
        (("--arms", "offline@0.5"), "expected fresh text"),
        (("--arms", "online@much"), "expected numbers after the @"),
        (("--arms", "offline:data"), "expected soft labels at one KD temperature before :data"),
        (("--arms", "composed@1/2"), "expected 3 shares in 'composed@1/2', one for each temperature, got 2"),
        (("--arms", "Online"), "expected an arm such as"),
        (("--learning-rates", "0.1,0.2"), "expected tuning prompts to choose a learning rate on"),
        (
            ("--tuning", "instructions:held_out", "--tuning", "instructions:held_out"),
            "expected a tuning set for each of 1 domain",
        ),
        (("--start", "layers:0"), "train a base draft first"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], said: str) -> None:
    job = tiny_job(tmp_path, recipe("offline", 0.0))
    start = () if "--start" in given else ("--draft", job.start)
    known = ("--target", job.target, *start, "--prompts", job.prompts[0], "--held-out", job.held_out[0])
    status = main.main(["kd-matrix", *known, *given, "--out", str(tmp_path / "out")])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("specheat:")]
    assert status == 2
    assert len(errors) == 1
    assert said in errors[0]


def test_the_command_prints_the_table_and_again_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tiny_job(tmp_path, recipe("offline", 0.0))
    given = (
        *("kd-matrix", "--target", job.target, "--draft", job.start, "--prompts", job.prompts[0]),
        *("--held-out", job.held_out[0], "--domain", job.held_out[0], "--arms", "offline", "--seeds", "1"),
        *("--kd-temperatures", "0.5", "--decode-temperatures", "0,1", "--tokens", "200", "--batch-tokens", "256"),
        *("--max-new-tokens", "16", "--batch-rows", "16", "--out", str(tmp_path / "out")),
        *("--results", str(tmp_path / "results")),
    )
    assert main.main(list(given)) == 0
    first = capsys.readouterr()
    assert "draft 2 of 2, offline-t0.5-seed0" in first.err
    assert terminal_page(tables(load(tmp_path / "out" / RECORD))) in first.out
    header = json.loads((tmp_path / "out" / RECORD).read_text().splitlines()[0])
    assert header["model_hashes"].keys() == {"target", "draft"}
    assert main.main(list(given)) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "specheat: draft" not in again.err
    (stored,) = (tmp_path / "results").glob("*/kd_matrix/records/*.jsonl")
    assert stored.read_bytes() == (tmp_path / "out" / RECORD).read_bytes()
    assert main.main(["tables", str(tmp_path / "results")]) == 0
    folder = stored.parents[1]
    assert {path.name.split("-")[0] for path in folder.glob("*.*")} == {"README.md", "table.tex", "figure"}
    for table in tables(load(stored)):
        assert pipe_table(table) in (folder / "README.md").read_text()
    assert "kd_matrix/README.md" in (tmp_path / "results" / "README.md").read_text()
    assert main.main(["tables", str(tmp_path / "results"), "--check"]) == 0
