"""`specheat distill` as a user types it: a whole run, one line for bad input, and going on after Ctrl-C."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.commands import main
from distill.training.recipes import recipe
from tests.support.children import Command
from tests.support.tiny_distillation import tiny_job
from tests.support.tiny_models import nearby, save_checkpoint, tiny_t5

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]
SMALL = (
    *("--tokens", 1500, "--batch-tokens", 256, "--learning-rate", "5e-3"),
    *("--max-new-tokens", 16, "--batch-rows", 16, "--seed", 1),
)


def arguments(folder: Path) -> tuple[str, ...]:
    job = tiny_job(folder, recipe("offline", 0.7))
    return (
        *("--target", job.target, "--draft", job.start),
        *("--prompts", f"{job.prompts[0]}@2", "--held-out", job.held_out[0]),
        *map(str, SMALL),
    )


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def distill(*given: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main.main(["distill", *map(str, given)])
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("specheat:")]
        return status, said.out, "\n".join(errors)

    return distill


def card_of(out: Path) -> dict:
    return json.loads((out / "card.json").read_text())


def test_a_run_ends_in_a_draft_a_card_and_a_summary(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "drafts" / "t0.7"
    given = (*arguments(tmp_path), "--text-tokens", 400, "--out", out)
    status, said, _ = run("offline", "--data-temperature", 0.7, *given)
    assert status == 0
    card = card_of(out)
    assert card["recipe"]["temperatures"] == [[0.7, 1.0]]
    assert card["prompts"] == ["prompts.jsonl:train"] * 2
    assert card["tokens"]["trained"] >= 1500
    assert f"trained: {card['tokens']['trained']:,} tokens" in said
    for found in card["held_out_acceptance"]:
        assert f"T = {found['temperature']}  alpha_text {found['alpha_text']:.3f}" in said
    assert (out.parent / "texts").is_dir()
    assert run("offline", "--data-temperature", 0.7, *given)[:2] == (0, said)


def test_targets_with_an_encoder_are_distilled_by_the_same_command(run: Run, tmp_path: Path) -> None:
    target = tiny_t5(seed=1)
    models = [save_checkpoint(model, tmp_path / name) for name, model in (("t", target), ("d", nearby(target, seed=2)))]
    texts = arguments(tmp_path)[4:]  # prompts, those held out, and sizes
    given = ("--target", models[0], "--draft", models[1], *texts)
    status, said, errors = run("online", "--data-temperature", 0.5, *given, "--out", tmp_path / "out")
    assert (status, errors) == (0, "")
    assert "alpha_text" in said
    status, _, errors = run("offline", "--data-temperature", 0, "--target", models[0], "--start", "layers:0", "--out", "x")
    assert status == 2
    assert "expected a target that is only a decoder" in errors


def test_options_reach_the_job(run: Run, tmp_path: Path) -> None:
    out, texts = tmp_path / "out", tmp_path / "kept"
    given = [value for value in arguments(tmp_path) if value != "--draft"]
    given.remove(str(tmp_path / "start"))
    status, _, _ = run(
        *("online", "--data-temperature", 1.2, "--loss", "lk", "--loss-temperature", 0.9, "--on-policy", 0.25),
        *("--start", "layers:1,0", "--train", "adapters", "--adapter-rank", 3, "--accumulate", 2),
        *(*given, "--out", out, "--texts", texts),
    )
    assert status == 0
    card = card_of(out)
    assert card["recipe"] | {"loss": card["recipe"]["loss"]["name"]} == {
        "name": "online",
        "temperatures": [[1.2, 1.0]],
        "labels": "soft",
        "loss": "lk",
        "fresh": True,
        "on_policy": 0.25,
    }
    assert card["recipe"]["loss"]["temperature"] == 0.9
    assert (card["layers"], card["trained"], card["adapter_rank"]) == ([1, 0], "adapters", 3)
    assert card["plan"]["accumulate"] == 2
    assert texts.is_dir()


def test_composed_takes_shares_and_any_backend_can_write_the_text(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = (*arguments(tmp_path), "--text-tokens", 150, "--out", out, "--through", "reference")
    assert run("composed", "--mix", "0.7:1,0.9:2", *given)[0] == 0
    assert card_of(out)["recipe"]["temperatures"] == [[0.7, 1.0], [0.9, 2.0]]
    assert card_of(out)["through"] == "reference"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("warm",), "expected a recipe of base, offline"),
        (("offline",), "expected a KD data temperature in 0..2, got None"),
        (("offline", "--data-temperature", "hot"), "expected a number for --data-temperature, got 'hot'"),
        (("offline", "--data-temperature", 3), "expected a KD data temperature in 0..2, got 3.0"),
        (("composed", "--data-temperature", 1), "has no KD data temperature to choose"),
        (("composed", "--mix", "0.7:0"), "expected weights of KD data temperatures > 0, got 0.0"),
        (("composed", "--mix", "0.7:x"), "expected a number for --mix, got 'x'"),
        (("offline", "--data-temperature", 1, "--mix", "0.7"), "expected a recipe that mixes"),
        (("offline", "--data-temperature", 1, "--loss", "tv"), "has no loss to choose"),
        (("offline", "--data-temperature", 1, "--on-policy", 1), "expected fresh text"),
        (("soft", "--data-temperature", 1, "--loss", "mse"), "expected a loss of forward_kl"),
        (("online", "--data-temperature", 1, "--on-policy", 2), "expected an on-policy fraction in 0..1, got 2.0"),
        (("online", "--data-temperature", 1, "--text-tokens", 10), "uses each text once"),
        (("base", "--data-temperature", 1, "--tokens", "many"), "expected a whole number for --tokens, got 'many'"),
        (("base", "--data-temperature", 1, "--tokens", 0), "expected num_tokens >= 1, got 0"),
        (("base", "--data-temperature", 1, "--optimizer", "sgd"), "expected an optimizer of adamw, muon, got 'sgd'"),
        (("base", "--data-temperature", 1, "--vocabulary", 99), "expected a vocabulary of 4 to 24 tokens, got 99"),
        (("online", "--data-temperature", 1, "--vocabulary", 9), "expected the whole vocabulary"),
        (("soft", "--data-temperature", 0, "--loss-temperature", 0, "--vocabulary", 9), "expected the whole vocabulary"),
        (("base", "--data-temperature", 1, "--train", "head"), "expected what is trained of layers, all, adapters"),
        (("base", "--data-temperature", 1, "--held-out", "no.jsonl"), "no.jsonl"),
        (
            ("base", "--data-temperature", 1, "--held-out", "instructions:train", "--prompts", "instructions:train"),
            "expected held-out prompts that are not trained on",
        ),
        (("base", "--data-temperature", 1, "--start", "layers:0,7"), "expected layers of 0..1, got 7"),
        (("base", "--data-temperature", 1, "--start", "layers:a"), "expected a whole number for --start, got 'a'"),
        (("base", "--data-temperature", 1, "--through", "nobody"), "unknown backend 'nobody'"),
        (("base", "--data-temperature", 1, "--device", "gpu"), "expected a device such as cpu"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple, said: str
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")  # loading one would raise another error
    models = arguments(tmp_path)[:2] if "--start" in given else arguments(tmp_path)[:4]
    status, out, error = run(*given, *models, "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert said in error
    assert error.count("specheat:") == 1


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(run: Run, tmp_path: Path) -> None:
    given = ("soft", "--data-temperature", "1", *arguments(tmp_path), "--text-tokens", "400")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    texts = tmp_path / "stopped-texts"
    running = Command("specheat", "distill", *given, "--out", str(stopped), "--texts", str(texts))
    while not texts.exists():  # the models are loaded, and text is being sampled
        assert running.is_running()
        time.sleep(0.01)
    running.press_ctrl_c()
    interrupted = running.result()
    assert interrupted.returncode == 130
    error = interrupted.stderr
    assert error.splitlines()[-1] == f"specheat: interrupted; the same command continues with what is in {stopped}"
    assert "Traceback" not in error

    assert run(*given, "--out", stopped, "--texts", texts)[0] == 0
    assert run(*given, "--out", whole)[0] == 0
    drafts = [(folder / "draft" / "model.safetensors").read_bytes() for folder in (whole, stopped)]
    assert drafts[0] == drafts[1]
