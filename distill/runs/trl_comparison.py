"""One distillation done three ways, each in a process of its own: `trl`, `target_in_step` and `target_cached`.

All three take the same steps: the same texts in the same batches, forward KL at loss T = 1, AdamW at one rate on the draft's
layers in float32 under bf16 autocast, the target in bf16. `trl` is TRL's GKDTrainer on fixed text; the others are ours, with
the target's forward in every step, or with its hidden states computed once and read back in every epoch. A process loads its
models, takes one step on the first batch, says that it is ready, and does the measured work when it is told to.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from bench.records.decoding import ModelPair, Scalar
from bench.records.distill_speed import ArmRun, TrainingRound
from bench.records.environment import machine_slug
from bench.records.files import write_atomically
from distill.text import hidden
from distill.text.batches import Batch
from distill.text.sampler import Answer, Ask, sample_answers
from distill.text.table import TextPlan, TextTable, extend, open_table
from distill.training import drafts
from distill.training.loop import CachedTarget, Labels, RunningTarget, step
from distill.training.losses import Loss

SCHEMA = 1
TIMED_ARM = "target_cached"  # by pytest-benchmark; all arms by their own clocks
# bf16 keeps three digits: the losses of one batch differ by 1e-4, and those of a run, whose steps carry it on, by little more.
LOSS_TOLERANCE = 3e-3


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    rows: int  # texts of one epoch
    batch_rows: int
    max_new_tokens: int
    rounds: int
    epochs: int = 3


SIZES = {
    "smoke": Size(rows=8, batch_rows=4, max_new_tokens=16, rounds=2),
    "quick": Size(rows=32, batch_rows=16, max_new_tokens=128, rounds=3),
    "paper": Size(rows=128, batch_rows=16, max_new_tokens=128, rounds=6),
}


@dataclass(frozen=True, slots=True)
class SpeedRecord:
    """One run of the suite: a line of a file, followed by one for each round."""

    schema: int
    suite: str
    preset: str
    command: tuple[str, ...]
    created: str  # ISO 8601, UTC
    environment: dict[str, Scalar]
    model_pair: ModelPair
    model_hashes: dict[str, str]
    prompt_set: str
    prompts_hash: str
    loss: str
    text: TextPlan
    training: Training
    rounds: tuple[TrainingRound, ...]


def text(folder: Path, plan: TextPlan, prompts: Sequence[tuple[int, ...]], *, target: str) -> TextTable:
    """One batch of the target's text, without hidden states, as an engine that keeps them to itself leaves it."""
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()

    def sample(asks: Sequence[Ask]) -> list[Answer]:
        answers = sample_answers(model, asks, max_new_tokens=plan.max_new_tokens, end_token_ids=plan.end_token_ids)
        return [replace(answer, hidden_AD=None) for answer in answers]

    return extend(folder, plan, prompts, sample, num_tokens=1)


def orders(num_rounds: int) -> list[tuple[str, ...]]:
    """Rotations of the arms, then these reversed: all six orders in six rounds."""
    names = tuple(ARMS)
    rotations = [names[start:] + names[:start] for start in range(len(names))]
    return [*rotations, *(order[::-1] for order in rotations)][:num_rounds]


class Rounds:
    """`setup`, `timed` and `teardown` of `benchmark.pedantic`: the timed arm is loaded and warm when its clock starts."""

    def __init__(self, training: Training, orders: Sequence[tuple[str, ...]]) -> None:
        self.training = training
        self.orders = orders
        self.done: list[TrainingRound] = []
        self.runs: dict[str, ArmRun] = {}

    @property
    def order(self) -> tuple[str, ...]:
        return self.orders[len(self.done)]

    def setup(self) -> None:
        self.runs = {}
        self._run(self.order[: self.order.index(TIMED_ARM)])
        self.waiting = ArmProcess(TIMED_ARM, self.training)

    def timed(self) -> None:
        self.runs[TIMED_ARM] = self.waiting.run()

    def teardown(self) -> None:
        self.waiting.close()
        self._run(self.order[self.order.index(TIMED_ARM) + 1 :])
        check_same_steps(self.runs)
        self.done.append(TrainingRound(self.order, self.runs))

    def _run(self, names: Sequence[str]) -> None:
        for name in names:
            process = ArmProcess(name, self.training)
            self.runs[name] = process.run()
            process.close()


