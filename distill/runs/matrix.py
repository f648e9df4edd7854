"""The KD matrix: drafts trained at KD temperatures, each measured at many decode temperatures along the target's own text.

Every draft is a job of `distill.runs.distillation` in a separate folder, and adds one line to the record when it is measured.
A matrix that was stopped continues with the next draft. Acceptance is analytic (`distill.evaluation.alpha`), with one number
per prompt, so that the interval of a cell covers other prompts and other seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.errors import IncomparableResults
from bench.prompts import sets as prompt_sets
from bench.records import environment, kd_matrix
from bench.records.command_line import own_words
from bench.records.decoding import Scalar
from bench.records.environment import RESUMABLE_KEYS, check_comparable
from bench.records.files import line_header
from bench.records.kd_matrix import (
    DRAFTS,
    IN_SECONDS_OF,
    NUM_DRAFT_TOKENS,
    OTHER_K,
    RECORD,
    START,
    TUNING,
    Matrix,
    MatrixCell,
    MeasuredDraft,
)
from distill.evaluation.alpha import TextAcceptance, acceptance, alpha_text, slot_totals
from distill.evaluation.held_out import HeldOut, held_out_text
from distill.runs.distillation import distill
from distill.runs.job import DRAFT, Job
from distill.text.teacher import Teacher, load_teacher
from distill.training import drafts, recipes
from distill.training.recipes import Recipe

LOSS_AT_DATA = ":data"  # ends an arm with soft labels whose loss T is the data T, not 1
ARM = re.compile(r"(?P<recipe>[a-z]+)(@(?P<share>[^:=]+))?(?P<at_data>:data)?(=(?P<other>.+))?")
TUNING_SEED = 1000  # of drafts that choose a learning rate: the text and order of no other draft
DRAFT_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)  # from which the best one is chosen


@dataclass(frozen=True, slots=True)
class PlannedDraft:
    """A draft to be trained."""

    name: str
    arm: str  # as tables name it
    job: Job
    budget: tuple[str, str] | None = None  # the same draft with the plan's tokens, and the draft whose seconds this one gets


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """Which drafts are trained, and where they are measured. Everything else is in the job that they share."""

    arms: tuple[str, ...]
    kd_temperatures: tuple[float, ...]
    decode_temperatures: tuple[float, ...]
    seeds: tuple[int, ...]
    domains: tuple[str, ...]  # held-out prompt sets; claims are about the first
    job: Job  # its recipe, seed and text_tokens are replaced for each draft
    tuning: tuple[str, ...] = ()  # a prompt set for each domain, on which learning rate and draft T are chosen; empty: neither
    learning_rates: tuple[float, ...] = ()  # of which the best is chosen for each loss; empty: that of the job

    def __post_init__(self) -> None:
        for name in ("arms", "kd_temperatures", "decode_temperatures", "seeds", "domains"):
            if not getattr(self, name):
                raise ValueError(f"expected {name}, got none")
        if self.tuning and len(self.tuning) != len(self.domains):
            raise ValueError(f"expected a tuning set for each of {len(self.domains)} domains, got {len(self.tuning)}")
        if self.learning_rates and not self.tuning:
            raise ValueError("expected tuning prompts to choose a learning rate on, got none")
        for place, arm in enumerate(self.arms):
            trained, _, other = arm.partition(IN_SECONDS_OF)
            _recipes_of(trained, self.kd_temperatures)
            # The seconds of both must have been measured before they can be compared.
            if other and not {trained, other} <= set(self.arms[:place]):
                raise ValueError(f"expected the arms {trained} and {other} before {arm}, got {', '.join(self.arms)}")

    @property
    def varied(self) -> tuple[float, ...]:
        """The decode temperatures at which the draft T is varied too: those that are also KD temperatures."""
        return tuple(at for at in self.decode_temperatures if self.tuning and at in self.kd_temperatures)

    def drafts(self) -> Iterator[PlannedDraft]:
        """Yield all drafts: those that choose learning rates, then seed by seed, so that a stopped matrix has whole seeds."""
        for loss, recipe in self._losses().items():
            for rate in self.learning_rates:
                job = self._job(recipe, TUNING_SEED)
                yield PlannedDraft(tuning_name(loss, rate), TUNING, replace(job, plan=replace(job.plan, learning_rate=rate)))
        for seed in self.seeds:
            for arm in self.arms:
                trained, _, other = arm.partition(IN_SECONDS_OF)
                others = _recipes_of(other, self.kd_temperatures) if other else []
                for place, recipe in enumerate(_recipes_of(trained, self.kd_temperatures)):
                    name, budget = draft_name(arm, recipe, seed), None
                    if others:  # the draft of the same place, or the only one
                        against = others[min(place, len(others) - 1)]
                        budget = draft_name(trained, recipe, seed), draft_name(other, against, seed)
                    yield PlannedDraft(name, arm_label(arm), self._job(recipe, seed), budget)

    def _job(self, recipe: Recipe, seed: int) -> Job:
        return replace(self.job, recipe=recipe, seed=seed, text_tokens=0 if recipe.fresh else self.job.plan.num_tokens)

    def _losses(self) -> dict[str, Recipe]:
        """Return the losses of the arms, each with the recipe of its text and of a middling KD T on which it is tuned."""
        middle = sorted(self.kd_temperatures)[len(self.kd_temperatures) // 2]
        arms = {"hard": "offline", "soft": "soft", f"soft{LOSS_AT_DATA}": f"soft{LOSS_AT_DATA}"}
        made = [recipe for arm in self.arms for recipe in _recipes_of(arm.partition(IN_SECONDS_OF)[0], self.kd_temperatures)]
        used = {loss_of(recipe) for recipe in made}
        return {loss: _recipe(arm, middle) for loss, arm in arms.items() if loss in used}


def loss_of(recipe: Recipe) -> str:
    """Return the kind of loss, for which a learning rate is chosen."""
    if recipe.labels == "hard":
        return "hard"
    return "soft" if recipe.loss.temperature == 1 else f"soft{LOSS_AT_DATA}"


def _recipe(arm: str, temperature: float | None) -> Recipe:
    """Return the recipe of an arm at one KD T. After the name, `@` gives lambda or the shares of a mixture, `:data` the loss T.

    Raises:  ValueError: no such arm
    """
    parts = ARM.fullmatch(arm)
    if parts is None:
        raise ValueError(f"expected an arm such as offline, online@0.5, soft:data or composed@1/2/1, got {arm!r}")
    made = recipes.recipe(parts["recipe"], temperature)
    try:
        shares = [float(share) for share in parts["share"].split("/")] if parts["share"] else []
    except ValueError:
        raise ValueError(f"expected numbers after the @, got {arm!r}") from None
    if shares and made.name in recipes.MIXED:
        temperatures = [at for at, _ in made.temperatures]
        if len(shares) != len(temperatures):
            raise ValueError(f"expected {len(temperatures)} shares in {arm!r}, one for each temperature, got {len(shares)}")
        made = replace(made, temperatures=tuple(zip(temperatures, shares, strict=True)))
    elif shares:
        if len(shares) != 1:
            raise ValueError(f"expected one lambda in 0..1 after the @, got {arm!r}")
        made = replace(made, on_policy=shares[0])
    if parts["at_data"]:
        if made.labels == "hard" or temperature is None:
            raise ValueError(f"expected soft labels at one KD temperature before {LOSS_AT_DATA}, got {arm!r}")
        made = replace(made, loss=replace(made.loss, temperature=temperature))
    return made


def _recipes_of(arm: str, kd_temperatures: Sequence[float]) -> list[Recipe]:
    """Return the recipe at every KD temperature, or once if it mixes temperatures.

    Recipes that equal those of another arm are left out: loss T = data T at 1, and soft labels at 0 on fixed text, where the
    target's argmax is the text.
    """
    name = arm.partition("@")[0].partition(":")[0]
    if name in recipes.MIXED:
        return [_recipe(arm, None if name in recipes.FIXED else max(kd_temperatures))]
    made = [(at, _recipe(arm, at)) for at in kd_temperatures]
    if not arm.endswith(LOSS_AT_DATA):
        return [recipe for _, recipe in made]
    return [recipe for at, recipe in made if at != 1 and (at or recipe.on_policy)]


def arm_label(arm: str) -> str:
    """Return what tables call an arm: online for online@0.5, whose lambda has another column."""
    trained, _, other = arm.partition(IN_SECONDS_OF)
    name, _, share = trained.partition("@")
    label = trained if name in recipes.MIXED else name + (LOSS_AT_DATA if share.endswith(LOSS_AT_DATA) else "")
    return f"{label}, in the seconds of {other}" if other else label


def draft_name(arm: str, recipe: Recipe, seed: int) -> str:
    """Return the name of the draft's folder, such as online-t0.4-seed1."""
    at = f"-t{recipe.temperatures[0][0]:g}" if len(recipe.temperatures) == 1 else ""
    mark = "-shares" if recipe.name in recipes.MIXED else "-lambda"
    name = arm.replace("@", mark).replace("/", "-").replace(LOSS_AT_DATA, "-loss-at-data")
    return f"{name.replace(IN_SECONDS_OF, '-seconds-of-')}{at}-seed{seed}"


