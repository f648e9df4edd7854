"""`specheat across` as a user runs it: in a small separate repository, on a tiny pair."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bench.commands import main as command_line
from bench.records.files import load_runs
from bench.records.journal import Journal
from bench.records.runs import RunRecord
from tests.support import ROOT
from tests.support.tiny_models import HEED_CTRL_C, nearby, save_checkpoint, tiny_llama

GRID = "suites/test_temperature_grid.py"
SMALL = ("--temperatures", "1", "--num-prompts", "8", "--max-new-tokens", "16", "--chat-template", "none")
LONG = (*SMALL, "--max-new-tokens", "60", "--ignore-end-token")
THRICE = ("--launches", "3")  # of two the spread has so wide a t that noise decides
SPECHEAT = (sys.executable, "-c", "import sys; from bench.commands.main import main; sys.exit(main())")
SLOW_STEPS = """

def _slow(step):
    def slowed(*arguments):
        time.sleep(0.01)
        return step(*arguments)
    return slowed


ReferenceBackend.step = _slow(ReferenceBackend.step)
ReferenceBackend.round = _slow(ReferenceBackend.round)
# Else the baseline would be weaker than the engine's own decode, and the record INVALID.
ReferenceBackend.generate_natively = ReferenceBackend.generate
ReferenceBackend.start_natively = ReferenceBackend.start
ReferenceBackend.settings = lambda self: {"planted": "in the branch"}
"""
LIGHT_SUITE = """
import json, os, sys
import backends
from bench.records import checkout, environment
from bench.measurement.turns import Turn, pass_on, wait_for_others

def test_rounds(benchmark):
    benchmark(lambda: None)
    versions = environment.LIBRARIES_VARIABLE in os.environ
    env = environment.capture("cpu") if versions else checkout.foreign_backends()
    wait_for_others()
    for index in range(4):
        with open("diary.jsonl", "a") as file:
            print(json.dumps({"round": index, "backends": backends.__file__, "env": env, "argv": sys.argv}), file=file)
        pass_on(Turn("cell", index + 1, 0, 4))