def check_same_steps(runs: dict[str, ArmRun]) -> None:
    """Raise ValueError unless all arms did what TRL's did: tokens, steps, threads, and the loss within rounding."""
    wanted = runs[trl.__name__]
    for name, run in runs.items():
        for field in ("num_tokens", "num_steps", "num_threads"):
            if getattr(run, field) != getattr(wanted, field):
                raise ValueError(f"{name}: expected {field} {getattr(wanted, field)} as TRL, got {getattr(run, field)}")
        for field in ("first_loss", "mean_loss"):
            if not math.isclose(getattr(run, field), getattr(wanted, field), rel_tol=LOSS_TOLERANCE):
                raise ValueError(
                    f"{name}: expected a {field} of {getattr(wanted, field):.4f} as TRL, got {getattr(run, field):.4f}"
                )


def store(results: Path, record: SpeedRecord) -> Path:
    """Write the record, whole or not at all; JSON lines, which no reader of decoding records takes for one of these."""
    header: dict[str, Any] = asdict(replace(record, rounds=()))
    del header["rounds"]
    moment = datetime.fromisoformat(record.created).strftime("%Y%m%dT%H%M%SZ")
    name = f"{moment}-{record.environment.get('harness_commit', 'unknown')}-trl.jsonl"
    path = results / machine_slug(record.environment) / record.suite / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in (header, *map(asdict, record.rounds))))
    return path


LOSS = Loss("forward_kl", 1.0)  # TRL's beta = 0; its loss has no temperature
CLIP = 1.0
NEVER = 10**9
READY = "ready"
STATUS = Path("/proc/self/status")


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


def ordered(table: TextTable, training: Training) -> list[Batch]:
    """One epoch: rows of similar length together, the batches in random order, a full number of rows in each."""
    rows = sorted(table.rows, key=lambda row: row.length)
    starts = range(0, len(rows) - training.batch_rows + 1, training.batch_rows)
    batches = [Batch(tuple(rows[start : start + training.batch_rows])) for start in starts]
    return random.Random(training.seed).sample(batches, len(batches))


