"""One distillation as data: everything that a run depends on, and the names of the files that it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from bench.prompts import sets as prompt_sets
from distill.training.drafts import TRAINED, Trained
from distill.training.loop import TrainPlan
from distill.training.recipes import Recipe

JOB, CARD, LOG, DRAFT = "job.json", "card.json", "log.jsonl", "draft"
PROMPTS = ("instructions:train", "word_problems:train")  # by default
HELD_OUT = ("instructions:held_out", "word_problems:held_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that a run depends on. A folder holds one job."""

    target: str  # folder
    start: str = ""  # folder of the draft to start from; empty: built from layers of the target
    layers: tuple[int, ...] = ()  # of the target, if the draft is built from them
    trained: Trained
    adapter_rank: int = 8
    recipe: Recipe
    plan: TrainPlan
    text_tokens: int  # answer tokens of fixed text; fresh text is as long as the training
    prompts: tuple[str, ...]
    self_written: int = 0  # number of prompts that the target writes itself
    held_out: tuple[str, ...]
    max_new_tokens: int
    batch_rows: int  # answers sampled at once
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
            raise ValueError(f"expected a draft to start from or layers of the target, got {self.start!r}, {self.layers}")
        if not self.prompts and not self.self_written:
            raise ValueError("expected prompt sets or self-written prompts, got neither")
        if self.plan.vocabulary and (self.recipe.fresh or (self.recipe.labels == "soft" and not self.recipe.loss.temperature)):
            raise ValueError(
                "expected the whole vocabulary (0) for fresh text and for soft labels at loss temperature 0, "
                f"got a part of {self.plan.vocabulary}"
            )
        if self.recipe.name == "reference" and (self.self_written or not self.prompts):
            raise ValueError("recipe reference trains on the answers in prompt sets; expected sets and no self-written prompts")
        if not self.held_out:
            raise ValueError("expected a held-out prompt set, got none")


def check_held_out(job: Job) -> None:
    """Raise ValueError if a prompt set cannot be read, or if a held-out prompt is trained on."""
    trained, held_out = (
        {(prompt.messages, prompt.text) for source in sources for prompt in prompt_sets.load(source).prompts}
        for sources in (job.prompts, job.held_out)
    )
    if shared := trained & held_out:
        raise ValueError(
            f"expected held-out prompts that are not trained on, got {len(shared)} of {len(held_out)} that are; "
            "give other sets, such as NAME:train and NAME:held_out"
        )
