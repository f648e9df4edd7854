"""Train a draft on text: a stream of batches, labels for them, and a loop that can be killed at any time.

A killed run ends in the same bits as one that was not killed, on the same machine with the same number of threads:

- the stream depends only on seeds and on the number of batches used, so it continues at that number;
- the checkpoint holds weights, optimiser state and position of one moment, and is replaced in one move;
- the learning rate, and the sample of the vocabulary, depend on the position and on the batch, not on the past.

Weights and optimiser are float32. Matrix products run in bfloat16 where that is fast. Schedule and budget count answer tokens.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, repeat
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from bench.records.storage import write_atomically
from distill.text.batches import Batch, shuffled
from distill.text.generation import product_dtype
from distill.text.table import TextRow
from distill.text.workers import ALONE, Workers
from distill.training.drafts import Draft
from distill.training.losses import ChunkLoss, Loss, hard_labels, head_loss, soft_labels
from distill.training.vocabulary import Vocabulary, VocabularyPart

CHECKPOINT = "checkpoint.pt"
Optimizers = list[Optimizer]  # one for each kind of weight


def adamw(draft: Draft, learning_rate: float) -> Optimizers:
    return [_adamw([weight for _, weight in draft.parameters()], learning_rate)]


def _adamw(weights: Sequence[Tensor], learning_rate: float) -> Optimizer:
    return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0, fused=True)


def muon(draft: Draft, learning_rate: float) -> Optimizers:
    """Return Muon for the matrices, with updates as large as AdamW's, and AdamW for the rest.

    Embedding and head have a row for each token, most of which a batch does not contain. So they count as the rest.

    Source:  Jordan et al. 2024, kellerjordan.github.io/posts/muon; the size of updates: Liu et al. 2025, arXiv 2502.16982
    """
    of_tokens = {id(each.weight) for each in (draft.model.get_input_embeddings(), draft.model.get_output_embeddings())}
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for _, weight in draft.parameters():
        (matrices if weight.dim() == 2 and id(weight) not in of_tokens else rest).append(weight)
    options = {"lr": learning_rate, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    return [torch.optim.Muon(matrices, **options), *([_adamw(rest, learning_rate)] if rest else ())]


OPTIMIZERS: dict[str, Callable[[Draft, float], Optimizers]] = {"adamw": adamw, "muon": muon}


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How a draft is trained, apart from text and labels."""

    num_tokens: int  # answer tokens to train on, repetitions included
    batch_tokens: int = 4096  # places of one forward, with prompts and padding
    accumulate: int = 1  # batches per step, over all processes
    learning_rate: float = 8e-4  # at the peak
    warmup: float = 0.1  # share of num_tokens
    final_rate: float = 0.02  # share of learning_rate at the end of the cosine
    clip: float = 1.0  # largest allowed norm of the gradient
    optimizer: str = "adamw"  # or muon
    vocabulary: int = 0  # tokens of the head in the loss of a batch (`distill.training.vocabulary`); 0: all
    checkpoint_s: float = 180.0

    def __post_init__(self) -> None:
        for name in ("num_tokens", "batch_tokens", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"expected an optimizer of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.vocabulary < 0:
            raise ValueError(f"expected vocabulary >= 0, got {self.vocabulary}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"expected a learning_rate > 0, got {self.learning_rate}")


@dataclass(frozen=True, slots=True)
class Stream:
    """Batches of portions of rows. A portion is made only when it is needed: the draft of that moment may write it."""

    portions: Callable[[], Iterator[Sequence[TextRow]]]
    batch_tokens: int
    seed: int

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield the batches after the first `start`. The portions before are read again, to count their batches."""
        for index, rows in enumerate(self.portions()):
            batches = shuffled(rows, batch_tokens=self.batch_tokens, seed=self.seed + index)
            yield from batches[start:]
            start = max(0, start - len(batches))


def fixed_text(rows: Sequence[TextRow], batch_tokens: int, seed: int) -> Stream:
    """Return a stream of the same rows in every epoch, each time in another order."""
    return Stream(lambda: repeat(rows), batch_tokens, seed)


BatchLoss = tuple[ChunkLoss, VocabularyPart | None]  # the part of the vocabulary whose logits the loss takes; None: all
Labels = Callable[[Batch], BatchLoss]


def text_labels(vocabulary: Vocabulary | None = None) -> Labels:
    """Return hard labels: the text's own tokens (sequence-level distillation)."""

    def on_batch(batch: Batch) -> BatchLoss:
        part = None if vocabulary is None else vocabulary.part(batch.labels_N())
        return hard_labels(batch.labels_N(), part), part

    return on_batch


def cached_target(loss: Loss, head_VD: Tensor, vocabulary: Vocabulary | None = None) -> Labels:
    """Return soft labels from the hidden states that are stored with the text: the target does not run.

    Raises:  ValueError: a part of the vocabulary at loss T 0, where the target's argmax may be outside of it
    """
    if vocabulary is not None and loss.temperature == 0:
        raise ValueError("expected the whole vocabulary for soft labels at loss temperature 0, got a part of it")

    def on_batch(batch: Batch) -> BatchLoss:
        hidden_ND = batch.target_hidden_ND().to(head_VD.device, head_VD.dtype)
        part = None if vocabulary is None else vocabulary.part(batch.labels_N())
        return soft_labels(loss, hidden_ND, head_VD, part), part

    return on_batch


def running_target(loss: Loss, target: PreTrainedModel) -> Labels:
    """Return soft labels from a forward of the target on every batch, for text without stored hidden states."""
    head_VD = target.get_output_embeddings().weight.detach()
    return torch.no_grad()(lambda batch: (soft_labels(loss, batch.hidden_ND(target), head_VD), None))


@dataclass(slots=True)
class Position:
    """How far a run has come."""

    steps: int = 0
    batches: int = 0
    num_tokens: int = 0
    seconds: float = 0.0  # in training steps, without sampling and measuring
    losses: list[float] = field(default_factory=list)  # mean over the answer tokens of each step

    def recent_loss(self, num_steps: int = 20) -> float:
        recent = self.losses[-num_steps:]
        return sum(recent) / len(recent)


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
    """Train to the end of the plan, from the checkpoint in `folder` if there is one.

    Raises:  ValueError: the batches of a step cannot be divided evenly among the processes
    """
    if plan.accumulate % workers.count:
        raise ValueError(f"expected accumulate to be a multiple of {workers.count} processes, got {plan.accumulate}")
    optimizers = OPTIMIZERS[plan.optimizer](draft, plan.learning_rate)
    position = resume(draft, optimizers, folder)
    batches = stream.batches(position.batches)
    saved_at = time.monotonic()
    while position.num_tokens < plan.num_tokens:
        taken = list(islice(batches, plan.accumulate))
        started = time.perf_counter()
        rate = learning_rate(plan, position.num_tokens)
        loss = step(draft, optimizers, taken, labels, rate=rate, clip=plan.clip, workers=workers)
        position.steps += 1
        position.batches += len(taken)
        position.num_tokens += sum(batch.num_tokens for batch in taken)
        position.seconds += time.perf_counter() - started
        position.losses.append(loss)
        on_step(position)
        due = time.monotonic() - saved_at > plan.checkpoint_s or position.num_tokens >= plan.num_tokens
        if due and workers.is_main:
            checkpoint(draft, optimizers, position, folder)
            saved_at = time.monotonic()
    workers.wait()
    return position


def step(
    draft: Draft,
    optimizers: Optimizers,
    batches: Sequence[Batch],
    labels: Labels,
    *,
    rate: float,
    clip: float,
    workers: Workers = ALONE,
) -> float:
    """Take one step of the optimiser on some batches, and return the mean loss over their answer tokens."""
    num_tokens = sum(batch.num_tokens for batch in batches)
    head_VD = draft.model.get_output_embeddings().weight
    dtype = product_dtype(draft.model.device.type)
    total = 0.0
    for batch in batches[workers.index :: workers.count]:
        on_chunk, part = labels(batch)
        with torch.autocast(draft.model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden_ND = batch.hidden_ND(draft.model)
        part_VD = head_VD if part is None else head_VD[part.token_ids_M]
        # Divided by the tokens of the whole step: gradients of its batches then add up to that of the mean over tokens.
        loss = head_loss(hidden_ND, part_VD.to(dtype), on_chunk) / num_tokens
        loss.backward()
        total += loss.item()  # waits for the GPU
    if workers.count > 1:
        total = _add_up(draft, total, workers)
    torch.nn.utils.clip_grad_norm_([weight for _, weight in draft.parameters()], clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return total


def _add_up(draft: Draft, loss: float, workers: Workers) -> float:
    """Replace the gradients by their sums over the processes, and return the sum of the loss. One message carries all."""
    weights = [weight for _, weight in draft.parameters() if weight.grad is not None]
    parts = [weight.grad.flatten() for weight in weights]
    *parts, total = workers.total(torch.cat([*parts, parts[0].new_tensor([loss])])).split([*map(len, parts), 1])
    for weight, part in zip(weights, parts, strict=True):
        weight.grad.copy_(part.view_as(weight))
    return total.item()


def learning_rate(plan: TrainPlan, num_tokens: int) -> float:
    """Return the rate after so many tokens: a linear warm-up, then a cosine down to the final rate.

    With s the share of tokens after the warm-up: rate = peak * (f + (1 - f) * (1 + cos(pi s)) / 2), f = final_rate.
    """
    done = num_tokens / plan.num_tokens
    if done < plan.warmup:
        return plan.learning_rate * max(done / plan.warmup, 0.01)
    along = (done - plan.warmup) / (1 - plan.warmup)
    return plan.learning_rate * (plan.final_rate + (1 - plan.final_rate) * (1 + math.cos(math.pi * along)) / 2)


def checkpoint(draft: Draft, optimizers: Optimizers, position: Position, folder: Path) -> None:
    """Replace the checkpoint in one move, so that a kill at any time leaves the old or the new one."""
    weights = {name: weight.detach() for name, weight in draft.parameters()}
    states = [optimizer.state_dict() for optimizer in optimizers]
    content = io.BytesIO()
    torch.save({"weights": weights, "optimizers": states, "position": asdict(position)}, content)
    write_atomically(folder / CHECKPOINT, content.getvalue())


def resume(draft: Draft, optimizers: Optimizers, folder: Path) -> Position:
    """Load weights and optimiser state from the checkpoint, and return its position; 0 in a folder without one."""
    if not (folder / CHECKPOINT).is_file():
        return Position()
    state = torch.load(folder / CHECKPOINT, map_location=draft.model.device, weights_only=True)
    with torch.no_grad():
        for name, weight in draft.parameters():
            weight.copy_(state["weights"][name])
    for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(stored)
    return Position(**state["position"])