def tuning_name(loss: str, rate: float) -> str:
    return f"{TUNING}-{loss.replace(LOSS_AT_DATA, '-loss-at-data')}-rate{rate:g}"


def record_header(
    *, device: str, pair: str, model_hashes: Mapping[str, str], start_card: Mapping[str, Scalar]
) -> dict[str, Any]:
    """Return the header of a record that begins now, apart from the plan."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": own_words(),
        "environment": environment.capture(device),
        "model_pair": pair,
        "model_hashes": dict(model_hashes),
        "start_card": dict(start_card),
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
    described, prompt_hashes = _described(plan)
    if not path.exists():
        kd_matrix.start(path, {"plan": described, "prompt_hashes": prompt_hashes, **header})
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
        def texts_of(source: str, temperatures: tuple[float, ...]) -> tuple[HeldOut, ...]:
            return held_out_text(teacher, (source,), texts, temperatures=temperatures)

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
                job, folder = _final_job(plan, planned, done), out / DRAFTS / planned.name / DRAFT
                card = distill(job, folder.parent, texts, device=device)
                (kd_temperature, _), *others = job.recipe.temperatures
                about = (planned.name, planned.arm, None if others else kd_temperature, job.recipe.on_policy, job.seed)
                costs = card["tokens"], card["seconds"]
                line = MeasuredDraft(*about, *costs, (), card["distinct_prompts"], job.plan.learning_rate)
            model = drafts.cast(drafts.load(folder, dtype=torch.bfloat16), teacher.model.dtype).to(teacher.model.device)
            cells: list[MatrixCell] = []
            for place, domain in enumerate(plan.domains):
                tuning = texts_of(plan.tuning[place], plan.varied) if plan.tuning else ()
                if planned.arm == TUNING:
                    cells += [_cell(model, teacher, text) for text in tuning]
                    continue
                own = texts_of(domain, plan.decode_temperatures)
                cells += _cells(model, teacher, own, with_rescaled=planned.name == START)
                cells += _varied_cells(model, teacher, own, tuning)
            done[planned.name] = replace(line, cells=tuple(cells))
            add(done[planned.name])
    return kd_matrix.load(path)


def _described(plan: MatrixPlan) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the plan as a record holds it, and the hash of each prompt set. Names stand for folders of this machine."""
    sets = {source: prompt_sets.load(source) for source in (*plan.domains, *plan.tuning, *plan.job.prompts, *plan.job.held_out)}

    def names(sources: Sequence[str]) -> tuple[str, ...]:
        return tuple(sets[source].name for source in sources)

    start = Path(plan.job.start)
    job = replace(
        plan.job,
        target=Path(plan.job.target).name,
        start=start.parent.name if start.name == DRAFT else start.name,
        prompts=names(plan.job.prompts),
        held_out=names(plan.job.held_out),
    )
    named = replace(plan, job=job, domains=names(plan.domains), tuning=names(plan.tuning))
    # Through JSON, which makes lists of tuples, as a record gives them back.
    return json.loads(json.dumps(asdict(named))), {each.name: each.sha256 for each in sets.values()}


