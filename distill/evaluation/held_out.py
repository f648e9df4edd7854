"""Acceptance on prompts that no draft was trained on: along the target's text on them, which is made once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from bench.prompts import sets as prompt_sets
from bench.records.kd_matrix import NUM_DRAFT_TOKENS
from distill.evaluation.alpha import acceptance, alpha_text, slot_totals
from distill.text.prompts import encoded
from distill.text.sampler import Request
from distill.text.table import TextRow, claim, sampled_shard
from distill.text.teacher import Teacher
from distill.text.workers import ALONE, Workers

TEMPERATURES = (0.0, 0.5, 1.0)
NUM_PROMPTS = NUM_TOKENS = 64  # prompts of each set, tokens of each answer


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The target's text at one T, one answer per prompt."""

    prompt_set: str
    temperature: float
    rows: tuple[TextRow, ...]


@dataclass(frozen=True, slots=True)
class HeldOutAcceptance:
    """The acceptance of a draft along a held-out text; draft T = decode T = the text's T."""

    prompt_set: str
    temperature: float
    num_prompts: int
    alpha_text: float
    num_draft_tokens: int
    alpha: float  # of the decoder, at this k
    block_efficiency: float


def held_out_text(
    teacher: Teacher,
    sources: Sequence[str],
    texts: Path,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    on_text: Callable[[int], None] = lambda num_texts: None,
    workers: Workers = ALONE,
) -> tuple[HeldOut, ...]:
    """Return the target's text on the first prompts of each set, at each T, kept in a folder of `texts`."""
    found: list[HeldOut] = []
    for source in sources:
        prompt_set = prompt_sets.load(source)
        prompts = encoded(prompt_set, teacher.tokenizer)[:NUM_PROMPTS]
        for temperature in temperatures:
            on_text(len(found))
            # Seed 0: the same text for every run, whatever the seed of its training.
            plan = teacher.plan(prompts, ((temperature, 1.0),), max_new_tokens=NUM_TOKENS, batch_rows=len(prompts), seed=0)
            folder = texts / f"held-out-{plan.folder_name}"
            claim(folder, plan)
            rng = random.Random(plan.seed)
            requests = [Request(prompt, temperature, rng.getrandbits(62)) for prompt in prompts]
            shard = sampled_shard(folder, 0, requests, teacher.sampler(NUM_TOKENS), workers=workers)
            found.append(HeldOut(prompt_set.name, temperature, shard.rows))
    on_text(len(found))
    return tuple(found)


def measure(draft: PreTrainedModel, teacher: Teacher, held_out: Sequence[HeldOut]) -> tuple[HeldOutAcceptance, ...]:
    found: list[HeldOutAcceptance] = []
    for text in held_out:
        (along,) = acceptance(draft, text.rows, teacher.head_VD, [(text.temperature, text.temperature)])
        totals = slot_totals(along, NUM_DRAFT_TOKENS)
        of_text = (text.prompt_set, text.temperature, len(text.rows), alpha_text(along))
        found.append(HeldOutAcceptance(*of_text, NUM_DRAFT_TOKENS, totals.alpha, totals.block_efficiency))
    return tuple(found)
