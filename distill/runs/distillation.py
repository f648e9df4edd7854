"""One distillation from prompts to a saved draft: sample text, train on it, measure acceptance, write a card.

Every stage leaves its result in a folder and finds it there again. So a killed run continues where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.prompts import sets as prompt_sets
from bench.protocols import Backend
from bench.records import checkout
from bench.records.storage import LineFile, write_atomically
from distill.evaluation.held_out import TEMPERATURES, HeldOut, held_out_text, measure
from distill.runs.job import CARD, DRAFT, JOB, LOG, Job, check_held_out
from distill.runs.training_text import BY_TARGET, Setup, TrainingText, Used, load_setup, training_prompts, training_text
from distill.text.batches import fill_in
from distill.text.prompts import Prompts
from distill.text.table import frequent_tokens, prompts_hash
from distill.text.workers import ALONE, Workers
from distill.training import drafts
from distill.training.loop import CHECKPOINT, Labels, Position, cached_target, text_labels, train
from distill.training.vocabulary import check_size, vocabulary_of

FREQUENT = "frequent_tokens.json"  # beside the draft's weights: token ids of its text, the most frequent first
RANKED_TOKENS = 16384
EVALUATE_EVERY_S = 300.0
EVALUATED_PROMPTS = 16  # of each held-out set, during training


def distill(
    job: Job, out: Path, texts: Path, *, device: str = "cpu", backend: Backend | None = None, workers: Workers = ALONE
) -> dict[str, Any]:
    """Do the job, or what is left of it, and return the card, which lies beside the draft in `out`.

    Args:    texts: where text is kept; runs on the same text share it
             backend: writes the training text instead of the target, one request at a time
    Raises:  ValueError: `out` holds another job, or prompts, models and job do not fit each other
    """
    described = json.loads(json.dumps(asdict(job) | ({"through": backend.name} if backend else {})))  # lists for tuples
    code, finished = checkout.commit(), (out / CARD).is_file()
    if (out / JOB).exists():
        found = json.loads((out / JOB).read_text())
        begun_by = found.pop("code", None)
        if found != described:
            raise ValueError(f"{out} holds another job (see {JOB} in it); choose another folder")
        if begun_by != code and not finished:
            raise ValueError(f"{out} holds an unfinished job of other code, {begun_by} against {code}; choose another folder")
    if not finished:
        check_held_out(job)
        written = json.dumps(described | {"code": code}, indent=1)
        _run(load_setup(job, out, texts, device=device, backend=backend, workers=workers), written)
    workers.wait()
    if workers.is_main:
        (out / CHECKPOINT).unlink(missing_ok=True)  # the draft holds all that is needed from now on
    return json.loads((out / CARD).read_text())


def _run(setup: Setup, described: str) -> None:
    job, out = setup.job, setup.out
    if job.plan.vocabulary:
        check_size(job.plan.vocabulary, len(setup.teacher.head_VD))  # before the minutes that sampling takes
    with setup.meter("held-out text", len(job.held_out) * len(TEMPERATURES), unit="texts") as meter:
        held_out = held_out_text(setup.teacher, job.held_out, setup.texts, on_text=meter.show, workers=setup.workers)
    prompts = training_prompts(setup)
    write_atomically(out / JOB, described)
    text = training_text(setup, prompts)
    position = _train(setup, text, held_out)
    if setup.workers.is_main:
        drafts.save(setup.draft, out / DRAFT, tokenizer_from=Path(job.target))
        used = text.used(position.num_tokens)
        write_atomically(out / DRAFT / FREQUENT, json.dumps(frequent_tokens(used.all_rows)[:RANKED_TOKENS]))
        # Last, because the card marks the job as finished.
        write_atomically(out / CARD, json.dumps(_card(setup, prompts, used, position, held_out), indent=1))


def _labels(setup: Setup, text: TrainingText) -> Labels:
    recipe, size = setup.job.recipe, setup.job.plan.vocabulary
    vocabulary = vocabulary_of(text.rows, len(setup.teacher.head_VD), size) if size else None
    if recipe.labels == "hard":
        return text_labels(vocabulary)
    if not recipe.fresh:
        fill_in(text.tables[BY_TARGET], setup.teacher.model, workers=setup.workers)
    return cached_target(recipe.loss, setup.teacher.head_VD, vocabulary)


def _train(setup: Setup, text: TrainingText, held_out: Sequence[HeldOut]) -> Position:
    """Train, and log acceptance on a part of the held-out text: after the first step, then every EVALUATE_EVERY_S."""
    part = [replace(each, rows=each.rows[:EVALUATED_PROMPTS]) for each in held_out]
    labels, plan = _labels(setup, text), setup.job.plan
    evaluated_at, acceptance = -EVALUATE_EVERY_S, ""
    # One process writes the log. Another run in the same folder ends here.
    log = LineFile.open(setup.out / LOG) if setup.workers.is_main else None
    with setup.meter("training", plan.num_tokens) as meter, closing(log) if log else nullcontext():

        def on_step(position: Position) -> None:
            nonlocal evaluated_at, acceptance
            if log is None:
                return
            if time.monotonic() - evaluated_at > EVALUATE_EVERY_S:
                found = measure(drafts.measurable(setup.draft), setup.teacher, part)
                acceptance = " ".join(f"{each.alpha_text:.3f}" for each in found)
                state = {"tokens": position.num_tokens, "seconds": position.seconds, "loss": position.losses[-1]}
                log.append(json.dumps({**state, "held_out": [asdict(each) for each in found]}).encode())
                evaluated_at = time.monotonic()
            meter.show(position.num_tokens, f"loss {position.recent_loss():.3f}  alpha_text {acceptance}")

        return train(setup.draft, text.stream, labels, plan, setup.out, on_step=on_step, workers=setup.workers)


def _card(setup: Setup, prompts: Prompts, used: Used, position: Position, held_out: Sequence[HeldOut]) -> dict[str, Any]:
    job = setup.job
    found = measure(drafts.measurable(setup.draft), setup.teacher, held_out)
    return {
        **asdict(job),
        "target": Path(job.target).name,
        "target_sha256": setup.teacher.sha256,
        "start": Path(job.start).name,
        "prompts": [prompt_sets.load(source).name for source in job.prompts],
        "prompts_sha256": prompts_hash(prompts),
        "held_out": [prompt_sets.load(source).name for source in job.held_out],
        "through": setup.through,
        "distinct_prompts": used.distinct_prompts,
        "tokens": used.tokens | {"trained": position.num_tokens},
        "seconds": used.seconds | {"trained": position.seconds},
        "held_out_acceptance": [asdict(each) for each in found],
    }
