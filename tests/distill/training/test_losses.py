"""Losses of distillation: each against a naive twin written from its definition, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.training.losses import CHUNK_ROWS, LOSSES, Loss, hard_labels, head_loss, soft_labels

ROWS, VOCAB, WIDTH = 5, 11, 7
TEMPERATURES = (1e-3, 0.05, 0.5, 1.0, 2.0)


def naive(loss: Loss, target_logits: Tensor, draft_logits: Tensor) -> Tensor:
    """The textbook definition times T, in float64, with autograd."""
    temperature = loss.temperature
    if temperature == 0:
        return torch.nn.functional.cross_entropy(draft_logits, target_logits.argmax(-1), reduction="none")
    log_p = (target_logits / temperature).log_softmax(-1)
    log_q = (draft_logits / temperature).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()

    def kl(a: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
        return torch.where(a > 0, a * (log_a - log_b), 0).sum(-1)

    alpha = torch.minimum(p, q).sum(-1)
    if loss.name == "forward_kl":
        value = kl(p, log_p, log_q)
    elif loss.name == "reverse_kl":
        value = kl(q, log_q, log_p)
    elif loss.name == "js":
        log_m = torch.logsumexp(
            torch.stack((log_p + torch.tensor(loss.beta).log(), log_q + torch.tensor(1 - loss.beta).log())), 0
        )
        value = loss.beta * kl(p, log_p, log_m) + (1 - loss.beta) * kl(q, log_q, log_m)
    elif loss.name == "tv":
        value = 1 - alpha
    elif loss.name == "log_alpha":
        value = -alpha.clamp(min=torch.finfo(torch.float32).tiny).log()
    else:
        weight = torch.exp(-loss.decay * alpha).detach()
        value = weight * kl(p, log_p, log_q) + (1 - weight) * (1 - alpha)
    return temperature * value


def logits(seed: int, *, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(spread * torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("temperature", [0.0, *TEMPERATURES])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_equal_the_definition(name: str, temperature: float) -> None:
    target, draft = logits(1)
    loss = Loss(name, temperature, beta=0.3)
    draft.requires_grad_()
    expected = naive(loss, target, draft)
    (expected_slope,) = torch.autograd.grad(expected.sum(), draft)
    slope = draft.detach().float()
    value = loss.on_logits(target.float(), slope)
    # float32 of logits around 5, divided by T, leaves an error of 5 x 6e-8 / T in a logarithm, times T in the loss
    assert torch.allclose(value.double(), expected, rtol=1e-5, atol=1e-5)
    scale = expected_slope.abs().amax()
    assert (slope - expected_slope).abs().amax() <= (1e-5 + 3e-6 / max(temperature, 0.1)) * max(scale, 1)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_equals_finite_differences(name: str, temperature: float) -> None:
    target, draft = logits(2)
    loss = Loss(name, temperature, decay=0.0 if name == "lk" else 3.0)  # lk holds its weight fixed: then it is 1
    slope = draft.float()
    loss.on_logits(target.float(), slope)
    step = 1e-6  # float64: truncation 1e-12, rounding 1e-10
    for column in range(VOCAB):
        moved = torch.zeros(VOCAB, dtype=torch.float64)
        moved[column] = step
        difference = (naive(loss, target, draft + moved) - naive(loss, target, draft - moved)) / (2 * step)
        assert torch.allclose(slope[:, column].double(), difference, atol=2e-5)  # float32 of the slope


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_zero_and_flat_where_the_draft_equals_the_target(name: str) -> None:
    target, _ = logits(3)
    slope = target.float()
    value = Loss(name, 0.7).on_logits(target.float(), slope)
    assert value.abs().amax() < 1e-6
    assert slope.abs().amax() < 1e-6


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1000.0])
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_give_finite_losses_and_slopes(name: str, temperature: float) -> None:
    target, draft = logits(4, spread=60.0)
    slope = draft.float()
    value = Loss(name, temperature).on_logits(target.float(), slope)
    assert value.isfinite().all()
    assert slope.isfinite().all()


def test_total_variation_is_one_minus_alpha() -> None:
    target, draft = logits(5)
    alpha = torch.minimum(target.softmax(-1), draft.softmax(-1)).sum(-1)
    assert torch.allclose(Loss("tv").on_logits(target.float(), draft.float()).double(), 1 - alpha, atol=1e-6)


@pytest.mark.parametrize("rows", [1, CHUNK_ROWS, 2 * CHUNK_ROWS + 3])
@pytest.mark.parametrize("hard", [False, True])
def test_the_loss_behind_a_head_equals_the_one_computed_at_once(rows: int, hard: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    hidden, target_hidden = (torch.randn(rows, WIDTH, generator=generator, requires_grad=True) for _ in range(2))
    head, target_head = (torch.randn(VOCAB, WIDTH, generator=generator, requires_grad=True) for _ in range(2))
    labels = torch.randint(VOCAB, (rows,), generator=generator)
    loss = Loss("forward_kl", 0.7)
    draft_logits = hidden @ head.T
    if hard:
        expected = torch.nn.functional.cross_entropy(draft_logits, labels, reduction="sum")
        chunk_loss = hard_labels(labels)
    else:
        expected = naive(loss, (target_hidden @ target_head.T).detach(), draft_logits).sum()
        chunk_loss = soft_labels(loss, target_hidden.detach(), target_head.detach())
    expected_slopes = torch.autograd.grad(3 * expected, (hidden, head))
    value = head_loss(hidden, head, chunk_loss)
    slopes = torch.autograd.grad(3 * value, (hidden, head))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, wanted in zip(slopes, expected_slopes, strict=True):
        assert torch.allclose(got, wanted, atol=1e-3 if rows > CHUNK_ROWS else 1e-4)  # sums of up to 131 float32 rows


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "kl"}, "expected a loss of forward_kl"),
        ({"temperature": -1.0}, "expected a loss temperature of 0 or at least 0.001, got -1.0"),
        ({"temperature": 1e-5}, "expected a loss temperature"),
        ({"temperature": float("nan")}, "expected a loss temperature"),
        ({"beta": 1.0}, "expected beta between 0 and 1"),
        ({"decay": -1.0}, "expected decay >= 0"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Loss(**options)
