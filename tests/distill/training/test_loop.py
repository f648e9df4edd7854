"""Training: a run that was killed ends in the same bits, accumulation is a bigger batch, the schedule is as written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.text.batches import Batch, in_order, shuffled
from distill.text.table import TextRow
from distill.training.loop import (
    CHECKPOINT,
    Labels,
    Position,
    Stream,
    TrainPlan,
    cached_target,
    fixed_text,
    learning_rate,
    running_target,
    step,
    text_labels,
    train,
)
from distill.training.losses import Loss
from distill.training.vocabulary import vocabulary_of
from tests.support.tiny_distillation import in_training, same_bits, tiny_target, tiny_text, weights

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY_STEP = 0.0  # seconds between checkpoints
NEVER = 1e9


class Killed(Exception):
    """What a run sees of SIGKILL."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextRow, ...]:
    return tiny_text(tmp_path_factory.mktemp("text"), 0.7)


def plan(**changed: float) -> TrainPlan:
    return replace(TrainPlan(num_tokens=2000, batch_tokens=200, learning_rate=5e-3, checkpoint_s=EVERY_STEP), **changed)


def soft() -> Labels:
    return cached_target(Loss(), tiny_target().get_output_embeddings().weight.detach())


def killed_after(steps: int) -> object:
    def on_step(position: Position) -> None:
        if position.steps == steps:
            raise Killed

    return on_step


@pytest.mark.parametrize("trained", ["layers", "all", "adapters"])
def test_training_lowers_the_loss_and_leaves_the_rest_alone(rows: tuple[TextRow, ...], tmp_path: Path, trained: str) -> None:
    draft = in_training(trained=trained)
    frozen = {name: w.clone() for name, w in draft.model.named_parameters() if not w.requires_grad}
    position = train(draft, fixed_text(rows, 200, 0), soft(), plan(num_tokens=6000), tmp_path)
    assert sum(position.losses[-5:]) < 0.8 * sum(position.losses[:5])
    assert position.steps == position.batches == len(position.losses)
    for name, weight in draft.model.named_parameters():
        assert name not in frozen or torch.equal(weight, frozen[name])


@pytest.mark.parametrize("changed", [{}, {"accumulate": 2}, {"optimizer": "muon"}], ids=str)
@pytest.mark.parametrize("at_checkpoint", [True, False], ids=["at a checkpoint", "after a checkpoint"])
def test_a_killed_run_ends_in_the_same_bits(
    rows: tuple[TextRow, ...], tmp_path: Path, changed: dict, at_checkpoint: bool
) -> None:
    stream, asked = fixed_text(rows, 200, 0), plan(**changed)
    whole = in_training()
    expected = train(whole, stream, soft(), asked, tmp_path / "whole")
    assert expected.batches > len(shuffled(rows, batch_tokens=200, seed=0)), "the case needs a second epoch"

    folder = tmp_path / "killed"
    with pytest.raises(Killed):  # its last checkpoint is of step 2
        train(in_training(), stream, soft(), asked, folder, on_step=killed_after(3))
    if not at_checkpoint:
        kept = shutil.copy(folder / CHECKPOINT, tmp_path / "kept")
        with pytest.raises(Killed):
            train(in_training(), stream, soft(), replace(asked, checkpoint_s=NEVER), folder, on_step=killed_after(5))
        shutil.copy(kept, folder / CHECKPOINT)
    again = in_training()
    position = train(again, stream, soft(), asked, folder)
    assert same_bits(weights(again), weights(whole))
    assert (position.losses, position.num_tokens) == (expected.losses, expected.num_tokens)


@pytest.mark.parametrize("trained", ["layers", "all"])
def test_muon_turns_matrices_by_orthogonal_steps_and_leaves_the_rest_to_adamw(
    rows: tuple[TextRow, ...], tmp_path: Path, trained: str
) -> None:
    draft = in_training(trained=trained)
    before = weights(draft)
    rate = 1e-2
    train(draft, fixed_text(rows, 200, 0), soft(), plan(num_tokens=1, optimizer="muon", learning_rate=rate), tmp_path)
    for name, value in weights(draft).items():
        moved = value - before[name]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            # AdamW's first step moves every weight that has a gradient by the rate, whatever the size of the gradient.
            sizes = moved.abs()[moved != 0]
            assert sizes.median().item() == pytest.approx(0.01 * rate, rel=0.1), name
        elif value.dim() == 2:
            # One step: every direction moves by about the same, and the whole as far as AdamW would go.
            size = moved.square().mean().sqrt().item() / (0.01 * rate)  # the warm-up's first rate
            assert 0.05 < size < 0.4, name
        else:
            assert torch.allclose(moved.abs(), torch.full_like(moved, 0.01 * rate), rtol=0.05, atol=0), name


