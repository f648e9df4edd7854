"""The KD matrix: drafts trained at KD temperatures, each measured at many decode temperatures along the target's own text.

Every draft is a job of `distill.runs.job` in a folder of its own; every finished draft adds one line to a record. A matrix that was
stopped goes on with the next draft. Acceptance is analytic (`distill.evaluation.alpha`), a number for every prompt, so that a cell's
interval covers other prompts and other seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.records.files import write_atomically
from bench.records.kd_matrix import (
    DRAFTS,
    IN_SECONDS_OF,
    NUM_DRAFT_TOKENS,
    RECORD,
    START,
    Matrix,
    MatrixCell,
    MeasuredDraft,
    load,
)
from distill.evaluation.alpha import acceptance, slot_totals
from distill.evaluation.held_out import HeldOut, held_out_text
from distill.runs.job import DRAFT, Job, distill
from distill.text.teacher import Teacher, load_teacher
from distill.training import drafts, recipes
from distill.training.recipes import Recipe

ARMS = ("offline", "online", "mixture", "composed")
KD_TEMPERATURES = tuple(step / 5 for step in range(6))
DECODE_TEMPERATURES = tuple(step / 10 for step in range(11))


@dataclass(frozen=True, slots=True)
class Planned:
    """A draft to be trained."""

    name: str
    arm: str  # as tables call it
    job: Job
    budget: tuple[str, str] | None  # the same draft at the plan's tokens, and the one whose seconds this one gets


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """Which drafts are trained, and where they are measured. All else is in the job they share."""

    arms: tuple[str, ...]
    kd_temperatures: tuple[float, ...]
    decode_temperatures: tuple[float, ...]
    seeds: tuple[int, ...]
    domains: tuple[str, ...]  # held-out prompt sets; claims are about the first
    job: Job  # of recipe and seed the first is meant

    def __post_init__(self) -> None:
        for name in ("arms", "kd_temperatures", "decode_temperatures", "seeds", "domains"):
            if not getattr(self, name):
                raise ValueError(f"expected {name}, got none")
        for place, arm in enumerate(self.arms):
            trained, _, other = arm.partition(IN_SECONDS_OF)
            _recipes_of(trained, self.kd_temperatures)
            if other and not {trained, other} <= set(self.arms[:place]):
                raise ValueError(f"expected the arms {trained} and {other} before {arm}, got {', '.join(self.arms)}")

    def drafts(self) -> Iterator[Planned]:
        """One seed after the other, so that a matrix that is stopped has whole ones."""
        for seed in self.seeds:
            for arm in self.arms:
                trained, _, other = arm.partition(IN_SECONDS_OF)
                others = _recipes_of(other, self.kd_temperatures) if other else ()
                for place, recipe in enumerate(_recipes_of(trained, self.kd_temperatures)):
                    text_tokens = 0 if recipe.fresh else self.job.plan.num_tokens
                    yield Planned(
                        draft_name(arm, recipe, seed),
                        f"{recipe.name}, in the seconds of {other}" if other else recipe.name,
                        replace(self.job, recipe=recipe, seed=seed, text_tokens=text_tokens),
                        # An arm of one draft is held against each of the other's in turn, the first where it has but one.
                        budget=(
                            draft_name(trained, recipe, seed),
                            draft_name(other, others[min(place, len(others) - 1)], seed),
                        )
                        if others
                        else None,
                    )


def _recipes_of(arm: str, kd_temperatures: Sequence[float]) -> list[Recipe]:
    """An arm is a recipe at every KD temperature, or once where the recipe mixes temperatures; `online@0.5` sets lambda."""
    name, _, on_policy = arm.partition("@")
    if name == "composed":
        made = [recipes.recipe(name)]
    elif name in recipes.MIXED:
        made = [recipes.recipe(name, max(kd_temperatures))]
    else:
        made = [recipes.recipe(name, temperature) for temperature in kd_temperatures]
    if not on_policy:
        return made
    try:
        share = float(on_policy)
    except ValueError:
        raise ValueError(f"expected a lambda in 0..1 behind the @, got {arm!r}") from None
    return [replace(recipe, on_policy=share) for recipe in made]


def draft_name(arm: str, recipe: Recipe, seed: int) -> str:
    """As its folder is called, such as online-t0.4-seed1."""
    at = f"-t{recipe.temperatures[0][0]:g}" if len(recipe.temperatures) == 1 else ""
    return f"{arm.replace('@', '-lambda').replace(IN_SECONDS_OF, '-seconds-of-')}{at}-seed{seed}"


def run(
    plan: MatrixPlan, out: Path, texts: Path, *, device: str, header: dict[str, Any], on_draft: Callable[[str], None]
) -> Matrix:
    """Train and measure what the record in `out` lacks.

    Args:    header: goes to the head of a new record beside the plan: environment, command
             on_draft: told the name of each draft before it is trained or measured
    Raises:  ValueError: the record is of another plan
    """
    path = out / RECORD
    out.mkdir(parents=True, exist_ok=True)
    asked = json.loads(json.dumps(_public(plan)))
    if not path.exists():
        write_atomically(path, (json.dumps({"plan": asked, **header}) + "\n").encode())
    found = load(path)
    if found.plan != asked:
        raise ValueError(f"{path} is of another plan; choose another folder")
    teacher = load_teacher(Path(plan.job.target), device=device)
    done = {line.draft: line for line in found.measured}
    text = cache(lambda: _texts(plan, teacher, texts))

    def measure(name: str, folder: Path, made: dict[str, Any]) -> None:
        model = drafts.cast(drafts.load(folder, dtype=torch.bfloat16), teacher.model.dtype).to(teacher.model.device)
        measured: list[MatrixCell] = []
        for domain, of_domain in text().items():
            found = cells(model, teacher, of_domain, domain)
            if name == START:
                sums = rescaled(model, teacher, of_domain)
                found = tuple(replace(cell, rescaled=of_cell) for cell, of_cell in zip(found, sums, strict=True))
            measured += found
        done[name] = MeasuredDraft(draft=name, cells=tuple(measured), **made)
        with path.open("a") as file:
            file.write(json.dumps(asdict(done[name])) + "\n")

    if START not in done:
        on_draft(START)
        nothing: dict[str, Any] = {"kd_temperature": None, "on_policy": 0.0, "seed": None, "tokens": {}, "seconds": {}}
        measure(START, Path(plan.job.start), {"arm": START, **nothing})
    for planned in plan.drafts():
        name, job = planned.name, _within_budget(planned, done)
        if name in done:
            continue
        on_draft(name)
        folder = out / DRAFTS / name
        card = distill(job, folder, texts, device=device)
        shares = job.recipe.temperatures
        made = {
            "arm": planned.arm,
            "kd_temperature": shares[0][0] if len(shares) == 1 else None,
            "on_policy": job.recipe.on_policy,
            "seed": job.seed,
            "tokens": card["tokens"],
            "seconds": card["seconds"],
        }
        measure(name, folder / DRAFT, made)
    return load(path)


def _within_budget(planned: Planned, measured: Mapping[str, MeasuredDraft]) -> Job:
    """The job on as many tokens as it is to have: the plan's, or what another draft's seconds are worth at its own pace."""
    if planned.budget is None:
        return planned.job
    own_s, other_s = (sum(measured[name].seconds.values()) for name in planned.budget)
    job = planned.job
    num_tokens = round(job.plan.num_tokens * other_s / own_s)
    text_tokens = num_tokens if job.text_tokens else 0
    return replace(job, plan=replace(job.plan, num_tokens=num_tokens), text_tokens=text_tokens)


def _public(plan: MatrixPlan) -> dict[str, Any]:
    """The plan without folders of this machine."""
    job = replace(plan.job, target=Path(plan.job.target).name, start=Path(plan.job.start).name)
    return asdict(replace(plan, job=job))


def _texts(plan: MatrixPlan, teacher: Teacher, texts: Path) -> dict[str, tuple[HeldOut, ...]]:
    at = plan.decode_temperatures
    return {domain: held_out_text(teacher, (domain,), texts, temperatures=at) for domain in plan.domains}


def cells(draft: Any, teacher: Teacher, texts: Sequence[HeldOut], domain: str) -> tuple[MatrixCell, ...]:
    """The draft along each text, a number for every prompt; draft T = decode T."""
    found = []
    for text in texts:
        (along,) = acceptance(draft, text.rows, teacher.head_VD, [(text.temperature, text.temperature)])
        totals = [slot_totals([of_prompt], NUM_DRAFT_TOKENS) for of_prompt in along]
        found.append(
            MatrixCell(
                domain=domain,
                temperature=text.temperature,
                tokens=tuple(len(of_prompt.overlap) for of_prompt in along),
                overlap=tuple(round(sum(of_prompt.overlap), 4) for of_prompt in along),
                tested=tuple(round(each.tested, 4) for each in totals),
                accepted=tuple(round(each.accepted, 4) for each in totals),
                emitted=tuple(each.emitted for each in totals),
                rounds=tuple(round(each.rounds, 4) for each in totals),
            )
        )
    return tuple(found)


def rescaled(draft: Any, teacher: Teacher, texts: Sequence[HeldOut]) -> tuple[tuple[float, ...], ...]:
    """Overlap along the first text, prompt by prompt, decoded at the temperature of each: same contexts, another softmax."""
    temperatures = [(text.temperature, text.temperature) for text in texts]
    found = acceptance(draft, texts[0].rows, teacher.head_VD, temperatures)
    return tuple(tuple(round(sum(of_prompt.overlap), 4) for of_prompt in along) for along in found)
