"""Drafts for encoder-decoder targets: text, hidden states, and both kinds of distillation from prompts to a better draft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from backends.certification.scoring import TargetScorer, Text
from distill.runs.distillation import distill
from distill.runs.job import LOG
from distill.text.batches import Batch
from distill.text.sampler import Request, sample_answers
from distill.text.table import Shard, write_shard
from distill.text.teacher import check_head
from distill.training import recipes
from distill.training.loop import TrainPlan
from distill.training.losses import hard_labels, head_loss
from tests.support.tiny_distillation import PROMPTS, tiny_job
from tests.support.tiny_models import nearby, save_checkpoint, tiny_t5

END = 2
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=[False, True], ids=["own head", "shared head"])
def target(request: pytest.FixtureRequest) -> T5ForConditionalGeneration:
    model = tiny_t5(seed=1)
    model.config.scale_decoder_outputs = request.param
    return model


def asks(temperature: float) -> list[Request]:
    """Prompts of several lengths."""
    return [Request(prompt[: 2 + place % 3], temperature, place) for place, prompt in enumerate(PROMPTS)]


@torch.inference_mode()
def test_greedy_text_is_that_of_generate(target: T5ForConditionalGeneration) -> None:
    asked = asks(0.0)
    endless = sample_answers(target, asked, max_new_tokens=12, end_token_ids=())
    ends = [END, int(endless[0].token_ids_A[3])]
    answers = sample_answers(target, asked, max_new_tokens=12, end_token_ids=ends)
    assert len({len(answer.token_ids_A) for answer in answers}) > 1  # some rows were dropped before others
    for ask, answer in zip(asked, answers, strict=True):
        (expected,) = target.generate(torch.tensor([ask.prompt_ids]), max_new_tokens=12, do_sample=False, eos_token_id=ends)
        assert answer.token_ids_A.tolist() == expected[1:].tolist()


@torch.inference_mode()
def test_hidden_states_of_sampling_and_of_a_batch_give_the_distributions(
    target: T5ForConditionalGeneration, tmp_path: Path
) -> None:
    check_head(target)
    asked = asks(1.0)
    answers = sample_answers(target, asked, max_new_tokens=12, end_token_ids=(END,))
    write_shard(tmp_path, 0, asked, answers, seconds=1.0)
    batch = Batch(Shard(tmp_path, 0).rows)
    head = target.get_output_embeddings()
    texts = [Text(ask.prompt_ids, tuple(answer.token_ids_A.tolist()), ()) for ask, answer in zip(asked, answers, strict=True)]
    expected_NV = torch.cat(TargetScorer(target).logits(texts))
    torch.testing.assert_close(head(batch.target_hidden_ND()), expected_NV, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(head(batch.hidden_ND(target)), expected_NV, atol=1e-3, rtol=1e-3)


def test_loss_and_gradients_are_those_of_transformers(target: T5ForConditionalGeneration, tmp_path: Path) -> None:
    asked = asks(1.0)
    write_shard(tmp_path, 0, asked, sample_answers(target, asked, max_new_tokens=12, end_token_ids=(END,)), seconds=1.0)
    batch = Batch(Shard(tmp_path, 0).rows)
    model = nearby(target, seed=2, noise=0.015)
    head_VD = model.get_output_embeddings().weight
    ours = head_loss(batch.hidden_ND(model), head_VD, hard_labels(batch.labels_N()))
    ours.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    theirs = sum(model(row.prompt[None], labels=row.answer[None]).loss * len(row.answer) for row in batch.rows)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, atol=2e-3 * float(weight.grad.abs().max()), rtol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models, prompts and text, which all recipes share."""
    folder = tmp_path_factory.mktemp("models")
    model = tiny_t5(seed=1)
    model.config.scale_decoder_outputs = True  # otherwise it is too decided to be learnt from in seconds
    save_checkpoint(model, folder / "target")
    save_checkpoint(nearby(model, seed=2, noise=0.015), folder / "start")
    lines = [
        {"text": " ".join(f"w{token}" for token in ids), "split": "held_out" if place % 3 == 0 else "train"}
        for place, ids in enumerate(PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("name", ["offline", "soft", "online"])
def test_a_draft_learns(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.runs.distillation.EVALUATE_EVERY_S", -1.0)  # a line of the log after every step
    recipe = recipes.recipe(name, 1.0)
    plan = TrainPlan(num_tokens=5000, batch_tokens=256, learning_rate=1e-3)
    job = tiny_job(folder, recipe, plan=plan, trained="all", text_tokens=0 if recipe.fresh else 2000)
    distill(job, tmp_path, folder / "texts")
    losses = [json.loads(line)["loss"] for line in (tmp_path / LOG).read_text().splitlines()]
    assert len(losses) > 20
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    draft = T5ForConditionalGeneration.from_pretrained(tmp_path / "draft")
    assert draft.config.is_encoder_decoder
