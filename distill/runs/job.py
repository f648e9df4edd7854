"""One distillation from prompts to a saved draft: sample text, train on it, measure acceptance, write a card.

Every stage leaves what it made in a folder and finds it there again, so a killed run goes on where it was.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.progress import Meter
from bench.prompts import sets as prompt_sets
from bench.protocols import Backend
from bench.records.files import write_atomically
from distill.evaluation.held_out import TEMPERATURES, HeldOut, held_out_text, measure
from distill.text import hidden
from distill.text.prompts import Prompts, encoded, self_written, user_turn
from distill.text.sampler import sample_answers
from distill.text.table import (
    Shard,
    TextPlan,
    TextRow,
    TextTable,
    batches,
    extend,
    frequent_tokens,
    is_there,
    prompts_hash,
    sampled_shard,
)
from distill.text.teacher import Teacher, load_teacher, through_backend
from distill.text.workers import ALONE, Workers
from distill.training import drafts
from distill.training.drafts import TRAINED, Draft, Trained
from distill.training.loop import (
    CachedTarget,
    FixedText,
    FreshText,
    Labels,
    Position,
    RunningTarget,
    Stream,
    TextLabels,
    TrainPlan,
    train,
)
from distill.training.recipes import Recipe
from distill.training.vocabulary import check_size, vocabulary_of

JOB, CARD, LOG, DRAFT = "job.json", "card.json", "log.jsonl", "draft"
FREQUENT = (
    "frequent_tokens.json"  # beside the draft's weights: tokens of the text it learnt from, the most frequent first
)
RANKED_TOKENS = 16384
EVALUATE_EVERY_S = 300.0
EVALUATED_PROMPTS = 16  # of each held-out set, while training
SELF_WRITTEN_TEMPERATURE = 0.9
SELF_WRITTEN_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a run depends on; a folder holds one job."""

    target: str  # folder
    start: str  # folder of the draft to start from; empty: built from layers of the target
    layers: tuple[int, ...]  # of the target, where the draft is built from them
    trained: Trained
    adapter_rank: int
    recipe: Recipe
    plan: TrainPlan
    text_tokens: int  # distinct answer tokens of the target; fresh text is as long as the training
    prompts: tuple[str, ...]
    self_written: int  # prompts that the target writes itself
    held_out: tuple[str, ...]
    max_new_tokens: int
    batch_rows: int  # texts sampled at once
    seed: int

    def __post_init__(self) -> None:
        for name in ("adapter_rank", "max_new_tokens", "batch_rows", *(() if self.recipe.fresh else ("text_tokens",))):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.self_written < 0:
            raise ValueError(f"expected self_written >= 0, got {self.self_written}")
        if self.trained not in TRAINED:
            raise ValueError(f"expected what is trained of {', '.join(TRAINED)}, got {self.trained!r}")
        if bool(self.start) == bool(self.layers):
            raise ValueError(
                f"expected a draft to start from or layers of the target, got {self.start!r}, {self.layers}"
            )
        if not self.prompts and not self.self_written:
            raise ValueError("expected prompt sets or self-written prompts, got neither")
        if self.plan.vocabulary and (
            self.recipe.fresh or (self.recipe.labels == "soft" and not self.recipe.loss.temperature)
        ):
            raise ValueError(
                "expected the whole vocabulary (0) for fresh text and for soft labels at loss temperature 0, "
                f"got a part of {self.plan.vocabulary}"
            )
        if not self.held_out:
            raise ValueError("expected a held-out prompt set, got none")


def check_held_out(job: Job) -> None:
    """Raise ValueError unless every prompt set can be read and the held-out ones share no prompt with the others."""
    given, apart = (
        {(prompt.messages, prompt.text) for source in sources for prompt in prompt_sets.load(source).prompts}
        for sources in (job.prompts, job.held_out)
    )
    if given & apart:
        raise ValueError(
            f"expected held-out prompts that are not trained on, got {len(given & apart)} of {len(apart)} that are; "
            "give other sets, such as NAME:train and NAME:held_out"
        )