def not_continued(record: Path, header: Mapping[str, Any]) -> str:
    """Return why a record cannot be continued by this code on this machine, with the keys that differ; empty if it can."""
    try:
        check_comparable(line_header(record, "environment")["environment"], header["environment"], keys=RESUMABLE_KEYS)
    except IncomparableResults as error:
        return str(error)
    return ""


def _final_job(plan: MatrixPlan, planned: PlannedDraft, measured: Mapping[str, MeasuredDraft]) -> Job:
    """Return the job with its learning rate, and with its number of tokens.

    The tokens are the plan's, or as many as the seconds of another draft are worth:
    the plan's tokens * seconds of the other draft / seconds of the same draft with the plan's tokens
    """
    job = planned.job
    if plan.learning_rates and planned.arm != TUNING:
        loss = loss_of(job.recipe)
        of_rate = {rate: measured[tuning_name(loss, rate)] for rate in plan.learning_rates}
        rate = max(of_rate, key=lambda rate: _mean_alpha(of_rate[rate]))
        job = replace(job, plan=replace(job.plan, learning_rate=rate))
    if planned.budget is None:
        return job
    own_s, other_s = (sum(measured[name].seconds.values()) for name in planned.budget)
    num_tokens = round(job.plan.num_tokens * other_s / own_s)
    return replace(job, plan=replace(job.plan, num_tokens=num_tokens), text_tokens=num_tokens if job.text_tokens else 0)


