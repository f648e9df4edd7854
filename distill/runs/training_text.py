"""The text of one job: its prompts, and the answers of target and draft that it is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from rich.console import Console

from bench.progress import Meter
from bench.prompts import sets as prompt_sets
from bench.protocols import Backend
from distill.runs.job import Job
from distill.text.prompts import Prompts, encoded, self_written, user_turn
from distill.text.sampler import Answer, Request, Sampler
from distill.text.table import Shard, TextPlan, TextRow, TextTable, batches, claim, extend, is_there, sampled_shard
from distill.text.teacher import Teacher, load_teacher, through_backend
from distill.text.workers import ALONE, Workers
from distill.training import drafts
from distill.training.drafts import Draft
from distill.training.loop import Stream, fixed_text

SELF_WRITTEN_TEMPERATURE = 0.9
SELF_WRITTEN_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Setup:
    """What the stages of a job share."""

    job: Job
    out: Path
    texts: Path
    workers: Workers
    teacher: Teacher
    draft: Draft
    sampler: Sampler  # writes the training text: the target, or a backend instead
    through: str  # name of that backend; empty: the target

    def meter(self, label: str, total: int, *, unit: str = "tokens") -> Meter:
        """Return a progress bar, which only the main process shows."""
        return Meter(label, total, unit=unit, console=Console(stderr=True, quiet=not self.workers.is_main))


def load_setup(job: Job, out: Path, texts: Path, *, device: str, backend: Backend | None, workers: Workers) -> Setup:
    """Load the target and the draft at its start."""
    teacher = load_teacher(Path(job.target), device=device)
    start = Path(job.start)
    model = drafts.load(start, dtype=torch.float32) if job.start else drafts.from_layers(teacher.model, job.layers)
    draft = drafts.trainable(model, job.trained, adapter_rank=job.adapter_rank)
    draft.model.to(device)
    if backend is None:
        return Setup(job, out, texts, workers, teacher, draft, teacher.sampler(job.max_new_tokens), "")
    sampler = through_backend(backend, max_new_tokens=job.max_new_tokens, end_token_ids=teacher.end_token_ids)
    return Setup(job, out, texts, workers, teacher, draft, sampler, backend.name)


def prompts_by(
    teacher: Teacher, texts: Path, num_prompts: int, *, batch_rows: int, meter: Meter, workers: Workers = ALONE
) -> Prompts:
    """Return prompts that a chat target writes itself, kept in a folder of `texts`.

    Raises:  ValueError: it has no chat template, or one that changes the user's words
    """
    before, after = user_turn(teacher.tokenizer)
    # Seed 0: the same prompts in every run, like those of a set.
    shares, longest = ((SELF_WRITTEN_TEMPERATURE, 1.0),), SELF_WRITTEN_TOKENS
    plan = teacher.plan((before,), shares, max_new_tokens=longest, batch_rows=batch_rows, seed=0)
    folder, sampler = texts / plan.folder_name, teacher.sampler(longest)
    found: Prompts = ()
    table = TextTable(folder, ())
    while len(found) < num_prompts:
        meter.show(len(found))
        # One token more than there is: the table grows by one batch.
        table = extend(folder, plan, (before,), sampler, num_tokens=table.num_tokens + 1, workers=workers)
        found = self_written(table.rows, after, teacher.end_token_ids)
    meter.show(num_prompts)
    return found[:num_prompts]


def training_prompts(setup: Setup) -> Prompts:
    """Return the prompts of the sets, followed by those that the target writes.

    Raises:  ValueError: an answer could grow beyond the positions of target or draft
    """
    job, teacher = setup.job, setup.teacher
    prompts = tuple(ids for source in job.prompts for ids in encoded(prompt_sets.load(source), teacher.tokenizer))
    if job.self_written:
        with setup.meter("self-written prompts", job.self_written, unit="prompts") as meter:
            wanted = teacher, setup.texts, job.self_written
            prompts += prompts_by(*wanted, batch_rows=job.batch_rows, meter=meter, workers=setup.workers)
    longest = max(map(len, prompts)) + job.max_new_tokens
    for model in (teacher.model, setup.draft.model):
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", longest)
        if longest > positions:
            raise ValueError(
                f"expected prompts and answers of at most {positions} tokens, got {longest}; "
                "leave long prompts out, or use fewer new tokens"
            )
    return prompts


@dataclass(frozen=True, slots=True)
class TrainingText:
    """What a draft is trained on, and where it is stored."""

    stream: Stream
    fixed: TextTable  # by the target; without shards if text is fresh
    fresh: tuple[Path, Path] | None  # folders of fresh text by target and by draft

    def used(self, num_tokens: int) -> tuple[TextTable, TextTable]:
        """Return the text by target and by draft of which `num_tokens` were trained on.

        Fresh text is used once and in order. So it is the first shards of both folders that together hold these tokens.
        """
        if self.fresh is None:
            return self.fixed, replace(self.fixed, shards=())
        tables = [TextTable(folder, ()) for folder in self.fresh]
        for index in count():
            if sum(table.num_tokens for table in tables) >= num_tokens:
                break
            for place, table in enumerate(tables):
                if is_there(table.folder, index):
                    tables[place] = replace(table, shards=(*table.shards, Shard(table.folder, index)))
        return tables[0], tables[1]


def training_text(setup: Setup, prompts: Prompts) -> TrainingText:
    """Return the job's text. Fixed text is sampled now, fresh text while the draft is trained."""
    job, recipe, shares = setup.job, setup.job.recipe, setup.job.recipe.temperatures
    plan = setup.teacher.plan(
        prompts, shares, max_new_tokens=job.max_new_tokens, batch_rows=job.batch_rows, seed=job.seed, through=setup.through
    )
    folder = setup.texts / plan.folder_name
    if not recipe.fresh:
        with setup.meter("sampling", job.text_tokens) as meter:
            table = extend(
                folder, plan, prompts, setup.sampler, num_tokens=job.text_tokens, on_progress=meter.show, workers=setup.workers
            )
        return TrainingText(fixed_text(table.rows, job.plan.batch_tokens, job.seed), table, None)
    if recipe.on_policy:
        folder = setup.out / "by_target"  # holds answers to some of the requests only, so no other run may share it
    else:
        claim(folder, plan)
    folders = (folder, setup.out / "by_draft")
    stream = Stream(partial(_portions, setup, plan, prompts, folders), job.plan.batch_tokens, job.seed)
    return TrainingText(stream, TextTable(folder, ()), folders)


def _portions(setup: Setup, plan: TextPlan, prompts: Prompts, folders: tuple[Path, Path]) -> Iterator[tuple[TextRow, ...]]:
    """Yield text that is used once. The draft of that moment answers its share of each batch, the target the rest.

    Which requests are the draft's follows from the first seed of the batch, so a resumed run divides them alike.
    """

    def draft_sampler(requests: Sequence[Request]) -> Sequence[Answer]:
        # Everything but the model is the target's, so the draft's answers end as the target's do.
        return replace(setup.teacher, model=drafts.measurable(setup.draft)).sampler(setup.job.max_new_tokens)(requests)

    for index, requests in enumerate(batches(plan, prompts)):
        rng = random.Random(requests[0].seed)
        drafted = [rng.random() < setup.job.recipe.on_policy for _ in requests]
        rows: tuple[TextRow, ...] = ()
        for by_draft, folder, sampler in zip((False, True), folders, (setup.sampler, draft_sampler), strict=True):
            share = [request for request, by in zip(requests, drafted, strict=True) if by == by_draft]
            if share:
                rows += sampled_shard(folder, index, share, sampler, workers=setup.workers).rows
        yield rows
