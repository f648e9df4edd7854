"""Parts of the vocabulary: what is in them, what they stand for, and that a loss on them is the loss on all."""

from __future__ import annotations

import pytest
import torch

from distill.text.table import TextRow
from distill.training.loop import cached_target
from distill.training.losses import Loss, hard_labels, head_loss, soft_labels
from distill.training.vocabulary import Vocabulary, vocabulary_of
from tests.support.tiny_distillation import tiny_text

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB, WIDTH, ROWS = 60, 8, 40
LABELS = torch.arange(ROWS) % 7 + 20


def vocabulary(num_sampled: int) -> Vocabulary:
    frequent = torch.zeros(VOCAB, dtype=torch.bool)
    frequent[:10] = True
    return Vocabulary(frequent, num_sampled)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextRow, ...]:
    return tiny_text(tmp_path_factory.mktemp("text"), 1.0)


def models() -> tuple[torch.Tensor, ...]:
    """Hidden states and head of a target and of a draft; no token that a sample may miss has most of the probability."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(size, WIDTH, generator=generator) / 2 for size in (ROWS, VOCAB, ROWS, VOCAB))


def slope(hard: bool, asked: Vocabulary | None, labels: torch.Tensor = LABELS) -> tuple[float, torch.Tensor]:
    """Loss and its gradient at the draft's hidden states."""
    target_hidden, target_head, hidden, head = models()
    hidden.requires_grad_()
    part = None if asked is None else asked.part(labels)
    ids = torch.arange(VOCAB) if part is None else part.token_ids_M
    soft = soft_labels(Loss("forward_kl", 0.7), target_hidden, target_head, part)
    value = head_loss(hidden, head[ids], hard_labels(LABELS, part) if hard else soft)
    (gradient,) = torch.autograd.grad(value, hidden)
    return value.item(), gradient


def test_a_part_holds_the_frequent_the_batchs_own_and_a_sample_that_stands_for_the_rest() -> None:
    part = vocabulary(12).part(LABELS)
    kept = set(range(10)) | set(LABELS.tolist())
    ids, weights = part.token_ids_M.tolist(), part.log_weight_M.exp()
    assert ids == sorted(set(ids))
    assert kept < set(ids)
    assert len(ids) == len(kept) + 12
    sampled = torch.tensor([token not in kept for token in ids])
    assert (weights[~sampled] == 1).all()
    assert weights[sampled].sum().item() == pytest.approx(VOCAB - len(kept))


def test_a_part_is_a_function_of_the_batch() -> None:
    once, again, other = (vocabulary(12).part(labels).token_ids_M for labels in (LABELS, LABELS, LABELS.flip(0)))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize("hard", [True, False])
def test_a_part_with_everything_in_it_is_the_whole_vocabulary(hard: bool) -> None:
    value, gradient = slope(hard, vocabulary(VOCAB))
    expected, expected_gradient = slope(hard, None)
    assert value == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("hard", [True, False])
def test_over_many_samples_the_slope_is_that_of_the_whole_vocabulary(hard: bool) -> None:
    # The same tokens in another number: another batch, which draws another sample.
    draws = [slope(hard, vocabulary(25), torch.cat((LABELS, LABELS[:1].repeat(place))))[1] for place in range(60)]
    _, expected = slope(hard, None)
    error = ((torch.stack(draws).mean(0) - expected).norm() / expected.norm()).item()
    one_error = max(((draw - expected).norm() / expected.norm()).item() for draw in draws)
    assert error < 0.1  # the bias of a ratio of sums, and what 60 draws leave of chance
    assert one_error > 2 * error, "the case needs samples that differ"


def test_the_frequent_tokens_of_a_text_are_in_its_parts(rows: tuple[TextRow, ...]) -> None:
    found = vocabulary_of(rows, 24, 8)
    counts = torch.bincount(torch.cat([row.answer for row in rows]), minlength=24)
    assert found.num_sampled == 2
    assert found.frequent.sum() == 6
    assert counts[found.frequent].min() >= counts[~found.frequent].max()


@pytest.mark.parametrize("num_tokens", [3, 25])
def test_a_part_that_cannot_be_is_refused(rows: tuple[TextRow, ...], num_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"expected a vocabulary of 4 to 24 tokens, got {num_tokens}"):
        vocabulary_of(rows, 24, num_tokens)


def test_the_targets_argmax_needs_the_whole_vocabulary() -> None:
    with pytest.raises(ValueError, match="expected the whole vocabulary"):
        cached_target(Loss("forward_kl", 0.0), torch.zeros(VOCAB, WIDTH), vocabulary(12))