"""


def git(folder: Path, *arguments: str) -> str:
    identity = {f"GIT_{who}_{what}": "x@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | identity
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout


def commit(folder: Path, message: str) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "-m", message)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project as it stands, with a branch whose reference decoder is slow, and work that is not committed."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("bench", "suites", "backends"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "light").mkdir()
    (folder / "light" / "test_light.py").write_text(LIGHT_SUITE)
    git(folder, "init", "--initial-branch=main")
    commit(folder, "as it stands")
    git(folder, "checkout", "-b", "slow")
    with (folder / "backends" / "engines" / "reference.py").open("a") as file:
        file.write(SLOW_STEPS)
    # The harness of the branch must not be the one that measures.
    (folder / "bench" / "measurement" / "timing.py").write_text("raise RuntimeError('the harness of the branch')\n")
    commit(folder, "slow steps")
    git(folder, "rm", "-r", "--quiet", "backends/engines")
    git(folder, "commit", "-m", "backends of the old layout")
    git(folder, "tag", "old")
    git(folder, "rm", "-r", "--quiet", "backends")
    git(folder, "commit", "-m", "no backends")
    git(folder, "tag", "empty")
    git(folder, "checkout", "-B", "slow", "HEAD~2")
    git(folder, "checkout", "main")
    (folder / "README.md").write_text("not committed")
    git(folder, "add", "README.md")
    (folder / "README.md").write_text("not even staged")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_llama(seed=1)
    draft = nearby(target, seed=2)
    return ("--target", save_checkpoint(target, folder / "target"), "--draft", save_checkpoint(draft, folder / "draft"))


def environment(**more: str) -> dict[str, str]:
    # To rewrite every assert statement takes each launch more than a second.
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "--assert=plain"} | more


def across(repository: Path, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SPECHEAT, "across", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=repository,
        env=environment(**environ),
    )


def state(repository: Path) -> tuple[str, ...]:
    """All that a user could find changed. Files that git ignores are ours."""
    return tuple(
        git(repository, *words)
        for words in (
            ("status", "--porcelain", "--untracked-files=all"),
            ("diff", "HEAD"),
            ("worktree", "list"),
            ("for-each-ref",),
            ("symbolic-ref", "HEAD"),
            ("config", "--list", "--local"),
        )
    )


def runs_of(out: Path, *, launches: int = 3) -> dict[str, RunRecord]:
    """The record of the first launch of each side by the name of its folder."""
    (moment,) = (path for path in out.iterdir() if path.is_dir())
    folders = [folder for folder in sorted(moment.iterdir()) if folder.is_dir()]
    names = {f"launch-{number}" for number in range(1, launches + 1)}
    assert all({path.name for path in folder.iterdir() if path.is_dir()} == names for folder in folders)
    found = {folder.name: load_runs(folder / "launch-1") for folder in folders}
    return {name: run for name, (run,) in found.items()}


def diary(repository: Path) -> list[dict]:  # type: ignore[type-arg]
    file = repository / "diary.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    return lines


@dataclass(frozen=True)
class Compared:
    said: subprocess.CompletedProcess[str]
    runs: dict[str, RunRecord]
    before: tuple[str, ...]
    after: tuple[str, ...]


@pytest.fixture(scope="module")
def compared(repository: Path, pair: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Compared:
    out, before = tmp_path_factory.mktemp("out"), state(repository)
    said = across(repository, "main", "slow", *THRICE, "--out", out, "--", GRID, *pair, *SMALL, "--ignore-end-token")
    assert said.returncode in (0, 1), said.stdout + said.stderr
    return Compared(said, runs_of(out), before, state(repository))


def test_a_branch_that_decodes_slowly_is_slower(compared: Compared) -> None:
    assert compared.said.returncode == 1
    assert "SD ms/token SLOWER in 1 cell" in compared.said.stdout
    assert "AR ms/token SLOWER in 1 cell" in compared.said.stdout
    assert "measured in turns" in compared.said.stdout
    assert "3 launches of each side" in compared.said.stdout
    assert "records in" in compared.said.stderr


def test_backends_come_from_the_revision_and_all_else_from_the_caller(compared: Compared, repository: Path) -> None:
    heads = [git(repository, "rev-parse", "--short=10", name).strip() for name in ("main", "slow")]
    base, head = compared.runs.values()
    assert list(compared.runs) == [
        f"{number}-{name}-{commit}" for number, name, commit in zip((1, 2), ("main", "slow"), heads, strict=True)
    ]
    assert "planted" not in base.backend_settings
    assert head.backend_settings["planted"] == "in the branch"
    for run, its_commit in zip((base, head), heads, strict=True):
        assert run.environment["backends_commit"] == its_commit
        assert run.environment["backends_dirty"] is False
        assert run.environment["harness_commit"] == heads[0]
        assert run.environment["harness_dirty"] is True
        assert run.command[1:4] == ("across", "main", "slow")


def test_both_sides_decode_the_same_texts(compared: Compared) -> None:
    base, head = (
        [(pair.prompt_index, pair.order, pair.ar.token_ids, pair.sd.token_ids) for pair in run.cells[0].pairs]
        for run in compared.runs.values()
    )
    assert len(base) == 8
    assert base == head
    assert [len(run.baseline) for run in compared.runs.values()] == [8, 8]


def test_the_callers_checkout_stays_as_it_was(compared: Compared) -> None:
    assert compared.before == compared.after


def test_who_goes_first_alternates_and_the_engines_lie_in_worktrees(repository: Path) -> None:
    before = state(repository)
    done = across(repository, "main", ".", "slow", "--", "light")
    assert done.returncode == 2
    assert list((repository / ".across" / "main..WORKTREE..slow").iterdir())
    assert "measured nothing" in done.stderr
    lines = diary(repository)
    assert [line["round"] for line in lines] == [index for index in range(4) for _ in range(3)]
    files = [line["backends"] for line in lines]
    (own,) = {file for file in files if file.startswith(str(repository))}
    main, slow = sorted(set(files) - {own})
    assert main.endswith("side-1/backends/__init__.py")
    assert slow.endswith("side-3/backends/__init__.py")
    firsts = [files[index] for index in (0, 3, 6)]
    assert sorted(firsts) == sorted([main, own, slow])
    assert all("backends_commit" not in line["env"] for line in lines if line["backends"] == own)
    assert not Path(main).exists()
    assert state(repository) == before


def test_versions_of_a_package_are_installed_beside_each_other_and_kept(repository: Path, tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        build_wheel(tmp_path / "wheels", "tiny_engine", version)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "SPECHEAT_CACHE": str(tmp_path / "c")}
    sides = ("--with", "tiny_engine==1.0", "--with", "tiny_engine==2.0")
    across(repository, *sides, "--out", tmp_path / "out", "--", "light", **offline)
    lines = diary(repository)
    assert sorted(line["env"]["tiny_engine"] for line in lines) == ["1.0"] * 4 + ["2.0"] * 4
    assert {line["backends"] for line in lines} == {str(repository / "backends" / "__init__.py")}
    shutil.rmtree(tmp_path / "wheels")
    again = across(repository, "main", *sides[:2], "slow", "--out", tmp_path / "again", "--", "light", **offline)
    assert "measured nothing" in again.stderr
    assert {line["env"]["tiny_engine"] for line in diary(repository)} == {"1.0"}
    refused = across(repository, "main", *sides[:2], "--with", "tiny_engine==3", "--", "light", **offline)
    assert refused.returncode == 2
    assert "cannot install tiny_engine==3" in refused.stderr.splitlines()[-1]


def build_wheel(folder: Path, name: str, version: str) -> None:
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["main", "nope"], "expected a commit of this repository, got 'nope'"),
        (["main", "empty"], "expected a revision with a package backends, got 'empty'"),
        (["main", "old"], "expected a revision from commit 6c227e1280 on, which have backends/engines, got 'old'"),
        (["main"], "expected at least two revisions"),
        (["main", "--with", "vllm==1"], "expected at least two revisions"),
        (["main", "slow", "--with", "vllm==1", "--with", "vllm==2"], "got both"),
        (["--with", "vllm==1", "--with", "torch==2"], "expected --with versions of one package"),
        (["main", "slow", "--with", "vllm>=1"], "expected --with PACKAGE==VERSION, got 'vllm>=1'"),
        (["main", "slow", "--margin", "0"], "expected --margin > 0, got '0'"),
        (["main", "slow", "--launches", "1"], "expected --launches >= 2, got 1"),
        (["main", "slow", "--", GRID, "--results", "elsewhere"], "got --results"),
        (["main", "slow", "--", GRID, "--plan"], "got --plan"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    complaint: str,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bench.records.checkout.REPOSITORY", repository)
    assert command_line.main(["across", "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("specheat: error: ")
    assert said.count("\n") == 1
    assert complaint in said
    assert not (tmp_path / "out").exists()


def test_suites_that_cannot_run_are_one_line_and_exit_code_2(repository: Path, tmp_path: Path) -> None:
    before = state(repository)
    done = across(repository, "main", "slow", "--out", tmp_path, "--", "suites/nope.py")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("specheat: error: ")
    assert "file or directory not found: suites/nope.py" in last
    assert "Traceback" not in done.stderr
    assert state(repository) == before


def test_a_side_that_crashes_is_named_with_its_last_words_and_ends_the_others(repository: Path, tmp_path: Path) -> None:
    crash = "import backends, os\n\ndef test_it(benchmark):\n    if 'side-2' in backends.__file__:\n"
    crash += "        os.write(2, b'\\nout of memory\\n')\n        os._exit(9)\n"
    (tmp_path / "test_crash.py").write_text(crash)
    before = state(repository)
    done = across(repository, "main", "slow", "--out", tmp_path / "out", "--", "-s", tmp_path / "test_crash.py")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "error: slow (" in line
    assert "failed with exit status 9: out of memory (all it wrote: " in line
    log = Path(line.rpartition("all it wrote: ")[2].rstrip(")"))
    assert "out of memory" in log.read_text()
    assert state(repository) == before


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_resume_measures_the_rest(
    repository: Path, pair: tuple[str, ...], tmp_path: Path
) -> None:
    before = state(repository)
    words = ["across", "main", "slow", "--launches", "2", "--out", str(tmp_path), "--", GRID, *pair, *LONG]
    process = subprocess.Popen(
        [*HEED_CTRL_C, *SPECHEAT, *words],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    deadline = time.monotonic() + 120
    while sum(path.read_text().count('"type":"pair"') for path in tmp_path.rglob("*.partial.jsonl")) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "the same command with --resume goes on" in said
    assert not any(child.is_running() for child in children)
    assert state(repository) == before
    kept = [Journal.resume(path) for path in sorted(tmp_path.rglob("*.partial.jsonl"))]
    for journal in kept:
        journal.close()
    pairs = [next(iter(journal.measured.pairs.values())) for journal in kept]
    assert abs(len(pairs[0]) - len(pairs[1])) <= 1

    border = words.index("--")
    done = across(repository, *words[1:border], "--resume", *words[border:])
    assert done.returncode in (0, 1), done.stdout + done.stderr
    measured = [run.cells[0].pairs for run in runs_of(tmp_path, launches=2).values()]
    assert [len(each) for each in measured] == [8, 8]
    assert [each[: len(first)] for each, first in zip(measured, pairs, strict=True)] == [tuple(p) for p in pairs]
    assert not list(tmp_path.rglob("*.partial.jsonl")) + list(tmp_path.rglob(".unfinished"))
    assert state(repository) == before
