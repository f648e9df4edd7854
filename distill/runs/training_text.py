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
from distill.text.batches import fill_in, with_target_states
from distill.text.prompts import Prompts, encoded, self_written, user_turn
from distill.text.sampler import Answer, Request, Sampler
from distill.text.table import (
    Shard,
    TextPlan,
    TextRow,
    TextTable,
    batches,
    claim,
    extend,
    first_rows,
    is_there,
    sampled_shard,
    write_shard,
)
from distill.text.teacher import Teacher, load_teacher, through_backend
from distill.text.workers import ALONE, Workers
from distill.training import drafts
from distill.training.drafts import Draft
from distill.training.loop import Stream, fixed_text

BY_TARGET, BY_DRAFT, REFERENCE = "text_by_target", "text_by_draft", "reference_answers"  # writers; also names of folders
PORTION_ROWS = 32  # answers that the draft writes before it is trained on them
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
    draft = drafts.trainable(model, job.trained, adapter_rank=job.adapter_rank, seed=job.seed)
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
class Used:
    """The rows that a draft was trained on, by who wrote them, and the seconds of their sampling."""

    rows: dict[str, tuple[TextRow, ...]]
    seconds: dict[str, float]

    @property
    def tokens(self) -> dict[str, int]:
        """Answer tokens, each counted once however often it was used."""
        return {writer: sum(len(row.answer) for row in rows) for writer, rows in self.rows.items()}

    @property
    def all_rows(self) -> tuple[TextRow, ...]:
        return tuple(row for rows in self.rows.values() for row in rows)

    @property
    def distinct_prompts(self) -> int:
        return len({tuple(row.prompt.tolist()) for row in self.all_rows})


@dataclass(frozen=True, slots=True)
class TrainingText:
    """What a draft is trained on, and where it is stored."""

    stream: Stream
    rows: tuple[TextRow, ...]  # of fixed text; none if text is fresh
    tables: dict[str, TextTable]  # by writer: fixed text, or folders that fresh text is stored in

    def used(self, num_tokens: int) -> Used:
        """Return the text of which `num_tokens` were trained on.

        Fresh text is used once and in order. So it is the first shards of all folders that together hold these tokens.
        """
        if self.rows:
            rows = first_rows(self.rows, num_tokens)  # all of them, unless the training ended within the first pass
            ((writer, table),) = self.tables.items()
            share = sum(len(row.answer) for row in rows) / table.num_tokens
            return Used({writer: rows}, {writer: share * table.seconds})
        shards: dict[str, list[Shard]] = {writer: [] for writer in self.tables}
        for index in count():
            if sum(shard.num_tokens for each in shards.values() for shard in each) >= num_tokens:
                break
            for writer, table in self.tables.items():
                if is_there(table.folder, index):
                    shards[writer].append(Shard(table.folder, index))
        rows_of = {writer: tuple(row for shard in each for row in shard.rows) for writer, each in shards.items()}
        return Used(rows_of, {writer: sum(shard.seconds for shard in each) for writer, each in shards.items()})


def training_text(setup: Setup, prompts: Prompts) -> TrainingText:
    """Return the job's text. Fixed text is sampled or read now, fresh text while the draft is trained."""
    job, recipe = setup.job, setup.job.recipe
    if recipe.name == "reference":
        return _fixed(job, _reference_text(setup), REFERENCE)
    # The draft changes all the time, so it writes few answers at once.
    batch_rows = min(job.batch_rows, PORTION_ROWS) if recipe.on_policy else job.batch_rows
    plan = setup.teacher.plan(
        prompts,
        recipe.temperatures,
        max_new_tokens=job.max_new_tokens,
        batch_rows=batch_rows,
        seed=job.seed,
        through=setup.through,
    )
    folder = setup.texts / plan.folder_name
    if not recipe.fresh:
        with setup.meter("sampling", job.text_tokens) as meter:
            table = extend(
                folder, plan, prompts, setup.sampler, num_tokens=job.text_tokens, on_progress=meter.show, workers=setup.workers
            )
        return _fixed(job, table, BY_TARGET)
    if recipe.on_policy:
        folder = setup.out / BY_TARGET  # holds answers to some of the requests only, so no other run may share it
    else:
        claim(folder, plan)
    folders = {BY_TARGET: folder, BY_DRAFT: setup.out / BY_DRAFT}
    stream = Stream(partial(_portions, setup, plan, prompts, folders), job.plan.batch_tokens, job.seed)
    return TrainingText(stream, (), {writer: TextTable(each, ()) for writer, each in folders.items()})


def _fixed(job: Job, table: TextTable, writer: str) -> TrainingText:
    rows = first_rows(table.rows, job.text_tokens)
    return TrainingText(fixed_text(rows, job.plan.batch_tokens, job.seed), rows, {writer: table})


def _reference_text(setup: Setup) -> TextTable:
    """Return the answers that stand in the prompt sets, each followed by the target's end token, in one stored shard.

    Raises:  ValueError: a prompt has no answer
    """
    job, tokenizer = setup.job, setup.teacher.tokenizer
    requests, answers = [], []
    for source in job.prompts:
        prompt_set = prompt_sets.load(source)
        if missing := [prompt for prompt in prompt_set.prompts if not prompt.answer.strip()]:
            raise ValueError(
                f"{prompt_set.name}, line {missing[0].index + 1}: expected an answer to train on, got none; "
                'give it as "answer" or "output"'
            )
        for prompt, ids in zip(prompt_set.prompts, encoded(prompt_set, tokenizer), strict=True):
            answer = [*tokenizer(prompt.answer, add_special_tokens=False)["input_ids"], setup.teacher.end_token_ids[0]]
            requests.append(Request(ids, 0.0, 0))
            answers.append(Answer(torch.tensor(answer[: job.max_new_tokens]), None))
    order = random.Random(job.seed).sample(range(len(requests)), len(requests))
    folder = setup.out / REFERENCE
    if setup.workers.is_main and not is_there(folder, 0):
        write_shard(folder, 0, [requests[place] for place in order], [answers[place] for place in order], seconds=0.0)
    setup.workers.wait()
    return TextTable(folder, (Shard(folder, 0),))


def _portions(setup: Setup, plan: TextPlan, prompts: Prompts, folders: dict[str, Path]) -> Iterator[tuple[TextRow, ...]]:
    """Yield text that is used once. The draft of that moment answers its share of each batch, the target the rest.

    Which requests are the draft's follows from the first seed of the batch, so a resumed run divides them alike.
    """

    def draft_sampler(requests: Sequence[Request]) -> Sequence[Answer]:
        # Everything but the model is the target's, so the draft's answers end as the target's do.
        writer = replace(setup.teacher, model=drafts.measurable(setup.draft))
        return with_target_states(setup.teacher.model, requests, writer.sampler(setup.job.max_new_tokens)(requests))

    samplers = {BY_TARGET: setup.sampler, BY_DRAFT: draft_sampler}
    for index, requests in enumerate(batches(plan, prompts)):
        rng = random.Random(requests[0].seed)
        drafted = [rng.random() < setup.job.recipe.on_policy for _ in requests]
        rows: tuple[TextRow, ...] = ()
        for writer, sampler in samplers.items():
            share = [request for request, by in zip(requests, drafted, strict=True) if by == (writer == BY_DRAFT)]
            if share:
                shard = sampled_shard(folders[writer], index, share, sampler, workers=setup.workers)
                fill_in(TextTable(folders[writer], (shard,)), setup.teacher.model, workers=setup.workers)
                rows += shard.rows
        yield rows
