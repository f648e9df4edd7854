"""The KD matrix: it trains and measures all its drafts, continues where it was, and leaves one record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.analysis.kd_matrix import split
from bench.records import kd_matrix
from bench.records.kd_matrix import RECORD, START, load
from distill.evaluation.alpha import acceptance, alpha_text
from distill.evaluation.held_out import held_out_text
from distill.runs.distillation import distill
from distill.runs.matrix import MatrixPlan, run
from distill.text.teacher import load_teacher
from distill.training import drafts
from distill.training.recipes import recipe
from tests.support.tiny_distillation import tiny_job

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = (
    *(START, "offline-t0-seed0", "offline-t1-seed0", "online-lambda0.5-t0-seed0", "online-lambda0.5-t1-seed0"),
    *("composed-seed0", "offline-t0-seed1", "offline-t1-seed1", "online-lambda0.5-t0-seed1"),
    *("online-lambda0.5-t1-seed1", "composed-seed1"),
)
HEADER = {"command": "typed", "environment": {"harness_commit": "0123456789"}}
DOMAIN = "prompts.jsonl:held_out"  # as a record names it


def tiny_plan(folder: Path) -> MatrixPlan:
    job = tiny_job(folder, recipe("offline", 0.0))
    job = replace(job, plan=replace(job.plan, num_tokens=300))
    return MatrixPlan(
        arms=("offline", "online@0.5", "composed"),
        kd_temperatures=(0.0, 1.0),
        decode_temperatures=(0.0, 0.5, 1.0),
        seeds=(0, 1),
        domains=job.held_out[:1],
        job=job,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[MatrixPlan, Path]:
    folder = tmp_path_factory.mktemp("matrix")
    plan = tiny_plan(folder)
    announced: list[str] = []
    run(plan, folder / "out", folder / "texts", device="cpu", header=HEADER, note=announced.append)
    assert announced == [f"draft {place} of {len(NAMES)}, {name}" for place, name in enumerate(NAMES, 1)]
    return plan, folder


def test_every_draft_is_measured_at_every_decode_temperature(made: tuple[MatrixPlan, Path]) -> None:
    plan, folder = made
    found = load(folder / "out" / RECORD)
    assert tuple(line.draft for line in found.measured) == NAMES
    prompts = len(found.measured[0].cells[0].tokens)
    for line in found.measured:
        assert tuple(cell.temperature for cell in line.cells) == plan.decode_temperatures
        for cell in line.cells:
            assert len(cell.tested) == prompts
            assert all(0 <= right <= asked for right, asked in zip(cell.accepted, cell.tested, strict=True))
        if line.draft != START:
            assert line.tokens["trained"] >= 300
    lambdas = {line.arm: line.on_policy for line in found.measured}
    assert lambdas == {START: 0.0, "offline": 0.0, "online": 0.5, "composed": 0.0}
    header = json.loads((folder / "out" / RECORD).read_text().splitlines()[0])
    assert header["command"] == "typed"
    assert str(folder) not in json.dumps(header["plan"]["job"]["target"])


@pytest.mark.parametrize("cut", ["between", "within a line"])
def test_a_matrix_that_was_stopped_goes_on_and_ends_the_same(made: tuple[MatrixPlan, Path], cut: str) -> None:
    plan, folder = made
    path = folder / "out" / RECORD
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]) + (lines[-2][:100] if cut == "within a line" else b""))
    announced: list[str] = []
    run(plan, folder / "out", folder / "texts", device="cpu", header=HEADER, note=announced.append)
    assert [line.rpartition(" ")[2] for line in announced] == list(NAMES[-2:])
    assert path.read_bytes() == whole


def test_a_matrix_is_not_continued_by_other_code_and_a_finished_one_is_only_read(
    made: tuple[MatrixPlan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = made
    whole = (folder / "out" / RECORD).read_bytes()
    other = HEADER | {"environment": {"harness_commit": "0123456789", "harness_diff": "ff"}}
    (tmp_path / RECORD).write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(
        ValueError, match=r"harness_diff \(absent against ff\)\); choose another folder, and join .* specheat merge"
    ):
        run(plan, tmp_path, folder / "texts", device="cpu", header=other, note=lambda line: None)
    monkeypatch.setattr(kd_matrix.LineFile, "reopen", None)  # opening for writing would fail
    run(plan, folder / "out", folder / "texts", device="cpu", header=other, note=lambda line: None)
    assert (folder / "out" / RECORD).read_bytes() == whole


def test_the_drafts_are_what_distill_makes_of_the_job(made: tuple[MatrixPlan, Path]) -> None:
    plan, folder = made
    job = {each.name: each.job for each in plan.drafts()}["offline-t1-seed1"]
    card = distill(job, folder / "alone", folder / "texts")
    stored = json.loads((folder / "out" / kd_matrix.DRAFTS / "offline-t1-seed1" / "card.json").read_text())
    assert card["held_out_acceptance"] == stored["held_out_acceptance"]
    assert card["recipe"]["temperatures"] == [[1.0, 1.0]]


def test_an_arm_in_the_seconds_of_another_gets_as_many_tokens_as_these_are_worth(
    made: tuple[MatrixPlan, Path], tmp_path: Path
) -> None:
    plan, folder = made
    arms = ("offline", "online", "offline=online")
    plan = replace(plan, arms=arms, kd_temperatures=(1.0,), decode_temperatures=(0.0,), seeds=(0,))
    with pytest.raises(ValueError, match="expected the arms offline and online before offline=online"):
        replace(plan, arms=("offline", "offline=online"))
    names = [each.name for each in plan.drafts()]
    assert names == ["offline-t1-seed0", "online-t1-seed0", "offline-seconds-of-online-t1-seed0"]
    found = run(plan, tmp_path, folder / "texts", device="cpu", header=HEADER, note=lambda line: None)
    offline_line, online_line, equal = found.measured[1:]
    worth = sum(online_line.seconds.values()) / sum(offline_line.seconds.values()) * plan.job.plan.num_tokens
    assert equal.tokens["trained"] == pytest.approx(worth, abs=plan.job.plan.batch_tokens)
    assert equal.arm == "offline, in the seconds of online"


def test_the_start_is_also_measured_at_every_temperature_along_the_first_text(made: tuple[MatrixPlan, Path]) -> None:
    plan, folder = made
    teacher = load_teacher(Path(plan.job.target), device="cpu")
    texts = held_out_text(teacher, plan.domains, folder / "texts", temperatures=plan.decode_temperatures)
    draft = drafts.cast(drafts.load(Path(plan.job.start), dtype=torch.bfloat16), teacher.model.dtype)

    def alpha_at(temperature: float, *, along: int) -> float:
        (found,) = acceptance(draft, texts[along].rows, teacher.head_VD, [(temperature, temperature)])
        return alpha_text(found)

    frozen = alpha_at(plan.decode_temperatures[0], along=0)
    steps = split(load(folder / "out" / RECORD))
    assert [step.temperature for step in steps] == list(plan.decode_temperatures)
    for place, step in enumerate(steps):
        own, same_contexts = alpha_at(step.temperature, along=place), alpha_at(step.temperature, along=0)
        assert step.alpha_text.estimate == pytest.approx(own, abs=1e-4)  # the record holds three decimals per prompt
        assert step.rescaling.estimate == pytest.approx(same_contexts - frozen, abs=1e-4)
        assert step.context_shift.estimate == pytest.approx(own - same_contexts, abs=1e-4)
    assert steps[0].rescaling.estimate == steps[0].context_shift.estimate == 0
    assert min(abs(steps[-1].rescaling.estimate), abs(steps[-1].context_shift.estimate)) > 0.01
    others = load(folder / "out" / RECORD).measured[1:]
    assert not any(cell.rescaled for line in others for cell in line.cells)


def test_another_plan_is_refused(made: tuple[MatrixPlan, Path]) -> None:
    plan, folder = made
    with pytest.raises(ValueError, match="is of another plan; choose another folder"):
        run(
            replace(plan, seeds=(0,)),
            *(folder / "out", folder / "texts"),
            device="cpu",
            header=HEADER,
            note=lambda line: None,
        )


def test_the_same_drafts_are_measured_on_every_domain(made: tuple[MatrixPlan, Path], tmp_path: Path) -> None:
    plan, folder = made
    plan = replace(plan, arms=("offline",), kd_temperatures=(1.0,), decode_temperatures=(0.0, 1.0), seeds=(0,))
    domains = (*plan.domains, plan.job.prompts[0])
    both, alone = (
        run(replace(plan, domains=of_run), out, folder / "texts", device="cpu", header=HEADER, note=lambda line: None)
        for of_run, out in ((domains, tmp_path / "both"), (domains[1:], tmp_path / "alone"))
    )
    names = (DOMAIN, "prompts.jsonl:train")
    assert both.domains == names
    assert len(both.measured[0].cells) == 4
    for place, domain in enumerate(names):
        assert [cell.domain for cell in both.measured[1].cells[2 * place : 2 * place + 2]] == [domain] * 2
    assert [line.cells for line in both.on(names[1]).measured] == [line.cells for line in alone.measured]


def test_learning_rates_and_draft_temperatures_are_chosen_on_other_prompts(
    made: tuple[MatrixPlan, Path], tmp_path: Path
) -> None:
    plan, folder = made
    plan = replace(
        plan,
        arms=("offline", "online:data", "composed@1/2/3"),
        kd_temperatures=(0.0, 0.5, 1.0),
        decode_temperatures=(0.0, 0.5),
        seeds=(0,),
        tuning=plan.domains,
        learning_rates=(1e-6, 5e-3),
    )
    found = run(plan, tmp_path, folder / "texts", device="cpu", header=HEADER, note=lambda line: None)
    trained = {line.draft: line for line in found.measured[1:]}
    of_rates = [f"tuning-{loss}-rate{rate:g}" for loss in ("hard", "soft-loss-at-data") for rate in (1e-6, 5e-3)]
    assert list(trained) == [
        *(*of_rates, "offline-t0-seed0", "offline-t0.5-seed0", "offline-t1-seed0"),
        *("online-loss-at-data-t0-seed0", "online-loss-at-data-t0.5-seed0", "composed-shares1-2-3-seed0"),
    ]
    alphas = {rate: np.mean([sum(cell.accepted) / sum(cell.tested) for cell in trained[rate].cells]) for rate in of_rates}
    best = max((1e-6, 5e-3), key=lambda rate: alphas[f"tuning-hard-rate{rate:g}"])
    assert trained["offline-t0-seed0"].learning_rate == trained["composed-shares1-2-3-seed0"].learning_rate == best
    assert trained["online-loss-at-data-t0-seed0"].arm == "online:data"
    assert trained["composed-shares1-2-3-seed0"].arm == "composed@1/2/3"
    card = json.loads((tmp_path / kd_matrix.DRAFTS / "online-loss-at-data-t0.5-seed0" / "card.json").read_text())
    assert (card["recipe"]["loss"]["temperature"], card["plan"]["learning_rate"]) == (0.5, 5e-3)

    line = trained["offline-t0.5-seed0"]
    assert line.distinct_prompts == 16
    # Here the tuning prompts are the measured ones, so the chosen draft T is the best one on them too.
    (own,) = (cell for cell in line.cells if cell.temperature == 0.5 and cell.draft_temperature is None)
    one, tuned = (cell for cell in line.cells if cell.temperature == 0.5 and cell.draft_temperature is not None)
    assert (one.draft_temperature, one.tuned, tuned.tuned) == (1.0, False, True)
    assert sum(tuned.overlap) >= max(sum(own.overlap), sum(one.overlap))
    for cell in line.cells:
        # No round emits more than k + 1 tokens, and the more are drafted, the fewer rounds there are.
        for k in (1, 3, 5):
            assert all(
                rounds >= emitted / (k + 1) - 1e-3 for rounds, emitted in zip(cell.rounds_at(k), cell.emitted, strict=True)
            )
        assert sum(cell.rounds_at(1)) > sum(cell.rounds_at(3)) > sum(cell.rounds_at(5))
    assert found.on(DOMAIN).measured[0].draft == START
    assert all(line.arm != "tuning" for line in found.on(DOMAIN).measured)
