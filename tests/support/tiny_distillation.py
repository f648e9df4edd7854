"""A tiny target, a draft that agrees with it half of the time, prompts and text: a distillation takes seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from distill.runs.job import Job
from distill.text.sampler import sample_answers
from distill.text.table import TextPlan, TextRow, extend, prompts_hash
from distill.training.drafts import Draft, trainable
from distill.training.loop import TrainPlan
from distill.training.recipes import Recipe
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

END = 2  # of the tiny tokenizer
# One digit each: the tokenizer finds its special words w0, w1 and w2 in the others.
WINDOW_BATCHES = 16
PROMPTS = tuple((3 + place % 7, 3 + place // 7, 3 + 3 * place % 7, 3 + 5 * place % 7) for place in range(24))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: for tiny products more threads cost more than they save, most of all beside other programs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_target(*, num_layers: int = 2) -> LlamaForCausalLM:
    target = tiny_llama(seed=1, num_layers=num_layers)
    target.generation_config.eos_token_id = END
    return target


def tiny_draft(*, num_layers: int = 2) -> LlamaForCausalLM:
    """Return a draft that agrees with the target on about half of the tokens."""
    return nearby(tiny_target(num_layers=num_layers), seed=2, noise=0.08)


def tiny_text(
    folder: Path,
    temperature: float,
    *,
    num_tokens: int = 600,
    max_new_tokens: int = 24,
    target: LlamaForCausalLM | None = None,
) -> tuple[TextRow, ...]:
    """Return text of the tiny target, or of another, at one T."""
    plan = TextPlan(
        model="tiny",
        prompts=prompts_hash(PROMPTS),
        temperatures=((temperature, 1.0),),
        max_new_tokens=max_new_tokens,
        end_token_ids=(END,),
        batch_rows=len(PROMPTS),
        seed=3,
    )
    sample = partial(sample_answers, target or tiny_target(), max_new_tokens=max_new_tokens, end_token_ids=(END,))
    return extend(folder, plan, PROMPTS, sample, num_tokens=num_tokens).rows


def tiny_windows(
    folder: Path, temperature: float, *, num_windows: int, max_new_tokens: int, target: LlamaForCausalLM
) -> tuple[TextRow, ...]:
    """Return the rows of the first windows of batches. Every batch has every prompt once."""
    num_rows = num_windows * WINDOW_BATCHES * len(PROMPTS)
    limits = {"num_tokens": num_rows * max_new_tokens, "max_new_tokens": max_new_tokens}
    return tiny_text(folder, temperature, target=target, **limits)[:num_rows]


def in_training(model: LlamaForCausalLM | None = None, trained: str = "layers") -> Draft:
    return trainable(model or tiny_draft(), trained)  # type: ignore[arg-type]


def weights(draft: Draft) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in draft.parameters()}


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def tiny_job(folder: Path, recipe: Recipe, **changed: object) -> Job:
    """Return a job on checkpoints and prompts, which are made in `folder` if they are not there."""
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        lines = [
            {"text": " ".join(f"w{token}" for token in ids), "split": "held_out" if place % 3 == 0 else "train"}
            for place, ids in enumerate(PROMPTS)
        ]
        save_checkpoint(tiny_target(), folder / "target")
        save_checkpoint(tiny_draft(), folder / "start")
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {
        "target": str(folder / "target"),
        "start": str(folder / "start"),
        "layers": (),
        "trained": "layers",
        "adapter_rank": 4,
        "recipe": recipe,
        "plan": TrainPlan(num_tokens=1000, batch_tokens=256, learning_rate=5e-3),
        "text_tokens": 0 if recipe.fresh else 500,
        "prompts": (f"{prompts}:train",),
        "self_written": 0,
        "held_out": (f"{prompts}:held_out",),
        "max_new_tokens": 16,
        "batch_rows": 16,
        "seed": 0,
    }
    return Job(**(options | changed))  # type: ignore[arg-type]
