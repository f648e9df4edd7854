"""A whole job on tiny models: it ends in a draft and a card, goes on after a kill, and shares its text."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backends.engines import reference
from bench.prompts import sets as prompt_sets
from bench.records.decoding import DecodeRequest, ModelPair
from distill.evaluation.held_out import TEMPERATURES, held_out_text, measure
from distill.runs.distillation import distill
from distill.runs.job import CARD, DRAFT, LOG, Job, check_held_out
from distill.runs.training_text import PORTION_ROWS
from distill.text.batches import Batch
from distill.text.prompts import encoded
from distill.text.table import TEXT, open_table
from distill.text.teacher import load_teacher
from distill.training.loop import CHECKPOINT, TrainPlan
from distill.training.losses import Loss
from distill.training.recipes import Recipe, recipe
from tests.support import children
from tests.support.tiny_distillation import END, tiny_job

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPES = {
    "offline": recipe("offline", 0.7),
    "composed": recipe("composed"),
    "soft": recipe("soft", 1.0),
    "online": recipe("online", 0.7),
    "half": replace(recipe("online", 0.7), on_policy=0.5),
    "fresh": replace(recipe("online", 0.7), on_policy=0.0),
    "data": replace(recipe("online", 0.7), loss=Loss(temperature=0.7)),
}


def slow_job(folder: Path, recipe: Recipe) -> Job:
    """Leaves a checkpoint after every step."""
    plan = TrainPlan(num_tokens=3000, batch_tokens=256, learning_rate=5e-3, checkpoint_s=0.0)
    return tiny_job(folder, recipe, plan=plan)


def do_slow_job(folder: Path, name: str, out: Path) -> None:
    distill(slow_job(folder, RECIPES[name]), out, out.parent / "texts")


def saved(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / DRAFT / "model.safetensors")


def test_the_recipes_make_drafts_that_are_accepted_more(tmp_path: Path) -> None:
    for name, of_case in RECIPES.items():
        job = tiny_job(tmp_path, of_case, plan=TrainPlan(num_tokens=2000, batch_tokens=256, learning_rate=5e-3))
        out = tmp_path / name
        card = distill(job, out, tmp_path / "texts")
        assert card == json.loads((out / CARD).read_text())
        assert card["recipe"] == json.loads(json.dumps(card["recipe"]))
        assert card["recipe"]["name"] == of_case.name
        assert card["recipe"]["on_policy"] == of_case.on_policy
        assert card["tokens"]["trained"] >= 2000
        assert not (out / CHECKPOINT).exists()
        log = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
        assert log[0]["tokens"] < 400, "the first measurement came late"
        before, after = (
            sum(text["alpha_text"] for text in texts) for texts in (log[0]["held_out"], card["held_out_acceptance"])
        )
        assert after > before
        by_target, by_draft = (card["tokens"].get(f"text_by_{writer}", 0) for writer in ("target", "draft"))
        assert (by_target > 0) == (of_case.on_policy < 1)
        assert (by_draft > 0) == (of_case.on_policy > 0)
        assert card["distinct_prompts"] == 16  # all of them
        if of_case.fresh:
            by, text = card["tokens"], by_target + by_draft
            assert by["trained"] <= text < by["trained"] + 16 * 16  # the last portion is 16 rows of at most 16 tokens
            assert by_draft / text == pytest.approx(of_case.on_policy, abs=0.2)
        assert str(tmp_path) not in (out / CARD).read_text()


def test_the_card_says_what_measuring_the_saved_draft_says(tmp_path: Path) -> None:
    from distill.training import drafts

    job = tiny_job(tmp_path, recipe("offline", 0.7))
    card = distill(job, tmp_path / "out", tmp_path / "texts")
    teacher = load_teacher(Path(job.target), device="cpu")
    held_out = held_out_text(teacher, job.held_out, tmp_path / "texts")
    saved = drafts.cast(drafts.load(tmp_path / "out" / DRAFT, dtype=torch.bfloat16), teacher.model.dtype)
    found = measure(saved, teacher, held_out)
    for of_card, text in zip(card["held_out_acceptance"], found, strict=True):
        assert of_card["alpha_text"] == pytest.approx(text.alpha_text, abs=1e-6)
        assert (of_card["temperature"], of_card["num_prompts"]) == (text.temperature, 8)


def test_held_out_text_answers_every_prompt_once_at_each_temperature(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("offline", 0.7))
    teacher = load_teacher(Path(job.target), device="cpu")
    prompts = encoded(prompt_sets.load(job.held_out[0]), teacher.tokenizer)
    found = held_out_text(teacher, job.held_out, tmp_path / "texts")
    assert [text.temperature for text in found] == list(TEMPERATURES)
    for text in found:
        assert tuple(tuple(row.prompt.tolist()) for row in text.rows) == prompts
        assert {row.temperature for row in text.rows} == {text.temperature}


@pytest.mark.parametrize("name", ["soft", "half"])
def test_a_killed_job_goes_on_and_ends_in_the_same_bits(tmp_path: Path, name: str) -> None:
    job = slow_job(tmp_path, RECIPES[name])
    expected = distill(job, tmp_path / "whole" / "out", tmp_path / "whole" / "texts")

    out = tmp_path / "killed" / "out"
    process = children.start(do_slow_job, tmp_path, name, out)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists() or tokens_done(out) < 800:
        assert process.is_alive(), "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (out / CARD).exists()

    card = distill(job, out, tmp_path / "killed" / "texts")
    whole = saved(tmp_path / "whole" / "out")
    assert all(torch.equal(value, whole[key]) for key, value in saved(out).items())
    assert card["tokens"] == expected["tokens"]
    assert card["held_out_acceptance"] == expected["held_out_acceptance"]


def tokens_done(out: Path) -> int:
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    return state["position"]["num_tokens"]


def test_a_finished_job_is_not_done_again_and_another_one_is_refused(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("offline", 0.7))
    card = distill(job, tmp_path / "out", tmp_path / "texts")
    written = (tmp_path / "out" / CARD).stat().st_mtime_ns
    assert distill(job, tmp_path / "out", tmp_path / "texts") == card
    assert (tmp_path / "out" / CARD).stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="holds another job"):
        distill(replace(job, seed=1), tmp_path / "out", tmp_path / "texts")


def test_a_run_is_the_same_beside_a_longer_table_of_its_text(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("offline", 0.7))
    alone = distill(job, tmp_path / "alone", tmp_path / "texts")
    distill(replace(job, text_tokens=2000), tmp_path / "longer", tmp_path / "texts")
    again = distill(job, tmp_path / "again", tmp_path / "texts")
    assert all(torch.equal(value, saved(tmp_path / "alone")[key]) for key, value in saved(tmp_path / "again").items())
    assert again["tokens"] == alone["tokens"]


def test_text_can_come_through_a_backend(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("soft", 0.7), text_tokens=200)
    pair = ModelPair("tiny", job.target, job.start, "causal", "bfloat16")
    backend = reference.load(pair, device="cpu", options={})
    card = distill(job, tmp_path / "out", tmp_path / "texts", backend=backend)
    assert card["through"] == "reference"
    (folder,) = (plan.parent for plan in (tmp_path / "texts").glob("*/plan.json") if "held-out" not in str(plan))
    table = open_table(folder)
    seeds = [seed for shard in table.shards for seed in load_file(folder / TEXT.format(shard.index))["seeds"].tolist()]
    for row, seed in list(zip(table.rows, seeds, strict=True))[:5]:
        request = DecodeRequest(tuple(row.prompt.tolist()), 16, temperature=0.7, seed=seed, eos_token_ids=(END,))
        assert tuple(row.answer.tolist()) == backend.generate(request).token_ids
        assert row.hidden_AD().shape == (len(row.answer), 32)  # filled in by a forward


def test_a_chat_target_writes_prompts_of_its_own(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("offline", 0.7), prompts=(), self_written=12)
    template = Path(job.target) / "chat_template.jinja"
    with pytest.raises(ValueError, match="its tokenizer has none"):
        distill(job, tmp_path / "out", tmp_path / "texts")
    template.write_text("{% for message in messages %}w5 {{ message['content'] }} w6{% endfor %}")
    distill(job, tmp_path / "out", tmp_path / "texts")
    plans = {path.parent: json.loads(path.read_text()) for path in (tmp_path / "texts").glob("*/plan.json")}
    (folder,) = (folder for folder, plan in plans.items() if plan["max_new_tokens"] == job.max_new_tokens)
    prompts = {tuple(row.prompt.tolist()) for row in open_table(folder).rows}
    assert len(prompts) > 2
    assert all(prompt[0] == 5 and prompt[-1] == 6 and END not in prompt for prompt in prompts)


def test_adapters_and_layers_of_the_target_are_trained_too(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("soft", 1.0), trained="adapters")
    distill(job, tmp_path / "adapters", tmp_path / "texts")
    start = load_file(Path(job.start) / "model.safetensors")
    merged = saved(tmp_path / "adapters")
    moved = {name for name, value in merged.items() if not torch.equal(value, start[name].bfloat16())}
    assert moved == {name for name in start if "_proj" in name}
    assert (tmp_path / "adapters" / "adapters" / "adapter_model.safetensors").is_file()

    distill(replace(job, start="", layers=(1,), trained="all"), tmp_path / "layers", tmp_path / "texts")
    assert json.loads((tmp_path / "layers" / DRAFT / "config.json").read_text())["num_hidden_layers"] == 1


def test_text_of_the_draft_has_the_states_of_the_target_and_follows_the_draft_as_it_learns(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("online", 0.7), batch_rows=64)
    distill(job, tmp_path / "out", tmp_path / "texts")
    table = open_table(tmp_path / "out" / "text_by_draft")
    assert max(len(shard.prompts) for shard in table.shards) == PORTION_ROWS
    target, start = load_teacher(Path(job.target), device="cpu").model, load_teacher(Path(job.start), device="cpu").model
    for row in table.rows[:8]:
        with torch.inference_mode():
            expected, of_draft = (Batch((row,)).hidden_ND(model) for model in (target, start))
        assert torch.allclose(row.hidden_AD().float(), expected.float(), atol=0.05)
        assert not torch.allclose(row.hidden_AD().float(), of_draft.float(), atol=0.05)


def test_few_tokens_of_a_shard_count_as_few(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("soft", 0.7), text_tokens=40, batch_rows=16)
    card = distill(job, tmp_path / "out", tmp_path / "texts")
    assert 40 <= card["tokens"]["text_by_target"] < 40 + job.max_new_tokens
    assert card["distinct_prompts"] < 16
    assert card["tokens"]["trained"] >= job.plan.num_tokens


def test_a_draft_can_learn_the_answers_that_stand_beside_the_prompts(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("reference"))
    file = Path(job.prompts[0].rpartition(":")[0])
    with pytest.raises(ValueError, match=r"prompts\.jsonl:train, line 2: expected an answer to train on, got none"):
        distill(job, tmp_path / "out", tmp_path / "texts")
    lines = [json.loads(line) | {"output": "w7 w8 w9"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = distill(job, tmp_path / "out", tmp_path / "texts")
    assert card["tokens"] == {"reference_answers": 16 * 4, "trained": card["tokens"]["trained"]}
    assert {tuple(row.answer.tolist()) for row in open_table(tmp_path / "out" / "reference_answers").rows} == {(7, 8, 9, END)}
    log = [json.loads(line) for line in (tmp_path / "out" / LOG).read_text().splitlines()]
    assert log[0]["loss"] > 1
    with pytest.raises(ValueError, match="expected sets and no self-written prompts"):
        replace(job, self_written=3)


def test_held_out_prompts_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("offline", 0.7))
    check_held_out(job)
    mixed = replace(job, prompts=(*job.prompts, *job.held_out))
    with pytest.raises(ValueError, match="got 8 of 8 that are"):
        distill(mixed, tmp_path / "out", tmp_path / "texts")


def test_answers_that_outgrow_the_models_are_refused(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, recipe("offline", 0.7), max_new_tokens=300)
    with pytest.raises(ValueError, match="at most 256 tokens, got 304"):
        distill(job, tmp_path / "out", tmp_path / "texts")


@pytest.mark.parametrize(
    "changed",
    [
        {"text_tokens": 0},
        {"batch_rows": 0},
        {"max_new_tokens": 0},
        {"adapter_rank": 0},
        {"self_written": -1},
        {"trained": "head"},
        {"start": ""},
        {"layers": (0,)},
        {"prompts": ()},
        {"held_out": ()},
    ],
)
def test_a_job_that_cannot_be_is_refused(tmp_path: Path, changed: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        tiny_job(tmp_path, recipe("offline", 0.7), **changed)
