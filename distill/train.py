"""Trains a draft on text: a stream of batches, labels for them, and a loop that can be killed at any time.

The stream is a function of seeds and of how many batches were used, and the optimiser's state is stored with the weights, so a
run that was killed ends in the same bits as one that was not (same machine, same number of threads). Weights and optimiser are
float32; matrix products run in bf16. The schedule counts answer tokens, which is also what budgets are made of.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.batches import Batch, shuffled
from distill.drafts import Draft
from distill.losses import ChunkLoss, Loss, hard_labels, head_loss, soft_labels
from distill.text import Row
from distill.workers import ALONE, Workers

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How a draft is trained, text and labels apart."""

    num_tokens: int  # answer tokens to train on, repetitions counted
    batch_tokens: int = 4096  # places of one forward, prompts and padding included
    accumulate: int = 1  # batches a step, over all processes
    learning_rate: float = 8e-4  # at its peak
    warmup: float = 0.02  # share of num_tokens
    final_rate: float = 0.02  # share of learning_rate at the end of the cosine
    weight_decay: float = 0.0
    clip: float = 1.0  # largest norm of the gradient
    checkpoint_s: float = 180.0

    def __post_init__(self) -> None:
        for name in ("num_tokens", "batch_tokens", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"expected a learning_rate > 0, got {self.learning_rate}")


class Stream(Protocol):
    """Where batches come from."""

    def batches(self, start: int) -> Iterator[Batch]:
        """Endless batches behind the first `start`."""
        ...


@dataclass(frozen=True, slots=True)
class FixedText:
    """The same rows, epoch after epoch, in a new order each."""

    rows: Sequence[Row]
    batch_tokens: int
    seed: int

    def batches(self, start: int) -> Iterator[Batch]:
        return _from_portions(repeat(self.rows), start, batch_tokens=self.batch_tokens, seed=self.seed)


@dataclass(frozen=True, slots=True)
class FreshText:
    """Portions of rows, each used once. The next one is made when it is needed, with what the draft has become by then."""

    portions: Callable[[], Iterator[Sequence[Row]]]
    batch_tokens: int
    seed: int

    def batches(self, start: int) -> Iterator[Batch]:
        return _from_portions(self.portions(), start, batch_tokens=self.batch_tokens, seed=self.seed)


def _from_portions(portions: Iterator[Sequence[Row]], start: int, *, batch_tokens: int, seed: int) -> Iterator[Batch]:
    for index, rows in enumerate(portions):
        batches = shuffled(rows, batch_tokens=batch_tokens, seed=seed + index)
        yield from batches[start:]
        start = max(0, start - len(batches))


Labels = Callable[[Batch], ChunkLoss]


def text_labels(batch: Batch) -> ChunkLoss:
    """Hard labels: the text's own tokens (sequence-level distillation)."""
    return hard_labels(batch.labels_N())


@dataclass(frozen=True, slots=True)
class CachedTarget:
    """Soft labels from the hidden states that came with the text: the target is not run."""

    loss: Loss
    head_VD: Tensor

    def __call__(self, batch: Batch) -> ChunkLoss:
        return soft_labels(self.loss, batch.target_hidden_ND().to(self.head_VD.device), self.head_VD)


@dataclass(frozen=True, slots=True)
class RunningTarget:
    """Soft labels from a forward of the target on every batch."""

    loss: Loss
    target: PreTrainedModel

    @torch.no_grad()
    def __call__(self, batch: Batch) -> ChunkLoss:
        return soft_labels(self.loss, batch.hidden_ND(self.target), self.target.get_output_embeddings().weight.detach())


@dataclass(slots=True)
class Position:
    """How far a run is."""

    steps: int = 0
    batches: int = 0
    num_tokens: int = 0
    seconds: float = 0.0  # in training steps; sampling and measuring apart
    losses: list[float] = field(default_factory=list)  # mean over the answer tokens of each step


