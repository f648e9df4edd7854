"""The KD matrix: drafts trained at KD temperatures, each measured at many decode temperatures along the target's own text.

Every draft is a job of `distill.runs.distillation` in a separate folder, and adds one line to the record when it is measured.
A matrix that was stopped continues with the next draft. Acceptance is analytic (`distill.evaluation.alpha`), with one number
per prompt, so that the interval of a cell covers other prompts and other seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.errors import IncomparableResults
from bench.records import environment, kd_matrix
from bench.records.command_line import own_words
from bench.records.environment import RESUMABLE_KEYS, check_comparable
from bench.records.files import line_header
from bench.records.kd_matrix import DRAFTS, IN_SECONDS_OF, NUM_DRAFT_TOKENS, RECORD, START, Matrix, MatrixCell, MeasuredDraft
from distill.evaluation.alpha import TextAcceptance, acceptance, slot_totals
from distill.evaluation.held_out import HeldOut, held_out_text
from distill.runs.distillation import distill
from distill.runs.job import DRAFT, Job
from distill.text.teacher import Teacher, load_teacher
from distill.training import drafts, recipes
from distill.training.recipes import Recipe


@dataclass(frozen=True, slots=True)
class PlannedDraft:
    """A draft to be trained."""

    name: str
    arm: str  # as tables name it
    job: Job
    budget: tuple[str, str] | None  # the same draft with the plan's tokens, and the draft whose seconds this one gets


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """Which drafts are trained, and where they are measured. Everything else is in the job that they share."""

    arms: tuple[str, ...]
    kd_temperatures: tuple[float, ...]
    decode_temperatures: tuple[float, ...]
    seeds: tuple[int, ...]
    domains: tuple[str, ...]  # held-out prompt sets; claims are about the first
    job: Job  # its recipe, seed and text_tokens are replaced for each draft

    def __post_init__(self) -> None:
        for name in ("arms", "kd_temperatures", "decode_temperatures", "seeds", "domains"):
            if not getattr(self, name):
                raise ValueError(f"expected {name}, got none")
        for place, arm in enumerate(self.arms):
            trained, _, other = arm.partition(IN_SECONDS_OF)
            _recipes_of(trained, self.kd_temperatures)
            # The seconds of both must have been measured before they can be compared.
            if other and not {trained, other} <= set(self.arms[:place]):
                raise ValueError(f"expected the arms {trained} and {other} before {arm}, got {', '.join(self.arms)}")

    def drafts(self) -> Iterator[PlannedDraft]:
        """Yield all drafts, seed by seed, so that a matrix that is stopped has whole seeds."""
        for seed in self.seeds:
            for arm in self.arms:
                trained, _, other = arm.partition(IN_SECONDS_OF)
                others = _recipes_of(other, self.kd_temperatures) if other else []
                for place, recipe in enumerate(_recipes_of(trained, self.kd_temperatures)):
                    text_tokens = 0 if recipe.fresh else self.job.plan.num_tokens
                    job = replace(self.job, recipe=recipe, seed=seed, text_tokens=text_tokens)
                    name, budget = draft_name(arm, recipe, seed), None
                    if others:  # the draft of the same place, or the only one
                        against = others[min(place, len(others) - 1)]
                        budget = draft_name(trained, recipe, seed), draft_name(other, against, seed)
                    label = f"{recipe.name}, in the seconds of {other}" if other else recipe.name
                    yield PlannedDraft(name, label, job, budget)


def _recipes_of(arm: str, kd_temperatures: Sequence[float]) -> list[Recipe]:
    """Return the recipe at every KD temperature, or once if it mixes temperatures. `online@0.5` sets lambda."""
    name, _, on_policy = arm.partition("@")
    at: Sequence[float | None] = kd_temperatures
    if name in recipes.MIXED:
        at = [None if name == "composed" else max(kd_temperatures)]
    made = [recipes.recipe(name, temperature) for temperature in at]
    if not on_policy:
        return made
    try:
        share = float(on_policy)
    except ValueError:
        raise ValueError(f"expected a lambda in 0..1 after the @, got {arm!r}") from None
    return [replace(recipe, on_policy=share) for recipe in made]


def draft_name(arm: str, recipe: Recipe, seed: int) -> str:
    """Return the name of the draft's folder, such as online-t0.4-seed1."""
    at = f"-t{recipe.temperatures[0][0]:g}" if len(recipe.temperatures) == 1 else ""
    return f"{arm.replace('@', '-lambda').replace(IN_SECONDS_OF, '-seconds-of-')}{at}-seed{seed}"


def record_header(*, device: str, pair: str, model_hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return the header of a record that begins now, apart from the plan."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": own_words(),
        "environment": environment.capture(device),
        "model_pair": pair,
        "model_hashes": dict(model_hashes),
    }


