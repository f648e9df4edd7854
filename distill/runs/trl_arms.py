"""One distillation done in three ways, to compare their speed: `trl`, `target_in_step` and `target_cached`.

All three take the same steps: the same texts in the same batches, forward KL at loss T = 1, AdamW at one rate on the draft's
layers in float32 under bfloat16 autocast, and the target in bfloat16. `trl` is TRL's GKDTrainer on fixed text. The others are
ours: with the target's forward in every step, or with its hidden states computed once and read back in every epoch.

Each arm loads its models and takes one step on the first batch as a warm-up. It calls `ready`, and then does the measured work.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import torch
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback

from backends.models.loading import load_model
from bench.records.distill_speed import ArmRun
from distill.text.batches import Batch, fill_in
from distill.text.table import open_table
from distill.training import drafts
from distill.training.loop import Labels, adamw, cached_target, running_target, step
from distill.training.losses import Loss

LOSS = Loss("forward_kl", 1.0)  # TRL's beta = 0; its loss has no temperature
CLIP = 1.0
STATUS = Path("/proc/self/status")
Ready = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Training:
    """What every arm does."""

    target: str  # folder
    draft: str  # folder of the draft to start from
    text: str  # folder of a text table without hidden states
    batch_rows: int
    epochs: int
    learning_rate: float
    seed: int  # of the order of batches


class Prepared:
    """The models and batches of an arm. The first batch, which warms up, is repeated in the first epoch."""

    def __init__(self, training: Training) -> None:
        self.target: PreTrainedModel = load_model(training.target, dtype="bfloat16", device="cpu")
        self.draft = drafts.trainable(drafts.load(Path(training.draft), dtype=torch.float32), "layers")
        self.start_bytes = psutil.Process().memory_info().rss
        self.table = open_table(Path(training.text))
        rows = sorted(self.table.rows, key=lambda row: row.length)
        starts = range(0, len(rows) - training.batch_rows + 1, training.batch_rows)  # of full batches
        batches = [Batch(tuple(rows[start : start + training.batch_rows])) for start in starts]
        epoch = random.Random(training.seed).sample(batches, len(batches))
        self.batches = [epoch[0], *epoch * training.epochs]

    def measured(self, seconds: float, *, first_loss: float, mean_loss: float, filling_s: float = 0.0) -> ArmRun:
        """Return what was measured, with the sizes of the work."""
        return ArmRun(
            seconds=seconds,
            filling_s=filling_s,
            num_tokens=sum(batch.num_tokens for batch in self.batches[1:]),
            num_steps=len(self.batches) - 1,
            first_loss=first_loss,
            mean_loss=mean_loss,
            start_bytes=self.start_bytes,
            peak_bytes=_peak_bytes(),
            num_threads=torch.get_num_threads(),
        )


def trl(training: Training, ready: Ready) -> ArmRun:
    """Train with TRL's GKDTrainer as documented, on token ids. Everything that is not training is off."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    prepared = Prepared(training)
    examples = [
        {
            "prompt": "",  # the collator requires its text, but uses the ids
            "input_ids": torch.cat((row.prompt, row.answer)).tolist(),
            "completion_mask": [0] * len(row.prompt) + [1] * len(row.answer),
        }
        for batch in prepared.batches
        for row in batch.rows
    ]
    tokenizer = AutoTokenizer.from_pretrained(training.target)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    class Stopwatch(TrainerCallback):
        """Measures from the end of the first step to the end of the last, with the fetching of batches in between."""

        started = seconds = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 1:
                ready()
                self.started = time.perf_counter()
            self.seconds = time.perf_counter() - self.started

    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GKDTrainer(
            model=prepared.draft.model,
            teacher_model=prepared.target,
            args=GKDConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=True,
                lmbda=0.0,
                beta=0.0,
                max_length=None,
                per_device_train_batch_size=training.batch_rows,
                train_sampling_strategy="sequential",
                num_train_epochs=1,
                optim="adamw_torch_fused",
                learning_rate=training.learning_rate,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                max_grad_norm=CLIP,
                gradient_checkpointing=False,
                logging_steps=10**9,  # with the next line: log only the first step, which is not measured
                logging_first_step=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
            callbacks=[stopwatch],
        )
        mean_loss = trainer.train().training_loss
        first_loss = trainer.state.log_history[0]["loss"]
    return prepared.measured(stopwatch.seconds, first_loss=first_loss, mean_loss=mean_loss)


def target_in_step(training: Training, ready: Ready) -> ArmRun:
    """Train with our step, in which the target runs."""
    return _with_our_step(training, ready, cached=False)


def target_cached(training: Training, ready: Ready) -> ArmRun:
    """Train with our step on stored hidden states. One pass of the target over the text stores them first, and is measured."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(training.text, folder, dirs_exist_ok=True)  # every round fills in the hidden states again
        return _with_our_step(replace(training, text=folder), ready, cached=True)


def _with_our_step(training: Training, ready: Ready, *, cached: bool) -> ArmRun:
    prepared = Prepared(training)
    draft, target, rate = prepared.draft, prepared.target, training.learning_rate
    optimizers = adamw(draft, rate)

    def take(batch: Batch, labels: Labels) -> float:
        return step(draft, optimizers, [batch], labels, rate=rate, clip=CLIP)

    labels = running_target(LOSS, target)
    losses = [take(prepared.batches[0], labels)]
    ready()
    started, filling_s = time.perf_counter(), 0.0
    if cached:
        fill_in(prepared.table, target)
        filling_s = time.perf_counter() - started
        labels = cached_target(LOSS, target.get_output_embeddings().weight.detach())
    losses += [take(batch, labels) for batch in prepared.batches[1:]]
    seconds = time.perf_counter() - started
    return prepared.measured(seconds, first_loss=losses[0], mean_loss=fmean(losses), filling_s=filling_s)


ARMS: dict[str, Callable[[Training, Ready], ArmRun]] = {arm.__name__: arm for arm in (trl, target_in_step, target_cached)}


def _peak_bytes() -> int:
    # getrusage's maximum would begin with the size of the process that started this one.
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])  # the kernel gives KiB
