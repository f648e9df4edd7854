"""The suites as a user runs them: pytest in a separate process, on a tiny pair."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.analysis import metrics
from bench.analysis.rows import newest_rows
from bench.options.settings import Stopping
from bench.records import files, journal
from bench.reporting import repeat
from bench.reporting.suites import virtual_scale
from tests.support import ROOT
from tests.support.children import ENVIRONMENT, run_suites, start_suites
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

GRID = "suites/test_temperature_grid.py"
SMALL = ("--preset", "smoke", "--num-prompts", "6", "--max-new-tokens", "16", "--chat-template", "none")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_llama(seed=1)
    draft = nearby(target, seed=2)
    return ("--target", save_checkpoint(target, folder / "target"), "--draft", save_checkpoint(draft, folder / "draft"))


def journals(results: Path) -> list[Path]:
    return sorted(results.rglob("*.partial.jsonl"))


@dataclass(frozen=True)
class Measured:
    results: Path
    report: Path
    storage: Path
    said: str


@pytest.fixture(scope="module")
def measured(pair: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """All suites, run once."""
    folder = tmp_path_factory.mktemp("measured")
    results, report, storage = folder / "results", folder / "benchmark.json", folder / "storage"
    done = run_suites(
        *("suites", *pair, *SMALL, "--inflate", "none", "--results", str(results)),
        *(f"--benchmark-json={report}", "--benchmark-autosave", f"--benchmark-storage=file://{storage}"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Measured(results, report, storage, done.stdout)


def test_every_suite_leaves_a_record_and_prints_a_table(measured: Measured) -> None:
    runs = {record.suite: record for record in files.load_runs(measured.results)}
    assert set(runs) == {
        *("acceptance_rules", "baseline_strength", "cost_of_temperature", "deployment", "draft_length"),
        *("draft_temperature", "dynamic_temperature", "out_of_domain", "out_of_range", "temperature_grid"),
        *("floor", "virtual_scale"),
    }
    of_others = {path.parents[1].name for path in measured.results.rglob("*.jsonl")}
    assert of_others == {"composed", "paradigm", "token_length"}
    grid = runs["temperature_grid"]
    assert [record.cell.temperature for record in grid.cells] == [0.0, 1.0]
    for record in grid.cells:
        assert len(record.pairs) == 6
        gamma = metrics.gamma(record)
        assert gamma is not None
        assert gamma.low < gamma.estimate < gamma.high
        assert metrics.predicted_gamma(record) is not None
        agreement = metrics.acceptance_agreement(record)
        assert agreement is not None
        assert agreement.p > 0.001
        assert all(arm.conditions is not None for pair in record.pairs for arm in (pair.ar, pair.sd))
    # Both temperatures of a prompt were measured before the next prompt.
    cold, hot = ([(pair.visit // 2, pair.prompt_index) for pair in record.pairs] for record in grid.cells)
    assert cold == hot
    assert [visit for visit, _ in cold] == list(range(6))
    # The tests of two functions were measured together.
    lengths = [[pair.visit for pair in record.pairs] for record in runs["draft_length"].cells]
    assert all(max(places) - min(places) >= 5 * len(lengths) - len(lengths) for places in lengths)
    assert metrics.native_ratio(runs["baseline_strength"]) is not None
    assert "gamma: AR / SD seconds per token" in measured.said
    assert "Speculation is " in measured.said
    assert not journals(measured.results)


def test_a_cell_ends_once_gamma_is_known_well_enough(pair: tuple[str, ...], tmp_path: Path) -> None:
    report = tmp_path / "benchmark.json"
    options = ("--temperatures", "1", "--num-prompts", "14", "--max-new-tokens", "8", "--chat-template", "none")
    results = ("--results", str(tmp_path), f"--benchmark-json={report}")
    done = run_suites(GRID, *pair, *options, *results, "--precision", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    path = next(path for path in tmp_path.rglob("*.json") if path != report)
    (record,) = files.load_run(path).cells
    assert (len(record.pairs), record.stopped, record.cell.num_prompts) == (Stopping().least_prompts, "precision", 14)
    assert record.evidence is not None
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert benchmark["stats"]["rounds"] == Stopping().least_prompts
    assert "ended early: 1 of 1 cells, after 10 of 14 pairs (precision 1)" in " ".join(done.stdout.split())


def test_pytest_benchmark_times_the_speculative_arm_of_the_same_pairs(measured: Measured) -> None:
    grid = next(run for run in files.load_runs(measured.results) if run.suite == "temperature_grid")
    benchmarks = {row["name"]: row for row in json.loads(measured.report.read_text())["benchmarks"]}
    measured_cells = sum(len(run.cells) for run in files.load_runs(measured.results))
    assert len(benchmarks) == measured_cells + len({"baseline_strength", "composed", "paradigm", "token_length"})
    cold = benchmarks["test_temperature_grid[reference-T0-rejection-k2]"]
    pairs = grid.cells[0].pairs
    assert cold["stats"]["rounds"] == 6
    assert cold["stats"]["data"] == [pair.sd.seconds for pair in pairs]
    assert cold["extra_info"]["sd_tokens"] == sum(len(p.sd.token_ids) for p in pairs)


def test_pytest_benchmarks_compare_fail_and_histogram_work_on_the_suites(
    pair: tuple[str, ...], measured: Measured, tmp_path: Path
) -> None:
    saved = f"--benchmark-storage=file://{measured.storage}"
    again = (GRID, *pair, *SMALL, "--results", str(tmp_path / "results"), saved, "--benchmark-compare=0001")
    # Six times the tokens take longer than 10 % more, whatever else this machine is doing.
    compared = run_suites(
        *(*again, "--temperatures", "1", "--max-new-tokens", "96", "--ignore-end-token"),
        *(f"--benchmark-histogram={tmp_path}/plot", "--benchmark-compare-fail=mean:10%"),
    )
    assert "(0001" in compared.stdout, compared.stdout + compared.stderr
    assert "Performance has regressed" in compared.stdout + compared.stderr
    assert compared.returncode != 0
    assert list(tmp_path.glob("plot*.svg"))


def test_ctrl_c_keeps_what_was_measured_and_resume_measures_only_the_rest(pair: tuple[str, ...], tmp_path: Path) -> None:
    arguments = (
        GRID,
        *pair,
        *SMALL,
        "--max-new-tokens",
        "100",
        "--temperatures",
        "0,0.5,1",
        "--results",
        str(tmp_path),
    )
    running = start_suites(*arguments)
    deadline = time.monotonic() + 120
    while not any(path.read_text().count('"type":"pair"') >= 8 for path in journals(tmp_path)):
        assert running.is_running(), running.result()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.press_ctrl_c()
    stopped = running.result()
    assert stopped.returncode == pytest.ExitCode.INTERRUPTED, stopped
    assert "--resume goes on from there" in stopped.stderr
    kept = journal.Journal.resume(journals(tmp_path)[0])
    kept.close()
    assert len(kept.measured.pairs) == 3  # cells are measured in turn, so that all of them have begun

    done = run_suites(*arguments, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = files.load_runs(tmp_path)
    assert [len(cell.pairs) for cell in record.cells] == [6, 6, 6]
    for cell in record.cells:
        pairs = kept.measured.pairs[cell.cell]
        assert list(cell.pairs[: len(pairs)]) == pairs
    assert sorted(pair.visit for cell in record.cells for pair in cell.pairs) == list(range(18))
    assert not journals(tmp_path)


def test_what_an_interruption_left_open_is_no_error_when_the_run_ends(pair: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "leaves_open.py").write_text(
        "class Broken:\n"
        "    def __del__(self):\n"
        "        raise ResourceWarning('left open')\n"
        "def pytest_unconfigure(config):\n"  # where pytest looks for the last time
        "    Broken()\n"
    )
    arguments = (GRID, *pair, *SMALL, "--plan", "--results", str(tmp_path), "-p", "leaves_open")
    done = start_suites(*arguments, environment=ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}).result()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_of_several_suites_goes_on_after_those_that_were_finished(pair: tuple[str, ...], tmp_path: Path) -> None:
    arguments = (
        "suites/test_out_of_range.py",
        GRID,
        *pair,
        *SMALL,
        "--temperatures",
        "0,1",
        "--results",
        str(tmp_path),
    )
    running = start_suites(*arguments)
    deadline = time.monotonic() + 120
    while not any("temperature_grid" in str(path) for path in journals(tmp_path)):
        assert running.is_running(), running.result()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.press_ctrl_c()
    stopped = running.result()
    assert stopped.returncode == pytest.ExitCode.INTERRUPTED, stopped

    done = run_suites(*arguments, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 skipped" in done.stdout
    suites = [record.suite for record in files.load_runs(tmp_path)]
    assert sorted(suites) == ["out_of_range", "temperature_grid"]
    assert not list(tmp_path.glob(".*"))


def test_an_inflated_target_has_a_separate_record_and_the_same_acceptance(pair: tuple[str, ...], tmp_path: Path) -> None:
    shape = "layers=4,hidden=64"
    arguments = [*pair, *SMALL, "--temperatures", "0,1", "--ignore-end-token", "--dtype", "float32"]
    done = run_suites(
        "suites/test_virtual_scale.py", *arguments, "--inflate", "none", "--inflate", shape, "--results", str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    small, large = sorted(files.load_runs(tmp_path), key=lambda record: len(record.model_pair.name))
    assert large.model_pair.name.startswith(f"{small.model_pair.name} inflated layers=4,hidden=64")
    assert large.model_pair.target.startswith("target inflated")
    assert large.model_hashes["uninflated target"] == small.model_hashes["target"]
    assert all(len(record.baseline) == 6 for record in (small, large))
    # Greedy outputs are the same in float32. At T = 1 each cell draws other random numbers.
    cold, hot = ([[pair.sd.token_ids for pair in run.cells[place].pairs] for run in (small, large)] for place in (0, 1))
    assert cold[0] == cold[1]
    assert hot[0] != hot[1]
    table = virtual_scale.scale_table(newest_rows({str(i): record for i, record in enumerate((small, large))}))
    assert [row[0].text for row in table.body[-1:]] == [virtual_scale.PAPER_PAIR]
    names = {row[0].text for row in table.body} - {virtual_scale.PAPER_PAIR}
    assert names == {record.model_pair.name for record in (small, large)}
    again = repeat.cell_command(newest_rows({"large": large})[0], ())
    assert f"--inflate {large.model_pair.name.partition(' inflated ')[2]}" in again


def test_drafts_and_prompt_sets_share_a_record_and_one_baseline(pair: tuple[str, ...], tmp_path: Path) -> None:
    other = save_checkpoint(nearby(tiny_llama(seed=1), seed=3, noise=0.2), tmp_path / "other")
    prompts = [write(tmp_path / f"{name}.txt", f"{name} w4\n" * 3 + "w5 w6\nw7 w8\nw9 w3\n") for name in ("w3", "w8")]
    arguments = [*pair, "--draft", other, *SMALL, "--temperatures", "1", "--results", str(tmp_path / "results")]
    arguments += [word for path in prompts for word in ("--prompts", path)]
    done = run_suites("suites/test_kd_grid.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = files.load_runs(tmp_path / "results")
    measured = {(cell.cell.draft, cell.cell.prompt_set): cell for cell in record.cells}
    assert set(measured) == {(draft, name) for draft in ("draft", "other") for name in ("w3.txt", "w8.txt")}
    assert len(record.baseline) == 6
    assert set(record.model_hashes) == {"target", "draft", "draft other"}
    assert record.model_hashes["draft"] != record.model_hashes["draft other"]
    assert all(len(cell.pairs) == 6 and cell.error is None for cell in measured.values())


def test_models_that_go_by_one_name_are_refused(pair: tuple[str, ...], tmp_path: Path) -> None:
    other = save_checkpoint(nearby(tiny_llama(seed=1), seed=3), tmp_path / "draft")
    done = run_suites("suites/test_kd_grid.py", *pair, "--draft", other, *SMALL, "--results", str(tmp_path / "results"))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "different names" in done.stdout + done.stderr


def test_backends_stand_side_by_side_at_every_temperature(pair: tuple[str, ...], tmp_path: Path) -> None:
    """In the closing table too. Engines that decode one prompt at a time skip the suite of loads."""
    backends = ("reference", "assisted", "assisted-default")
    arguments = [word for name in backends for word in ("--backend", name)]
    done = run_suites(
        *("suites/test_backends.py", "suites/test_concurrency.py", *arguments, *pair, *SMALL, "--max-new-tokens", "8"),
        *("--results", str(tmp_path)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = files.load_runs(tmp_path)
    assert {record.cell.backend for run in runs for record in run.cells} == set(backends)
    assert all(record.error is None and len(record.pairs) == 6 for run in runs for record in run.cells)
    assert [len(run.cells) for run in runs] == [2, 2, 2]
    assert "Speculation, by engine: " in done.stdout
    assert "decodes one prompt at a time" in done.stdout


def test_the_plan_lists_the_cells_and_measures_nothing(pair: tuple[str, ...], tmp_path: Path) -> None:
    done = run_suites(GRID, *pair, *SMALL, "--results", str(tmp_path / "results"), "--plan", "--num-draft-tokens", "1,4")
    assert done.returncode == 0
    assert done.stdout.count("::test_temperature_grid[") == 4
    assert "minutes" in done.stdout
    assert "memory" in done.stdout
    assert not (tmp_path / "results").exists()


def test_a_pilot_tells_what_the_run_can_decide_and_leaves_a_record(pair: tuple[str, ...], tmp_path: Path) -> None:
    where = ("--results", str(tmp_path / "results"))
    assert "no record of this pair on this machine" in run_suites(GRID, *pair, *SMALL, *where, "--plan").stdout
    done = run_suites(GRID, *pair, *SMALL, *where, "--plan", "--pilot")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from 6 prompts of pilot, measured here on" in done.stdout
    assert "gamma at T = 0" in done.stdout
    (run,) = files.load_runs(tmp_path / "results")
    assert [record.cell.temperature for record in run.cells] == [0.0, 1.0]
    assert all(pair.interleaved and pair.replay is not None for record in run.cells for pair in record.pairs)
    refused = run_suites(GRID, *pair, *SMALL, "--pilot")
    assert refused.returncode == pytest.ExitCode.USAGE_ERROR
    assert "expected --plan beside --pilot" in refused.stdout + refused.stderr


def test_a_suite_has_its_own_defaults_and_fewer_prompts_are_no_error(pair: tuple[str, ...], tmp_path: Path) -> None:
    prompts = write(tmp_path / "few.txt", "w3 w4\nw5 w6\nw7 w8\n")
    where = ("--prompts", prompts, "--chat-template", "none", "--results", str(tmp_path / "results"), "--plan")
    done = run_suites("suites/test_draft_length.py", *pair, *where)
    for k in (1, 2, 3):
        assert f"test_draft_length[reference-T1-rejection-k{k}]" in done.stdout
    assert "8 cells of 3 pairs (3 prompts x 1) of 24 tokens" in done.stdout
    done = run_suites("suites/test_draft_length.py", *pair, *where, "--num-draft-tokens", "5", "--temperatures", "0.5")
    assert "test_draft_length[reference-T0.5-rejection-k5]" in done.stdout
    assert "2 cells of 3 pairs" in done.stdout  # k as requested, and k at most


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--pair", "nonsense"], "nonsense"),
        (["--backend", "refrence"], "did you mean 'reference'"),
        (["--preset", "slow"], "expected --preset"),
        (["--temperatures", "nan"], "expected a finite number for --temperatures"),
        (["--temperatures=-0.5"], "expected a temperature >= 0"),
        (["--num-draft-tokens", "0"], "expected --num-draft-tokens >= 1, got 0"),
        (["--prompts", "{tmp}/empty.jsonl"], "empty.jsonl"),
        (["--prompts", "{tmp}/broken.jsonl"], "line 2"),
        (["--prompts", "{tmp}/long.txt", "--num-prompts", "1"], "--max-prompt-tokens"),
        (["--draft", "{tmp}/other"], "expected one vocabulary"),
        (["--draft", "{tmp}/damaged"], "damaged"),
        (["--device", "cuda"], "cuda"),
        (["--results", "/proc/results"], "/proc/results"),
    ],
    ids=lambda value: value[1].rpartition("/")[2] if isinstance(value, list) and len(value) > 1 else "",
)
def test_bad_input_is_one_line_and_a_nonzero_exit(
    arguments: list[str], complaint: str, pair: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "empty.jsonl", "")
    write(tmp_path / "broken.jsonl", '{"text": "w3 w4"}\n{"text": "w3\n')
    write(tmp_path / "long.txt", "w3 " * 300)
    save_checkpoint(tiny_llama(seed=3, vocab_size=20), tmp_path / "other")
    save_checkpoint(tiny_llama(seed=3), tmp_path / "damaged")
    write(tmp_path / "damaged" / "config.json", "{")
    arguments = [text.format(tmp=tmp_path) for text in arguments]
    chosen = () if "--pair" in arguments else pair
    if "--draft" in arguments:
        chosen = pair[:2]
    arguments = [str(ROOT / GRID), *chosen, *SMALL, "--results", str(tmp_path / "results"), *arguments]
    capfd.readouterr()
    # In this process, where torch is loaded already; bench is too, which pytest would warn of.
    quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    status = pytest.main(["--benchmark-only", "-p", "no:cacheprovider", *quiet, *arguments])
    said = "".join(capfd.readouterr())
    assert status == pytest.ExitCode.USAGE_ERROR
    assert len([line for line in said.splitlines() if complaint in line]) == 1, said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("results/*/*"))
