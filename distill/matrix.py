"""The KD matrix: drafts trained at KD temperatures, each measured at many decode temperatures along the target's own text.

Every draft is a job of `distill.run` in a folder of its own; every finished draft adds one line to a record. A matrix that was
stopped goes on with the next draft. Acceptance is analytic (`distill.alpha`), a number for every prompt, so that a cell's
interval covers other prompts and other seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.environment import machine_slug
from distill import drafts, recipes
from distill.alpha import acceptance, slot_totals
from distill.held_out import NUM_DRAFT_TOKENS, HeldOut, held_out_text
from distill.recipes import Recipe
from distill.run import DRAFT, Job, distill
from distill.teacher import Teacher, load_teacher
from distill.text import write_atomically

ARMS = ("offline", "online", "mixture", "composed")
KD_TEMPERATURES = tuple(step / 5 for step in range(6))
DECODE_TEMPERATURES = tuple(step / 10 for step in range(11))
START = "start"  # the name of the draft that all others start from, which is measured too
IN_SECONDS_OF = "="  # offline=online: offline on as many tokens as the seconds of online are worth
RECORD, DRAFTS = "matrix.jsonl", "drafts"


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


@dataclass(frozen=True, slots=True)
class Cell:
    """One draft at one decode temperature on one domain: sums over each prompt's text, at the k of `held_out`."""

    domain: str
    temperature: float
    tokens: tuple[int, ...]
    overlap: tuple[float, ...]  # of all tokens; / tokens: alpha_text
    tested: tuple[float, ...]
    accepted: tuple[float, ...]  # / tested: alpha
    emitted: tuple[int, ...]
    rounds: tuple[float, ...]  # emitted / rounds: block efficiency
    # Of the start: overlap along the domain's text of the first T, decoded at this one; over its tokens: the softmax's share.
    rescaled: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """A line of the record."""

    draft: str
    arm: str
    kd_temperature: float | None  # none: a mixture, or the start
    on_policy: float
    seed: int | None
    tokens: dict[str, int]
    seconds: dict[str, float]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A record: what was asked for, in plain data, and the drafts measured so far."""

    plan: dict[str, Any]
    measured: tuple[Measured, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        return _domains(self.plan)

    def on(self, domain: str) -> Matrix:
        """What was measured on one domain."""
        only = (tuple(cell for cell in line.cells if cell.domain == domain) for line in self.measured)
        lines = (replace(line, cells=cells) for line, cells in zip(self.measured, only, strict=True))
        return Matrix(self.plan | {"domains": [domain]}, tuple(lines))


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
        measured: list[Cell] = []
        for domain, of_domain in text().items():
            found = cells(model, teacher, of_domain, domain)
            if name == START:
                sums = rescaled(model, teacher, of_domain)
                found = tuple(replace(cell, rescaled=of_cell) for cell, of_cell in zip(found, sums, strict=True))
            measured += found
        done[name] = Measured(draft=name, cells=tuple(measured), **made)
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


def _within_budget(planned: Planned, measured: Mapping[str, Measured]) -> Job:
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


def cells(draft: Any, teacher: Teacher, texts: Sequence[HeldOut], domain: str) -> tuple[Cell, ...]:
    """The draft along each text, a number for every prompt; draft T = decode T."""
    found = []
    for text in texts:
        (along,) = acceptance(draft, text.rows, teacher.head_VD, [(text.temperature, text.temperature)])
        totals = [slot_totals([of_prompt], NUM_DRAFT_TOKENS) for of_prompt in along]
        found.append(
            Cell(
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


def load(path: Path) -> Matrix:
    """A record. A last line that was cut short by a crash is left out, and taken out of the file.

    Raises:  ValueError: no record, or one that is damaged elsewhere
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomically(path, whole)
    try:
        header, *lines = (json.loads(line) for line in whole.splitlines())
        plan = header["plan"]
        only = {"domain": _domains(plan)[0]}  # of records of one domain, whose cells do not name it
        measured = tuple(
            Measured(**line | {"cells": tuple(Cell(**only | cell) for cell in line["cells"])}) for line in lines
        )
        return Matrix(plan, measured)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record of a KD matrix ({error})") from error


def merged(records: Sequence[Path]) -> list[Matrix]:
    """The drafts of records that were made alike, arms, KD temperatures and seeds apart; the newest first.

    Args:    records: oldest first; of a draft that is in several the newest line counts
    """
    waiting = [load(path) for path in records]
    groups = []
    while waiting:
        plan = waiting[-1].plan
        alike = [each for each in waiting if _conditions(each.plan) == _conditions(plan)]
        waiting = [each for each in waiting if _conditions(each.plan) != _conditions(plan)]
        groups.append(Matrix(plan, tuple({line.draft: line for each in alike for line in each.measured}.values())))
    return groups


def _conditions(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What drafts must share to stand in one table."""
    job = {name: value for name, value in plan["job"].items() if name not in ("recipe", "seed", "text_tokens")}
    return {"job": job, "domains": _domains(plan), "decode_temperatures": plan["decode_temperatures"]}


def _domains(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Plans had one `domain` before they had several."""
    return tuple(plan["domains"] if "domains" in plan else [plan["domain"]])


def store(out: Path, results: Path, *, suite: str = "kd_matrix") -> Path:
    """Copy a finished record to where records of this machine are kept.

    Returns: results/<machine>/<suite>/<moment>-<commit>.jsonl
    """
    content = (out / RECORD).read_bytes()
    header = json.loads(content.splitlines()[0])
    moment = datetime.fromisoformat(header["created"]).strftime("%Y%m%dT%H%M%SZ")
    env = header["environment"]
    path = results / machine_slug(env) / suite / f"{moment}-{env.get('harness_commit', 'unknown')}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path