def distill(
    job: Job,
    out: Path,
    texts: Path,
    *,
    device: str = "cpu",
    backend: Backend | None = None,
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """Do the job, or what is left of it; returns the card, which lies beside the draft in `out`.

    Args:    texts: where text is kept; runs on the same text share it
             backend: writes the training text in the target's place, one request at a time
    Raises:  ValueError: `out` holds another job, or prompts, models and job do not fit each other
    """
    _refuse_another(job, out, "" if backend is None else backend.name)
    if not (out / CARD).is_file():
        check_held_out(job)
        _Run(job, out, texts, device, backend, workers).to_the_end()
    workers.wait()
    card: dict[str, Any] = json.loads((out / CARD).read_text())
    return card


def _refuse_another(job: Job, out: Path, through: str) -> None:
    if (out / JOB).exists() and (out / JOB).read_text() != _as_text(job, through):
        raise ValueError(f"{out} holds another job (see {JOB} in it); choose another folder")


def _as_text(job: Job, through: str) -> str:
    """Job, and the engine that writes its text, if it is not the target itself."""
    return json.dumps(asdict(job) | ({"through": through} if through else {}), indent=1)


def prompts_by(
    teacher: Teacher,
    texts: Path,
    num_prompts: int,
    *,
    batch_rows: int,
    on_progress: Callable[[int], None] = lambda num_prompts: None,
    workers: Workers = ALONE,
) -> Prompts:
    """Prompts that a chat target writes itself, kept in a folder of `texts`: as many batches as it takes.

    Raises:  ValueError: it has no chat template, or one that changes what the user says
    """
    before, after = user_turn(teacher.tokenizer)
    plan = TextPlan(
        model=teacher.sha256,
        prompts=prompts_hash((before,)),
        temperatures=((SELF_WRITTEN_TEMPERATURE, 1.0),),
        max_new_tokens=SELF_WRITTEN_TOKENS,
        end_token_ids=teacher.end_token_ids,
        batch_rows=batch_rows,
        seed=0,  # as sets are fixed
    )
    sampler = teacher.sampler(SELF_WRITTEN_TOKENS)
    own: Prompts = ()
    num_tokens = 0
    while len(own) < num_prompts:
        on_progress(len(own))
        table = extend(texts / plan.sha256[:16], plan, (before,), sampler, num_tokens=num_tokens + 1, workers=workers)
        num_tokens, own = table.num_tokens, self_written(table.rows, after, teacher.end_token_ids)
    on_progress(num_prompts)
    return own[:num_prompts]


class _Run:
    """The stages of a job. What they share is loaded once."""

    def __init__(
        self, job: Job, out: Path, texts: Path, device: str, backend: Backend | None, workers: Workers
    ) -> None:
        self.job, self.out, self.texts, self.workers = job, out, texts, workers
        self.teacher = load_teacher(Path(job.target), device=device)
        self.draft = self._draft(device)
        self.through = "" if backend is None else backend.name
        self.sampler = self.teacher.sampler(job.max_new_tokens)
        if backend is not None:
            ends = self.teacher.end_token_ids
            self.sampler = through_backend(backend, max_new_tokens=job.max_new_tokens, end_token_ids=ends)

    def to_the_end(self) -> None:
        job, recipe = self.job, self.job.recipe
        vocabulary_size = len(self.teacher.head_VD)
        if job.plan.vocabulary:
            check_size(job.plan.vocabulary, vocabulary_size)
        held_out = self._held_out()
        prompts = self._prompts()
        self._check_room(prompts)
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / JOB, _as_text(job, self.through).encode())
        plan = replace(
            self._text_plan(prompts, recipe.temperatures, max_new_tokens=job.max_new_tokens), through=self.through
        )
        # Fresh text is sampled as training goes along.
        table = self._sampled(plan, prompts, num_tokens=0 if recipe.fresh else job.text_tokens)

        stream: Stream = FixedText(table.rows, job.plan.batch_tokens, job.seed)
        by_target, by_draft = table.folder, self.out / "by_draft"
        if recipe.fresh:
            if recipe.on_policy:
                by_target = self.out / "by_target"  # answers to some of the asks, and so no table for others
            portions = partial(self._portions, plan, prompts, by_target, by_draft)
            stream = FreshText(portions, job.plan.batch_tokens, job.seed)
        vocabulary = vocabulary_of(table.rows, vocabulary_size, job.plan.vocabulary) if job.plan.vocabulary else None
        labels: Labels = TextLabels(vocabulary)
        if recipe.labels == "soft" and recipe.fresh:
            labels = RunningTarget(recipe.loss, self.teacher.model)
        elif recipe.labels == "soft":
            hidden.fill_in(table, self.teacher.model, workers=self.workers)
            labels = CachedTarget(recipe.loss, self.teacher.head_VD, vocabulary)

        position = self._train(stream, labels, held_out)
        if self.workers.is_main:
            drafts.save(self.draft, self.out / DRAFT, tokenizer_from=Path(job.target))
            written = (table, TextTable(by_draft, ()))
            if recipe.fresh:
                written = _fresh_tables(by_target, by_draft, position.num_tokens)
            ranked = json.dumps(frequent_tokens(written)[:RANKED_TOKENS])
            write_atomically(self.out / DRAFT / FREQUENT, ranked.encode())
            self._write_card(position, *written, prompts, held_out)

    def _draft(self, device: str) -> Draft:
        job = self.job
        if job.start:
            model = drafts.load(Path(job.start), dtype=torch.float32)
        else:
            model = drafts.from_layers(self.teacher.model, job.layers)
        draft = drafts.trainable(model, job.trained, adapter_rank=job.adapter_rank)
        draft.model.to(device)
        return draft

    def _meter(self, phase: str, total: int, *, unit: str = "tokens") -> Meter:
        return Meter(phase, total, unit=unit, console=Console(stderr=True, quiet=not self.workers.is_main))

    def _held_out(self) -> tuple[HeldOut, ...]:
        sources = self.job.held_out
        with self._meter("held-out text", len(sources) * len(TEMPERATURES), unit="texts") as meter:
            return held_out_text(self.teacher, sources, self.texts, on_text=meter.show, workers=self.workers)

    def _prompts(self) -> Prompts:
        """Of the prompt sets, then the target's own: as many batches of these as it takes."""
        job = self.job
        given = [ids for source in job.prompts for ids in encoded(prompt_sets.load(source), self.teacher.tokenizer)]
        if job.self_written == 0:
            return tuple(given)
        with self._meter("self-written prompts", job.self_written, unit="prompts") as meter:
            own = prompts_by(
                self.teacher,
                self.texts,
                job.self_written,
                batch_rows=job.batch_rows,
                on_progress=meter.show,
                workers=self.workers,
            )
        return (*given, *own)

    def _text_plan(
        self, prompts: Prompts, temperatures: tuple[tuple[float, float], ...], *, max_new_tokens: int
    ) -> TextPlan:
        return TextPlan(
            model=self.teacher.sha256,
            prompts=prompts_hash(prompts),
            temperatures=temperatures,
            max_new_tokens=max_new_tokens,
            end_token_ids=self.teacher.end_token_ids,
            batch_rows=self.job.batch_rows,
            seed=self.job.seed,
        )

    def _folder(self, plan: TextPlan) -> Path:
        """Named by all that its text depends on."""
        return self.texts / plan.sha256[:16]

    def _check_room(self, prompts: Prompts) -> None:
        """Raise ValueError where an answer could grow beyond the positions of target or draft."""
        longest = max(map(len, prompts)) + self.job.max_new_tokens
        for model in (self.teacher.model, self.draft.model):
            positions = getattr(model.config.get_text_config(), "max_position_embeddings", longest)
            if longest > positions:
                raise ValueError(
                    f"expected prompts and answers of at most {positions} tokens, got {longest}; "
                    "leave long prompts out or ask for fewer new tokens"
                )

    def _sampled(self, plan: TextPlan, prompts: Prompts, *, num_tokens: int) -> TextTable:
        with self._meter("sampling", num_tokens) as meter:
            return extend(
                self._folder(plan),
                plan,
                prompts,
                self.sampler,
                num_tokens=num_tokens,
                on_progress=lambda table: meter.show(table.num_tokens),
                workers=self.workers,
            )

    def _portions(
        self, plan: TextPlan, prompts: Prompts, by_target: Path, by_draft: Path
    ) -> Iterator[tuple[TextRow, ...]]:
        """Text that is used once: of each batch of asks the draft, as it is then, answers its share, the target the rest."""
        for index, asks in enumerate(batches(plan, prompts)):
            rng = random.Random(asks[0].seed)
            drafted = [rng.random() < self.job.recipe.on_policy for _ in asks]
            rows: tuple[TextRow, ...] = ()
            if not all(drafted):
                share = [ask for ask, by in zip(asks, drafted, strict=True) if not by]
                rows = sampled_shard(by_target, index, share, self.sampler, workers=self.workers).rows
            if any(drafted):
                share = [ask for ask, by in zip(asks, drafted, strict=True) if by]
                sampler = partial(
                    sample_answers,
                    drafts.measurable(self.draft),
                    max_new_tokens=self.job.max_new_tokens,
                    end_token_ids=self.teacher.end_token_ids,
                )
                rows += sampled_shard(by_draft, index, share, sampler, workers=self.workers).rows
            yield rows

    def _train(self, stream: Stream, labels: Labels, held_out: Sequence[HeldOut]) -> Position:
        """Train with a meter, and a log of acceptance on a part of the held-out text: after the first step, then at times."""
        part = [replace(text, rows=text.rows[:EVALUATED_PROMPTS]) for text in held_out]
        evaluated_at, acceptance = -EVALUATE_EVERY_S, ""
        with self._meter("training", self.job.plan.num_tokens) as meter, (self.out / LOG).open("a") as log:

            def on_step(position: Position) -> None:
                nonlocal evaluated_at, acceptance
                if not self.workers.is_main:
                    return
                if time.monotonic() - evaluated_at > EVALUATE_EVERY_S:
                    found = measure(drafts.measurable(self.draft), self.teacher, part)
                    acceptance = " ".join(f"{text.alpha_text:.3f}" for text in found)
                    state = {"tokens": position.num_tokens, "seconds": position.seconds, "loss": position.losses[-1]}
                    log.write(json.dumps({**state, "held_out": [asdict(text) for text in found]}) + "\n")
                    log.flush()
                    evaluated_at = time.monotonic()
                recent = position.losses[-20:]
                meter.show(position.num_tokens, f"loss {sum(recent) / len(recent):.3f}  alpha_text {acceptance}")

            return train(self.draft, stream, labels, self.job.plan, self.out, on_step=on_step, workers=self.workers)

    def _write_card(
        self,
        position: Position,
        by_target: TextTable,
        by_draft: TextTable,
        prompts: Prompts,
        held_out: Sequence[HeldOut],
    ) -> None:
        job = self.job
        found = measure(drafts.measurable(self.draft), self.teacher, held_out)
        card = {
            **asdict(job),
            "target": Path(job.target).name,
            "target_sha256": self.teacher.sha256,
            "start": Path(job.start).name,
            "prompts": [prompt_sets.load(source).name for source in job.prompts],
            "prompts_sha256": prompts_hash(prompts),
            "held_out": [prompt_sets.load(source).name for source in job.held_out],
            "through": self.through,
            "tokens": {
                "text_by_target": by_target.num_tokens,
                "text_by_draft": by_draft.num_tokens,
                "trained": position.num_tokens,
            },
            "seconds": {
                "text_by_target": by_target.seconds,
                "text_by_draft": by_draft.seconds,
                "trained": position.seconds,
            },
            "held_out_acceptance": [asdict(text) for text in found],
        }
        write_atomically(self.out / CARD, json.dumps(card, indent=1).encode())


def _fresh_tables(by_target: Path, by_draft: Path, num_tokens: int) -> tuple[TextTable, TextTable]:
    """The first shards of both, up to the tokens that were trained on: fresh text is used once and in order."""
    tables = [TextTable(by_target, ()), TextTable(by_draft, ())]
    for index in count():
        if sum(table.num_tokens for table in tables) >= num_tokens:
            break
        tables = [
            replace(table, shards=(*table.shards, Shard(table.folder, index)))
            if is_there(table.folder, index)
            else table
            for table in tables
        ]
    return tables[0], tables[1]