def _mean_alpha(line: MeasuredDraft) -> float:
    """Return alpha on the tuning prompts, its mean over domains and decode temperatures up to 1."""
    alphas = [sum(cell.accepted) / sum(cell.tested) for cell in line.cells if cell.temperature <= 1]
    return sum(alphas) / len(alphas)


def _cells(draft: PreTrainedModel, teacher: Teacher, texts: Sequence[HeldOut], *, with_rescaled: bool) -> Iterator[MatrixCell]:
    """Measure the draft along each text, with one number per prompt; draft T = decode T.

    Args:    with_rescaled: decode the contexts of the first text at the T of every text: same contexts, another softmax
    """
    temperatures = [(text.temperature, text.temperature) for text in texts]
    along_first: Sequence[Sequence[TextAcceptance]] = [()] * len(texts)
    if with_rescaled:
        along_first = acceptance(draft, texts[0].rows, teacher.head_VD, temperatures)
    for text, of_first_text in zip(texts, along_first, strict=True):
        yield replace(_cell(draft, teacher, text), rescaled=_rounded(sum(of_prompt.overlap) for of_prompt in of_first_text))


def _varied_cells(
    draft: PreTrainedModel, teacher: Teacher, texts: Sequence[HeldOut], tuning: Sequence[HeldOut]
) -> Iterator[MatrixCell]:
    """Measure the draft at draft T 1, and at the draft T that is best on the tuning text of the same decode T."""
    of_temperature = {text.temperature: text for text in texts}
    for chosen_on in tuning:
        text, decode_t = of_temperature[chosen_on.temperature], chosen_on.temperature
        choices = dict.fromkeys((*DRAFT_TEMPERATURES, decode_t))
        found = acceptance(draft, chosen_on.rows, teacher.head_VD, [(decode_t, draft_t) for draft_t in choices])
        best = max(zip(choices, found, strict=True), key=lambda choice: alpha_text(choice[1]))[0]
        yield _cell(draft, teacher, text, draft_temperature=1.0)
        yield replace(_cell(draft, teacher, text, draft_temperature=best), tuned=True)


def _cell(draft: PreTrainedModel, teacher: Teacher, text: HeldOut, *, draft_temperature: float | None = None) -> MatrixCell:
    """Measure the draft along a text, with one number per prompt.

    Args:    draft_temperature: None: the decode T
    """
    at = text.temperature, text.temperature if draft_temperature is None else draft_temperature
    (along,) = acceptance(draft, text.rows, teacher.head_VD, [at])
    totals = [slot_totals([of_prompt], NUM_DRAFT_TOKENS) for of_prompt in along]
    return MatrixCell(
        domain=text.prompt_set,
        temperature=text.temperature,
        tokens=tuple(len(of_prompt.overlap) for of_prompt in along),
        overlap=_rounded(sum(of_prompt.overlap) for of_prompt in along),
        tested=_rounded(each.tested for each in totals),
        accepted=_rounded(each.accepted for each in totals),
        emitted=tuple(each.emitted for each in totals),
        rounds=_rounded(each.rounds for each in totals),
        draft_temperature=draft_temperature,
        other_rounds={k: _rounded(slot_totals([of_prompt], k).rounds for of_prompt in along) for k in OTHER_K},
    )


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(value, 3) for value in values)
