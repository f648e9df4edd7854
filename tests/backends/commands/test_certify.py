"""`specheat certify` as a user types it, on a tiny pair: verdicts, exit codes, and one line for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.certification.samples import read_samples
from backends.engines import reference
from bench.analysis.certificate import tokens_for_lossless
from bench.commands import main
from bench.protocols import Capabilities
from bench.records.decoding import DecodeRequest, Generation, ModelPair
from tests.support.tiny_models import VOCAB_SIZE, nearby, save_checkpoint, tiny_llama, tiny_t5

END = 2  # of the tiny tokenizer
Run = Callable[..., tuple[int, str, str]]


class Hot(reference.ReferenceBackend):
    """Decodes hotter than requested, and not quite greedily at T = 0."""

    capabilities = Capabilities(rules=frozenset({"rejection"}))

    def generate(self, request: DecodeRequest) -> Generation:
        return super().generate(replace(request, temperature=1.5 * request.temperature + 0.1))


def hot(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> Hot:
    healthy = reference.load(pair, device=device, options=options)
    return Hot(healthy.target.model, healthy.draft.model)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_llama(seed=1, num_layers=1)
    target.generation_config.eos_token_id = END
    draft = nearby(target, seed=2)
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"w{3 + i} w{9 + i} w5\n" for i in range(8)))
    return (
        *("--target", save_checkpoint(target, folder / "target"), "--draft", save_checkpoint(draft, folder / "draft")),
        *("--dtype", "float32", "--prompts", str(prompts), "--chat-template", "none"),
    )


@pytest.fixture
def run(pair: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> Run:

    def certify(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main.main(["certify", *pair, *map(str, arguments)])
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("specheat:")]
        return status, said.out, "\n".join(errors)

    return certify


def test_a_healthy_decoder_is_lossless_at_the_default_number_of_tokens(run: Run) -> None:
    status, out, _ = run("--temperature", 0.8, "--json")
    said = json.loads(out)
    assert (status, said["verdict"]) == (0, "LOSSLESS")
    assert said["num_tokens"] >= tokens_for_lossless()
    assert said["slots"][0]["name"] == "all tokens"
    assert said["slots"][-1]["name"] == "bonus slot"
    assert said["decoder"] == "reference rejection"


def test_an_inflated_target_is_one_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECHEAT_CACHE", str(tmp_path))
    status, out, _ = run("--temperature", 0.8, "--json", "--inflate", "layers=2,hidden=64")
    said = json.loads(out)
    assert (status, said["verdict"]) == (0, "LOSSLESS")
    assert "inflated" in said["pair"]


def test_encoder_decoder_pairs_are_judged_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tiny_t5(seed=1, num_layers=1)
    # Little noise, so that long drafts are accepted and few rounds decode many tokens.
    draft = nearby(target, seed=2, noise=0.01)
    folders = [save_checkpoint(model, tmp_path / name) for name, model in (("t", target), ("d", draft))]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w3 w9 w5\nw4 w6\n")
    models = ("--target", folders[0], "--draft", folders[1], "--dtype", "float32", "--prompts", str(prompts))
    # Texts are so random here that the bound of the temperature takes more tokens than D: 8,000 fail 3 times in 1,000.
    tokens = ("--tokens", "8000")
    status = main.main(["certify", *models, "--chat-template", "none", "--temperature", "1.5", *tokens, "--json"])
    assert (status, json.loads(capsys.readouterr().out)["verdict"]) == (0, "LOSSLESS")


def test_a_healthy_decoder_on_few_tokens_is_inconclusive_and_says_how_many_it_needs(run: Run) -> None:
    status, out, _ = run("--temperature", 0.8, "--tokens", 200)
    assert status == 3
    assert out.startswith("INCONCLUSIVE: reference rejection, target+draft float32, T = 0.8, ")
    assert f"about {tokens_for_lossless()} tokens are needed" in out


def test_a_decoder_that_runs_hot_is_lossy_and_the_reason_is_said(run: Run) -> None:
    status, out, _ = run("--temperature", 0.8, "--tokens", 600, "--backend", f"{__name__}:hot")
    assert status == 1
    assert "tokens are too unlikely: the temperature was higher than requested" in out


def test_at_temperature_0_a_greedy_decoder_is_lossless_and_a_warm_one_is_not(run: Run) -> None:
    status, out, _ = run("--temperature", 0)
    assert (status, out.split(":")[0]) == (0, "LOSSLESS")
    assert "tau = " in out
    status, out, _ = run("--temperature", 0, "--backend", f"{__name__}:hot")
    assert status == 1
    assert "texts differ from the autoregressive ones" in out
    assert "are not the target's best" in out


def samples_file(path: Path, pair: tuple[str, ...], *, temperature: float, num_texts: int) -> Path:
    """Write outputs of the reference decoder as an engine does that drops the end token."""
    models = ModelPair("tiny", pair[1], pair[3], "causal", "float32")
    backend = reference.load(models, device="cpu", options={})
    rows = []
    for index in range(num_texts):
        request = DecodeRequest((1, 5 + index % 8), 48, 2, temperature, seed=index, eos_token_ids=(END,))
        made = backend.generate(request)
        dropped = made.finish_reason == "stop"
        rows.append(
            {
                "prompt_ids": request.prompt_ids,
                "token_ids": made.token_ids[: -1 if dropped else None],
                "finish_reason": made.finish_reason,
                "rounds": [(r.drafted, r.accepted, r.emitted) for r in made.rounds or ()],
            }
        )
    assert 0 < sum(row["finish_reason"] == "stop" for row in rows) < num_texts
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_samples_of_an_engine_never_seen_are_judged_with_their_end_tokens_put_back(
    run: Run, pair: tuple[str, ...], tmp_path: Path
) -> None:
    file = samples_file(tmp_path / "samples.jsonl", pair, temperature=1.0, num_texts=60)
    status, out, _ = run("--temperature", 1, "--samples", file, "--json")
    said = json.loads(out)
    texts = [json.loads(line) for line in file.read_text().splitlines()]
    assert status in (0, 3)
    assert said["num_tokens"] == sum(len(t["token_ids"]) + (t["finish_reason"] == "stop") for t in texts)
    assert (said["decoder"], said["num_texts"], said["decode_s"]) == ("samples.jsonl", 60, None)
    status, out, _ = run("--temperature", 0.5, "--samples", file)
    assert status == 1
    assert "tokens are far too unlikely" in out


def test_rounds_may_or_may_not_have_counted_a_dropped_end_token(pair: tuple[str, ...], tmp_path: Path) -> None:
    models = ModelPair("tiny", pair[1], pair[3], "causal", "float32")
    file = tmp_path / "samples.jsonl"
    closed, bonus, counted = [[2, 1, 2]], [[2, 2, 2]], [[2, 1, 2], [2, 0, 1]]
    stopped = {"prompt_ids": [1], "token_ids": [3, 4, 5], "finish_reason": "stop"}
    file.write_text("".join(f"{json.dumps(stopped | {'rounds': rounds})}\n" for rounds in (closed, bonus, counted)))
    texts = read_samples(file, models)
    assert {text.token_ids for text in texts} == {(3, 4, 5, END)}
    assert [text.slots for text in texts] == [(0, 1, 2, 1), (0, 1, 2, -1), (0, 1, 2, 1)]


GOOD: dict[str, Any] = {"prompt_ids": [1, 2], "token_ids": [3, 4], "finish_reason": "length"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "Input data was truncated"),
        ("[1]", "Expected `object`, got `array`"),
        ({"prompt_ids": [1]}, "Object missing required field `token_ids`"),
        (GOOD | {"text": "hello"}, "Object contains unknown field `text`"),
        (GOOD | {"prompt_ids": []}, "Expected `array` of length >= 1 - at `$.prompt_ids`"),
        (GOOD | {"token_ids": []}, "expected token_ids to be a list of at least one id, got []"),
        (GOOD | {"token_ids": "34"}, "Expected `array`, got `str` - at `$.token_ids`"),
        (GOOD | {"token_ids": [VOCAB_SIZE]}, f"expected ids of 0 to {VOCAB_SIZE - 1} in token_ids, got {VOCAB_SIZE}"),
        (GOOD | {"token_ids": [-1]}, "Expected `int` >= 0 - at `$.token_ids[0]`"),
        (GOOD | {"token_ids": [True]}, "Expected `int`, got `bool` - at `$.token_ids[0]`"),
        (GOOD | {"finish_reason": "eos"}, "expected a finish_reason of stop or length, got 'eos'"),
        (GOOD | {"rounds": 3}, "Expected `array | null`, got `int` - at `$.rounds`"),
        (GOOD | {"rounds": [[2, 1]]}, "Expected `array` of length 3 - at `$.rounds[0]`"),
        (GOOD | {"rounds": [[2, 3, 1]]}, "expected accepted <= drafted and emitted of accepted or one more"),
        (GOOD | {"rounds": [[2, 2, 3]]}, "expected rounds that emit 1 or 2 tokens, got 3"),
        (GOOD | {"token_ids": [3] * 300}, "expected at most 256 tokens with the prompt, got 302"),
    ],
)
def test_a_bad_line_is_named_with_its_number(run: Run, tmp_path: Path, line: Any, complaint: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{line if isinstance(line, str) else json.dumps(line)}\n")
    status, out, err = run("--temperature", 1, "--samples", file)
    assert (status, out) == (2, "")
    assert err.startswith(f"specheat: error: samples.jsonl, line 2: {complaint}")


def test_a_missing_end_token_that_could_be_any_of_several_is_refused(run: Run, pair: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "target"
    target = tiny_llama(seed=1, num_layers=1)
    target.generation_config.eos_token_id = [END, 7]
    save_checkpoint(target, folder)
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(GOOD | {"finish_reason": "stop"}))
    status, _, err = run("--temperature", 1, "--samples", file, "--target", folder)
    assert status == 2
    assert "its end token is missing, and the target has 2" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--temperature", -1), "expected a temperature >= 0"),
        (("--temperature", "hot"), "expected a number"),
        (("--temperature", "0,1"), "expected one --temperature, got 2"),
        (("--temperature", 1, "--rule", "block", "--rule", "one_hot"), "expected one --rule, got 2"),
        (("--temperature", 1, "--num-draft-tokens", "2,3"), "expected one --num-draft-tokens, got 2"),
        (("--temperature", 1, "--tokens", 0), "expected --tokens >= 1, got 0"),
        (("--temperature", 1, "--backend", "refrence"), "did you mean 'reference'?"),
        (("--temperature", 1, "--rule", "hope"), "expected an acceptance rule that reference has"),
        (("--temperature", 1, "--samples", "s.jsonl", "--tokens", 9), "expected --samples, or --backend and --tokens"),
        (("--temperature", 1, "--samples", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run: Run, arguments: tuple[object, ...], complaint: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("specheat: error: ")
    assert complaint in err
    assert "\n" not in err