class ArmProcess:
    """An arm that has loaded its models and waits."""

    def __init__(self, name: str, training: Training) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, training, theirs))
        self._process.start()
        theirs.close()
        self._next()

    def run(self) -> ArmRun:
        """Do the measured work."""
        self._pipe.send(READY)
        return self._next()

    def close(self) -> None:
        """Wait until its memory is free again."""
        self._process.join()

    def _next(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the process of an arm ended with status {self._process.exitcode}") from None


def _serve(name: str, training: Training, pipe: Connection) -> None:
    def ready() -> None:
        pipe.send(READY)
        pipe.recv()

    pipe.send(ARMS[name](training, ready))


def trl(training: Training, ready: Callable[[], None]) -> ArmRun:
    """TRL's GKDTrainer as its documentation has it, given token ids, with everything off that is not training."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    draft, target = _models(training)
    start_bytes = psutil.Process().memory_info().rss
    batches = _with_warmup(ordered(open_table(Path(training.text)), training), training.epochs)
    examples = [
        {
            "prompt": "",  # the collator asks for its text, but takes the ids
            "input_ids": torch.cat((row.prompt, row.answer)).tolist(),
            "completion_mask": [0] * len(row.prompt) + [1] * len(row.answer),
        }
        for batch in batches
        for row in batch.rows
    ]

    tokenizer = AutoTokenizer.from_pretrained(training.target)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    class Stopwatch(TrainerCallback):
        """From the end of the first step to the end of the last: fetching batches is in between."""

        started = seconds = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 1:
                ready()
                self.started = time.perf_counter()
            self.seconds = time.perf_counter() - self.started

    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GKDTrainer(
            model=draft.model,
            teacher_model=target,
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
                logging_steps=NEVER,
                logging_first_step=True,  # written down behind a step that is not measured
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
    return _measured(batches, stopwatch.seconds, first_loss=first_loss, mean_loss=mean_loss, start_bytes=start_bytes)


def target_in_step(training: Training, ready: Callable[[], None]) -> ArmRun:
    """Our step, in which the target is run."""
    draft, target = _models(training)
    start_bytes = psutil.Process().memory_info().rss
    batches = _with_warmup(ordered(open_table(Path(training.text)), training), training.epochs)
    take = _step(draft, training)
    running = RunningTarget(LOSS, target)
    losses = [take(batches[0], running)]
    ready()
    started = time.perf_counter()
    losses += [take(batch, running) for batch in batches[1:]]
    seconds = time.perf_counter() - started
    return _measured(batches, seconds, first_loss=losses[0], mean_loss=fmean(losses), start_bytes=start_bytes)


def target_cached(training: Training, ready: Callable[[], None]) -> ArmRun:
    """Our step on stored hidden states; one pass of the target over the text, which stores them, comes first."""
    draft, target = _models(training)
    start_bytes = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(training.text, folder, dirs_exist_ok=True)  # to be filled anew
        table = open_table(Path(folder))
        batches = _with_warmup(ordered(table, training), training.epochs)
        take = _step(draft, training)
        losses = [take(batches[0], RunningTarget(LOSS, target))]
        ready()
        started = time.perf_counter()
        hidden.fill_in(table, target)
        filling_s = time.perf_counter() - started
        cached = CachedTarget(LOSS, target.get_output_embeddings().weight.detach())
        losses += [take(batch, cached) for batch in batches[1:]]
        seconds = time.perf_counter() - started
    return _measured(
        batches,
        seconds,
        filling_s=filling_s,
        first_loss=losses[0],
        mean_loss=fmean(losses),
        start_bytes=start_bytes,
    )


ARMS: dict[str, Callable[[Training, Callable[[], None]], ArmRun]] = {
    function.__name__: function for function in (trl, target_in_step, target_cached)
}


def _models(training: Training) -> tuple[drafts.Draft, Any]:
    target = AutoModelForCausalLM.from_pretrained(training.target, dtype=torch.bfloat16).eval()
    draft = AutoModelForCausalLM.from_pretrained(training.draft, dtype=torch.float32).eval()
    return drafts.trainable(draft, "layers"), target


def _with_warmup(epoch: list[Batch], epochs: int) -> list[Batch]:
    return [epoch[0], *epoch * epochs]


def _step(draft: drafts.Draft, training: Training) -> Callable[[Batch, Labels], float]:
    optimizer = torch.optim.AdamW(
        [weight for _, weight in draft.parameters()], lr=training.learning_rate, weight_decay=0.0, fused=True
    )
    return lambda batch, labels: step(draft, [optimizer], [batch], labels, rate=training.learning_rate, clip=CLIP)


def _measured(
    batches: list[Batch],
    seconds: float,
    *,
    first_loss: float,
    mean_loss: float,
    start_bytes: int,
    filling_s: float = 0.0,
) -> ArmRun:
    return ArmRun(
        seconds=seconds,
        filling_s=filling_s,
        num_tokens=sum(batch.num_tokens for batch in batches[1:]),
        num_steps=len(batches) - 1,
        first_loss=first_loss,
        mean_loss=mean_loss,
        start_bytes=start_bytes,
        peak_bytes=_peak_bytes(),
        num_threads=torch.get_num_threads(),
    )


def _peak_bytes() -> int:
    # getrusage's maximum would begin with the size of the process that started this one.
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])