def train(
    draft: Draft,
    stream: Stream,
    labels: Labels,
    plan: TrainPlan,
    folder: Path,
    *,
    on_step: Callable[[Position], None] = lambda position: None,
    workers: Workers = ALONE,
) -> Position:
    """Train to the end of the plan; goes on from the checkpoint in `folder` if there is one.

    Raises:  ValueError: the batches of a step cannot be shared out evenly
    """
    if plan.accumulate % workers.count:
        raise ValueError(f"expected accumulate to be a multiple of {workers.count} processes, got {plan.accumulate}")
    optimizer = torch.optim.AdamW(
        [weight for _, weight in draft.parameters()], lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
    )
    position = resume(draft, optimizer, folder)
    batches = stream.batches(position.batches)
    saved_at = time.monotonic()
    while position.num_tokens < plan.num_tokens:
        taken = list(islice(batches, plan.accumulate))
        started = time.perf_counter()
        rate = learning_rate(plan, position.num_tokens)
        loss = step(draft, optimizer, taken, labels, rate=rate, clip=plan.clip, workers=workers)
        position.steps += 1
        position.batches += len(taken)
        position.num_tokens += sum(batch.num_tokens for batch in taken)
        position.seconds += time.perf_counter() - started
        position.losses.append(loss)
        on_step(position)
        due = time.monotonic() - saved_at > plan.checkpoint_s or position.num_tokens >= plan.num_tokens
        if due and workers.is_main:
            checkpoint(draft, optimizer, position, folder)
            saved_at = time.monotonic()
    workers.wait()
    return position


def step(
    draft: Draft,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    labels: Labels,
    *,
    rate: float,
    clip: float,
    workers: Workers = ALONE,
) -> float:
    """One step of the optimiser on some batches; returns the mean loss over their answer tokens."""
    num_tokens = sum(batch.num_tokens for batch in batches)
    head_VD = draft.model.get_output_embeddings().weight
    total = 0.0
    for batch in batches[workers.index :: workers.count]:
        on_chunk = labels(batch)
        with torch.autocast(draft.model.device.type, torch.bfloat16):
            hidden_ND = batch.hidden_ND(draft.model)
        loss = head_loss(hidden_ND, head_VD.bfloat16(), on_chunk) / num_tokens
        loss.backward()
        total += loss.item()
    if workers.count > 1:
        total = _add_up(draft, total, workers)
    torch.nn.utils.clip_grad_norm_([weight for _, weight in draft.parameters()], clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return total


def _add_up(draft: Draft, loss: float, workers: Workers) -> float:
    """Sum of the gradients over the processes, left in the weights, and of the loss."""
    weights = [weight for _, weight in draft.parameters() if weight.grad is not None]
    parts = [weight.grad.flatten() for weight in weights]
    *parts, total = workers.total(torch.cat([*parts, parts[0].new_tensor([loss])])).split([*map(len, parts), 1])
    for weight, part in zip(weights, parts, strict=True):
        weight.grad.copy_(part.view_as(weight))
    return total.item()


def learning_rate(plan: TrainPlan, num_tokens: int) -> float:
    """Linear warm-up from nearly 0, then a cosine down to the final rate, over the tokens of the plan."""
    done = num_tokens / plan.num_tokens
    if done < plan.warmup:
        return plan.learning_rate * max(done / plan.warmup, 0.01)
    along = (done - plan.warmup) / (1 - plan.warmup)
    return plan.learning_rate * (plan.final_rate + (1 - plan.final_rate) * (1 + math.cos(math.pi * along)) / 2)


def checkpoint(draft: Draft, optimizer: torch.optim.Optimizer, position: Position, folder: Path) -> None:
    """Replace the checkpoint in one move, so that a kill in between loses nothing."""
    state = {
        "weights": {name: weight.detach() for name, weight in draft.parameters()},
        "optimizer": optimizer.state_dict(),
        "position": asdict(position),
    }
    scratch = folder / f".{CHECKPOINT}.{os.getpid()}"
    torch.save(state, scratch)
    os.replace(scratch, folder / CHECKPOINT)


def resume(draft: Draft, optimizer: torch.optim.Optimizer, folder: Path) -> Position:
    """Take weights, optimiser and position from the checkpoint; a folder without one begins at 0."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CHECKPOINT).is_file():
        return Position()
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, map_location=draft.model.device, weights_only=True)
    with torch.no_grad():
        for name, weight in draft.parameters():
            weight.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    return Position(**state["position"])