def run(
    plan: MatrixPlan, out: Path, texts: Path, *, device: str, header: dict[str, Any], note: Callable[[str], None]
) -> Matrix:
    """Train and measure every draft that the record in `out` lacks.

    Args:    header: the header of a new record, apart from the plan
             note: called with one line before each draft is trained or measured
    Raises:  ValueError: the record is of another plan, or was begun by other code or on another machine
             StorageError: another process adds drafts to the record
    """
    path = out / RECORD
    named = replace(plan.job, target=Path(plan.job.target).name, start=Path(plan.job.start).name)  # no folders of this machine
    described = json.loads(json.dumps(asdict(replace(plan, job=named))))  # lists for tuples, as a record gives them back
    if not path.exists():
        kd_matrix.start(path, {"plan": described, **header})
    found = kd_matrix.load(path)
    if found.plan != described:
        raise ValueError(f"{path} is of another plan; choose another folder")
    done = {line.draft: line for line in found.measured}
    all_drafts = [PlannedDraft(START, START, plan.job, None), *plan.drafts()]
    if all(planned.name in done for planned in all_drafts):
        return found  # a finished record is only read
    if reason := not_continued(path, header):
        raise ValueError(
            f"{path} was begun otherwise ({reason}); choose another folder, and join both records by specheat merge"
        )
    with kd_matrix.adding(path) as add:
        teacher = load_teacher(Path(plan.job.target), device=device)

        @cache  # read or sampled for the first draft that is measured
        def held_out(domain: str) -> tuple[HeldOut, ...]:
            return held_out_text(teacher, (domain,), texts, temperatures=plan.decode_temperatures)

        for number, planned in enumerate(all_drafts, 1):
            if planned.name in done:
                continue
            note(f"draft {number} of {len(all_drafts)}, {planned.name}")
            if planned.name == START:
                folder = Path(plan.job.start)
                line = MeasuredDraft(
                    START, START, kd_temperature=None, on_policy=0.0, seed=None, tokens={}, seconds={}, cells=()
                )
            else:
                job, folder = _within_budget(planned, done), out / DRAFTS / planned.name / DRAFT
                card = distill(job, folder.parent, texts, device=device)
                (kd_temperature, _), *others = job.recipe.temperatures
                about = (planned.name, planned.arm, None if others else kd_temperature, job.recipe.on_policy, job.seed)
                line = MeasuredDraft(*about, card["tokens"], card["seconds"], cells=())
            model = drafts.cast(drafts.load(folder, dtype=torch.bfloat16), teacher.model.dtype).to(teacher.model.device)
            cells: list[MatrixCell] = []
            for domain in plan.domains:
                cells += _cells(model, teacher, held_out(domain), domain, with_rescaled=planned.name == START)
            done[planned.name] = replace(line, cells=tuple(cells))
            add(done[planned.name])
    return kd_matrix.load(path)


def not_continued(record: Path, header: Mapping[str, Any]) -> str:
    """Return why a record cannot be continued by this code on this machine, with the keys that differ; empty if it can."""
    try:
        check_comparable(line_header(record, "environment")["environment"], header["environment"], keys=RESUMABLE_KEYS)
    except IncomparableResults as error:
        return str(error)
    return ""


def _within_budget(planned: PlannedDraft, measured: Mapping[str, MeasuredDraft]) -> Job:
    """Return the job with its number of tokens: the plan's, or as many as the seconds of another draft are worth.

    tokens = the plan's tokens * seconds of the other draft / seconds of the same draft with the plan's tokens
    """
    job = planned.job
    if planned.budget is None:
        return job
    own_s, other_s = (sum(measured[name].seconds.values()) for name in planned.budget)
    num_tokens = round(job.plan.num_tokens * other_s / own_s)
    return replace(job, plan=replace(job.plan, num_tokens=num_tokens), text_tokens=num_tokens if job.text_tokens else 0)


def _cells(
    draft: PreTrainedModel, teacher: Teacher, texts: Sequence[HeldOut], domain: str, *, with_rescaled: bool
) -> list[MatrixCell]:
    """Measure the draft along each text, with one number per prompt; draft T = decode T.

    Args:    with_rescaled: decode the contexts of the first text at the T of every text: same contexts, another softmax
    """
    temperatures = [(text.temperature, text.temperature) for text in texts]
    along_first: Sequence[Sequence[TextAcceptance]] = [()] * len(texts)
    if with_rescaled:
        along_first = acceptance(draft, texts[0].rows, teacher.head_VD, temperatures)
    cells = []
    for text, at, of_first_text in zip(texts, temperatures, along_first, strict=True):
        (along,) = acceptance(draft, text.rows, teacher.head_VD, [at])
        totals = [slot_totals([of_prompt], NUM_DRAFT_TOKENS) for of_prompt in along]
        cells.append(
            MatrixCell(
                domain=domain,
                temperature=text.temperature,
                tokens=tuple(len(of_prompt.overlap) for of_prompt in along),
                overlap=_rounded(sum(of_prompt.overlap) for of_prompt in along),
                tested=_rounded(each.tested for each in totals),
                accepted=_rounded(each.accepted for each in totals),
                emitted=tuple(each.emitted for each in totals),
                rounds=_rounded(each.rounds for each in totals),
                rescaled=_rounded(sum(of_prompt.overlap) for of_prompt in of_first_text),
            )
        )
    return cells


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