def test_labels_on_a_part_of_the_vocabulary_train_as_well(rows: tuple[TextRow, ...], tmp_path: Path) -> None:
    vocabulary = vocabulary_of(rows, 24, 16)
    head = tiny_target().get_output_embeddings().weight.detach()
    for name, labels in (("hard", text_labels(vocabulary)), ("soft", cached_target(Loss(), head, vocabulary))):
        draft = in_training()
        folder = tmp_path / name
        position = train(draft, fixed_text(rows, 200, 0), labels, plan(num_tokens=6000), folder)
        assert sum(position.losses[-5:]) < 0.8 * sum(position.losses[:5])


def test_a_finished_run_trains_no_further(rows: tuple[TextRow, ...], tmp_path: Path) -> None:
    first, again = in_training(), in_training()
    done = train(first, fixed_text(rows, 200, 0), soft(), plan(), tmp_path)
    assert train(again, fixed_text(rows, 200, 0), soft(), plan(), tmp_path).steps == done.steps
    assert same_bits(weights(first), weights(again))


def test_fresh_portions_are_used_once_and_asked_for_when_needed(rows: tuple[TextRow, ...]) -> None:
    asked: list[int] = []

    def portions() -> Iterator[tuple[TextRow, ...]]:
        for index in range(3):
            asked.append(index)
            yield rows[8 * index : 8 * index + 8]

    stream = Stream(portions, 120, 0)
    batches = stream.batches(0)
    first = next(batches)
    assert asked == [0]
    found = [first, *batches]
    assert sorted(id(row.answer) for batch in found for row in batch.rows) == sorted(id(r.answer) for r in rows[:24])
    for start in range(len(found)):
        assert [batch.rows for batch in stream.batches(start)] == [batch.rows for batch in found[start:]]


@pytest.mark.parametrize("labels", ["text", "soft"])
def test_accumulation_equals_one_bigger_batch(rows: tuple[TextRow, ...], labels: str) -> None:
    parts = in_order(rows[:16], batch_tokens=120)
    assert len({part.num_tokens for part in parts}) > 1, "the case needs parts of different weight"
    gradients, losses = [], []
    for batches in (parts, [Batch(rows[:16])]):
        draft = in_training()
        before = weights(draft)
        optimizer = torch.optim.SGD([weight for _, weight in draft.parameters()], lr=1.0)
        on_batch = text_labels() if labels == "text" else soft()
        losses.append(step(draft, [optimizer], batches, on_batch, rate=1.0, clip=1e9))
        gradients.append(torch.cat([(before[name] - value).flatten() for name, value in weights(draft).items()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # products in bf16
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert difference < 0.02  # as above


def test_the_gradient_is_clipped_to_the_norm_asked_for(rows: tuple[TextRow, ...]) -> None:
    draft = in_training()
    before = weights(draft)
    optimizer = torch.optim.SGD([weight for _, weight in draft.parameters()], lr=1.0)
    step(draft, [optimizer], [Batch(rows[:8])], soft(), rate=1.0, clip=0.01)
    moved = torch.cat([(before[name] - value).flatten() for name, value in weights(draft).items()])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_cached_target_says_what_a_running_one_says(rows: tuple[TextRow, ...]) -> None:
    batch = Batch(rows[:8])
    logits = torch.randn(batch.num_tokens, 24, generator=torch.Generator().manual_seed(4))
    found = []
    for labels in (soft(), running_target(Loss(), tiny_target())):
        written = logits.clone()
        found.append((labels(batch)[0](slice(0, batch.num_tokens), written), written))
    (cached, cached_slope), (running, running_slope) = found
    assert torch.allclose(cached, running, atol=1e-4)  # float32, another order of sums
    assert torch.allclose(cached_slope, running_slope, atol=1e-4)


def test_the_schedule_warms_up_and_falls_to_its_end() -> None:
    asked = plan(num_tokens=10_000, warmup=0.1, learning_rate=1.0, final_rate=0.1)
    rates = [learning_rate(asked, done) for done in range(0, 10_001, 100)]
    assert 0 < rates[0] <= 0.01
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)  # half of the way down
    assert rates[-1] == pytest.approx(0.1)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_tokens": 0},
        {"batch_tokens": 0},
        {"accumulate": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"optimizer": "sgd"},
        {"vocabulary": -1},
    ],
)
def test_a_plan_that_cannot_be_is_refused(changed: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        plan(**changed)
