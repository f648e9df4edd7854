"""The KD matrix: all its drafts, one record, going on where it was; intervals that cover what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.analysis.kd_matrix import Interval, alphas, best_kd_temperatures, changes, estimate, split
from bench.commands import main
from bench.records import kd_matrix
from bench.records.kd_matrix import RECORD, START, Matrix, MatrixCell, MeasuredDraft, load, merged
from bench.reporting.formats import pipe_table
from bench.reporting.suites.kd_matrix import derived, heat_maps, tables
from distill.evaluation.alpha import split as alpha_split
from distill.evaluation.held_out import held_out_text
from distill.runs.distillation import distill
from distill.runs.matrix import MatrixPlan, run
from distill.text.teacher import load_teacher
from distill.training import drafts
from distill.training.recipes import offline
from tests.support.tiny_distillation import tiny_job

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = (
    *(START, "offline-t0-seed0", "offline-t1-seed0", "online-lambda0.5-t0-seed0", "online-lambda0.5-t1-seed0"),
    *("composed-seed0", "offline-t0-seed1", "offline-t1-seed1", "online-lambda0.5-t0-seed1"),
    *("online-lambda0.5-t1-seed1", "composed-seed1"),
)


def tiny_plan(folder: Path) -> MatrixPlan:
    job = tiny_job(folder, offline(0.0))
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
    run(plan, folder / "out", folder / "texts", device="cpu", header={"command": "typed"}, note=announced.append)
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


def test_the_table_has_a_row_a_kind_and_the_matched_draft_beside_it(made: tuple[MatrixPlan, Path]) -> None:
    found = load(made[1] / "out" / RECORD)
    values = alphas(found)
    assert list(values) == [
        *((START, 0.0, None), ("offline", 0.0, 0.0), ("offline", 0.0, 1.0)),
        *(("online", 0.5, 0.0), ("online", 0.5, 1.0), ("composed", 0.0, None), ("matched", 0.0, None)),
    ]
    matched = values[("matched", 0.0, None)]
    assert matched == [values[("offline", 0.0, 0.0)][0], None, values[("offline", 0.0, 1.0)][2]]
    text = tables(found)
    assert "online, lambda 0.5" in text
    for place in range(3):
        best = max(row[place].estimate for row in values.values() if row[place])
        assert f"**{best:.3f}" in text
    assert "10 drafts, 2 seeds" in text
    assert "Change of alpha against the start" in text


def test_changes_are_against_the_start_on_the_same_texts(made: tuple[MatrixPlan, Path]) -> None:
    found = load(made[1] / "out" / RECORD)
    alpha, change = alphas(found), changes(found)
    assert set(alpha) - set(change) == {(START, 0.0, None)}
    for kind, row in change.items():
        for place, value in enumerate(row):
            if value is not None:
                expected = alpha[kind][place].estimate - alpha[(START, 0.0, None)][place].estimate
                assert value.estimate == pytest.approx(expected)


def test_heat_maps_are_drawn_the_same_every_time(made: tuple[MatrixPlan, Path]) -> None:
    found = load(made[1] / "out" / RECORD)
    images = heat_maps(found)
    assert images["png"].startswith(b"\x89PNG")
    assert images == heat_maps(found)
    only_mixtures = Matrix(found.plan, tuple(line for line in found.measured if line.arm in (START, "composed")))
    assert heat_maps(only_mixtures) == {}
    assert "composed" in tables(only_mixtures)


def test_the_best_kd_temperature_stands_with_those_that_may_be_as_good(made: tuple[MatrixPlan, Path]) -> None:
    found = load(made[1] / "out" / RECORD)
    best = best_kd_temperatures(found)
    assert set(best) == {("offline", 0.0), ("online", 0.5)}
    values = alphas(found)
    for (arm, share), row in best.items():
        for place, (at, others) in enumerate(row):
            of_column = {kd: values[arm, share, kd][place] for kd in (0.0, 1.0)}
            assert at == max(of_column, key=lambda kd: of_column[kd].estimate)  # type: ignore[union-attr]
            assert at not in others
    clear = [
        MeasuredDraft(f"{kd}-{seed}", "offline", kd, 0.0, seed, {}, {}, (cell_of(0.5 + 0.1 * kd + 0.001 * seed),))
        for kd in (0.0, 0.1, 1.0)
        for seed in (0, 1, 2)
    ]
    ((at, others),) = best_kd_temperatures(Matrix({}, tuple(clear)))["offline", 0.0]
    assert (at, others) == (1.0, [])
    alone = [line for line in clear if line.seed == 0]
    assert best_kd_temperatures(Matrix({}, tuple(alone)))["offline", 0.0] == [(1.0, [0.0, 0.1])]


def test_records_that_differ_in_arms_and_seeds_stand_in_one_table(
    made: tuple[MatrixPlan, Path], tmp_path: Path
) -> None:
    header, *lines = (made[1] / "out" / RECORD).read_bytes().splitlines(keepends=True)
    parts = []
    for name, kept in (("a", lines[:4]), ("b", [lines[0], *lines[4:]])):
        parts.append(tmp_path / f"{name}.jsonl")
        parts[-1].write_bytes(header + b"".join(kept))
    whole = load(made[1] / "out" / RECORD)
    (together,) = merged(parts)
    assert sorted(line.draft for line in together.measured) == sorted(line.draft for line in whole.measured)
    other = json.loads(header)
    other["plan"]["job"]["plan"]["num_tokens"] += 1
    parts[0].write_bytes(json.dumps(other).encode() + b"\n" + b"".join(lines[:4]))
    drafts_of = [[line.draft for line in group.measured] for group in merged(parts)]
    assert drafts_of == [[json.loads(line)["draft"] for line in kept] for kept in ((lines[0], *lines[4:]), lines[:4])]
    page = derived(parts)
    assert page.markdown.index("7 drafts, 2 seeds") < page.markdown.index("3 drafts, 1 seed;")


def cell_of(alpha: float) -> MatrixCell:
    """Twenty prompts that all accept alike."""
    tested = tuple(float(10 + prompt) for prompt in range(20))
    nothing = (0,) * 20
    return MatrixCell(
        "instructions", 1.0, nothing, nothing, tested, tuple(alpha * each for each in tested), nothing, nothing
    )


@pytest.mark.parametrize("cut", ["between", "within a line"])
def test_a_matrix_that_was_stopped_goes_on_and_ends_the_same(made: tuple[MatrixPlan, Path], cut: str) -> None:
    plan, folder = made
    path = folder / "out" / RECORD
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]) + (lines[-2][:100] if cut == "within a line" else b""))
    announced: list[str] = []
    run(plan, folder / "out", folder / "texts", device="cpu", header={}, note=announced.append)
    assert [line.rpartition(" ")[2] for line in announced] == list(NAMES[-2:])
    assert path.read_bytes() == whole


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
    found = run(plan, tmp_path, folder / "texts", device="cpu", header={}, note=lambda line: None)
    offline_line, online_line, equal = found.measured[1:]
    worth = sum(online_line.seconds.values()) / sum(offline_line.seconds.values()) * plan.job.plan.num_tokens
    assert equal.tokens["trained"] == pytest.approx(worth, abs=plan.job.plan.batch_tokens)
    assert equal.arm == "offline, in the seconds of online"
    assert list(alphas(found)) == [(line.arm, line.on_policy, line.kd_temperature) for line in found.measured]
    assert "as many as these are worth" in tables(found)
    assert f"{equal.tokens['trained']:,}" in tables(found)


def test_the_change_of_alpha_is_split_into_rescaling_and_context_shift(made: tuple[MatrixPlan, Path]) -> None:
    plan, folder = made
    found = load(folder / "out" / RECORD)
    steps = split(found)
    assert [step.temperature for step in steps] == list(plan.decode_temperatures)
    assert steps[0].rescaling.estimate == steps[0].context_shift.estimate == 0
    for step in steps:
        parts = step.rescaling.estimate + step.context_shift.estimate
        assert step.alpha_text.estimate == pytest.approx(steps[0].alpha_text.estimate + parts)
    teacher = load_teacher(Path(plan.job.target), device="cpu")
    texts = held_out_text(teacher, plan.domains, folder / "texts", temperatures=plan.decode_temperatures)
    draft = drafts.cast(drafts.load(Path(plan.job.start), dtype=torch.bfloat16), teacher.model.dtype)
    whole = alpha_split(
        draft, {text.temperature: text.rows for text in texts}, teacher.head_VD, frozen_at=plan.decode_temperatures[0]
    )
    for step in steps:
        assert step.rescaling.estimate == pytest.approx(whole[step.temperature].rescaling, abs=1e-5)
        assert step.context_shift.estimate == pytest.approx(whole[step.temperature].context_shift, abs=1e-5)
    assert "change by rescaling" in tables(found)
    old = replace(
        found, measured=(replace(found.measured[0], cells=tuple(map(_without_split, found.measured[0].cells))),)
    )
    assert split(old) == []
    assert "change by rescaling" not in tables(old)


def _without_split(cell: MatrixCell) -> MatrixCell:
    return replace(cell, rescaled=())


def test_another_plan_is_refused(made: tuple[MatrixPlan, Path]) -> None:
    plan, folder = made
    with pytest.raises(ValueError, match="is of another plan; choose another folder"):
        run(
            replace(plan, seeds=(0,)),
            *(folder / "out", folder / "texts"),
            device="cpu",
            header={},
            note=lambda line: None,
        )


def test_intervals_cover_other_seeds_and_other_prompts() -> None:
    generator = np.random.default_rng(0)
    num_runs, num_seeds, num_prompts = 2000, 3, 40
    for seed_spread, prompt_spread in ((0.02, 0.02), (0.002, 0.1), (0.03, 0.005)):
        held = {0.5: 0, 0.0: 0}
        for _ in range(num_runs):
            tested = generator.integers(20, 60, num_prompts)
            shared = generator.normal(0, prompt_spread, num_prompts)
            cells = []
            for shift in generator.normal(0, seed_spread, num_seeds):
                accepted = tested * (0.5 + shift + shared)
                cells.append(MatrixCell("instructions", 0.5, (), (), tuple(tested), tuple(accepted), (), ()))
            # The start shares the prompts and knows no seeds: what is left of the difference is the seeds' own.
            start = MatrixCell("instructions", 0.5, (), (), tuple(tested), tuple(tested * (0.5 + shared)), (), ())
            for found, truth in ((estimate(cells), 0.5), (estimate(cells, [start]), 0.0)):
                assert found.half_width is not None
                held[truth] += abs(found.estimate - truth) <= found.half_width
        for count in held.values():
            assert 0.935 < count / num_runs < 0.99, (
                seed_spread,
                prompt_spread,
            )  # chance of so many runs, and a bit wide


def test_the_same_drafts_are_measured_on_every_domain(made: tuple[MatrixPlan, Path], tmp_path: Path) -> None:
    plan, folder = made
    plan = replace(plan, arms=("offline",), kd_temperatures=(1.0,), decode_temperatures=(0.0, 1.0), seeds=(0,))
    domains = (*plan.domains, plan.job.prompts[0])
    both, alone = (
        run(replace(plan, domains=of_run), out, folder / "texts", device="cpu", header={}, note=lambda line: None)
        for of_run, out in ((domains, tmp_path / "both"), (domains[1:], tmp_path / "alone"))
    )
    assert both.domains == domains
    assert len(both.measured[0].cells) == 4
    for place, domain in enumerate(domains):
        assert [cell.domain for cell in both.measured[1].cells[2 * place : 2 * place + 2]] == [domain] * 2
    assert [line.cells for line in both.on(domains[1]).measured] == [line.cells for line in alone.measured]
    text = tables(both)
    assert all(f"held-out prompts of {domain}" in text for domain in domains)
    assert text.count("What a draft cost") == 1


def test_a_record_of_one_domain_is_read_as_it_was_written_before(made: tuple[MatrixPlan, Path], tmp_path: Path) -> None:
    path = made[1] / "out" / RECORD
    header, *lines = map(json.loads, path.read_text().splitlines())
    (header["plan"]["domain"],) = header["plan"].pop("domains")
    for line in lines:
        for cell in line["cells"]:
            del cell["domain"]
    before = tmp_path / RECORD
    before.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    assert load(before).measured == load(path).measured
    assert tables(load(before)) == tables(load(path))


def test_a_single_seed_gives_no_interval() -> None:
    cell = MatrixCell("instructions", 0.5, (4, 4), (2.0, 3.0), (4.0, 4.0), (2.0, 3.0), (4, 4), (2.0, 2.0))
    assert estimate([cell]) == Interval(0.625, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--arms", "offline,magic"), "expected a recipe of"),
        (("--kd-temperatures", "0,hot"), "expected a number for --kd-temperatures, got 'hot'"),
        (("--prompts", "instructions:held_out"), "expected held-out prompts that are not trained on"),
        (("--seeds", "0"), "expected --seeds >= 1, got 0"),
        (("--arms", "offline@0.5"), "expected fresh text"),
        (("--arms", "online@much"), "expected a lambda"),
        (("--start", "layers:0"), "train a base draft first"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], said: str
) -> None:
    job = tiny_job(tmp_path, offline(0.0))
    start = () if "--start" in given else ("--draft", job.start)
    known = ("--target", job.target, *start, "--prompts", job.prompts[0], "--held-out", job.held_out[0])
    status = main.main(["kd-matrix", *known, *given, "--out", str(tmp_path / "out")])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("specheat:")]
    assert status == 2
    assert len(errors) == 1
    assert said in errors[0]


def test_the_command_prints_the_table_and_again_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tiny_job(tmp_path, offline(0.0))
    given = (
        *("kd-matrix", "--target", job.target, "--draft", job.start, "--prompts", job.prompts[0]),
        *("--held-out", job.held_out[0], "--domain", job.held_out[0], "--arms", "offline", "--seeds", "1"),
        *("--kd-temperatures", "0.5", "--decode-temperatures", "0,1", "--tokens", "200", "--batch-tokens", "256"),
        *("--max-new-tokens", "16", "--batch-rows", "16", "--out", str(tmp_path / "out")),
        *("--results", str(tmp_path / "results")),
    )
    assert main.main(list(given)) == 0
    first = capsys.readouterr()
    assert "draft 2 of 2, offline-t0.5-seed0" in first.err
    assert "| offline" in first.out
    assert main.main(list(given)) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "specheat: draft" not in again.err
    (stored,) = (tmp_path / "results").glob("*/kd_matrix/records/*.jsonl")
    assert stored.read_bytes() == (tmp_path / "out" / RECORD).read_bytes()
    assert main.main(["tables", str(tmp_path / "results")]) == 0
    folder = stored.parents[1]
    assert {path.name.split("-")[0] for path in folder.glob("*.*")} == {"README.md", "table.tex", "figure"}
    for table in tables(load(stored)):
        assert pipe_table(table) in (folder / "README.md").read_text()
    assert "kd_matrix/README.md" in (tmp_path / "results" / "README.md").read_text()
    assert main.main(["tables", str(tmp_path / "results"), "--check"]) == 0
