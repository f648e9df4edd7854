"""Two measuring runs on one machine notice each other, and what a run starts does not count as another run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.doctor.noise import noise_floor
from bench.commands import main
from bench.options.arguments import from_options
from bench.records import environment, machine_lock
from bench.records.machine_lock import MachineInUse, lock_file, measuring, num_runs
from bench.records.runs import SHARED_BY
from tests.support.children import ENVIRONMENT, run_specheat, start_suites

LINE = (
    r"another Specheat run measures on this machine \(pid {pid}, started \d\d:\d\d:\d\d\): two runs at once would disturb "
    r"each other's times; wait for it, or pass --shared-machine"
)
CHILD = """
import sys
from bench.records.machine_lock import measuring, num_runs
with measuring(shared="shared" in sys.argv):
    print("holds", flush=True)
    sys.stdin.readline()
    print(num_runs(), flush=True)
"""


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECHEAT_LOCK", str(tmp_path / "locks" / "measuring"))
    return tmp_path / "locks" / "measuring"


@contextmanager
def another_run(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that holds the lock until a line is written to it."""
    variables = {name: value for name, value in os.environ.items() if name != machine_lock.HOLDER}
    command = [sys.executable, "-c", CHILD, *words]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process


def ended(process: subprocess.Popen[str]) -> str:
    """Let the other run end, and return with how many runs it shared the machine."""
    return process.communicate("\n")[0].strip()


def test_a_second_run_stops_with_one_line_until_the_first_has_ended() -> None:
    with another_run() as process:
        with pytest.raises(MachineInUse, match=LINE.format(pid=process.pid)), measuring():
            pass
        assert ended(process) == "1"
    with measuring():
        assert num_runs() == 1


def test_a_killed_run_leaves_no_lock() -> None:
    with another_run() as process:
        process.kill()
        process.wait()
        with measuring():
            assert num_runs() == 1


def test_both_runs_know_that_they_shared_the_machine_and_a_third_is_refused() -> None:
    with another_run() as first:
        with measuring(shared=True):
            assert num_runs() == 2
            assert environment.capture("cpu")[SHARED_BY] == 2
            assert ended(first) == "2"  # although the other began later
            with another_run("shared") as third:
                assert ended(third) == "3"
        assert SHARED_BY not in environment.capture("cpu")
    with measuring():
        assert num_runs() == 1


def test_processes_that_a_run_starts_have_its_lock() -> None:
    with measuring():
        command = [sys.executable, "-c", CHILD]
        done = subprocess.run(command, input="\n", capture_output=True, text=True, check=True)
        assert done.stdout == "holds\n1\n"
        with measuring():
            pass
        apart = dict(ENVIRONMENT) | {"SPECHEAT_LOCK": str(lock_file())}  # not started by this run
        assert subprocess.run(command, env=apart, capture_output=True, check=False).returncode  # still held


def test_the_lock_file_depends_on_the_user_and_not_on_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPECHEAT_LOCK")
    before = lock_file()
    monkeypatch.chdir(tmp_path)
    assert lock_file() == before
    assert str(os.getuid()) in before.parent.name


@pytest.mark.parametrize("command", ["distill", "kd-matrix", "suites"])
def test_a_second_command_prints_the_line_and_ends_with_status_2(command: str, own_lock: Path, tmp_path: Path) -> None:
    variables = dict(ENVIRONMENT) | {"SPECHEAT_LOCK": str(own_lock)}
    out = str(tmp_path / "out")
    with another_run() as process:
        if command == "suites":
            done = start_suites("suites/test_temperature_grid.py", "--results", out, environment=variables).result()
        else:
            words = ("offline",) if command == "distill" else ()
            done = run_specheat(command, *words, "--out", out, environment=variables)
        assert len(re.findall(LINE.format(pid=process.pid), done.stdout + done.stderr)) == 1
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) <= 1
    assert "passed" not in done.stdout


def test_across_and_doctor_notice_another_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with another_run():
        assert main.main(["across", ".", "HEAD", "--out", str(tmp_path / "across"), "--", "suites/test_floor.py"]) == 2
        assert "another Specheat run measures on this machine" in capsys.readouterr().err
        assert not (tmp_path / "across").exists()
        ((state, text, _),) = noise_floor(from_options(Namespace()), [], seconds=1)
        assert state == "problem"
        assert text.startswith("not measured: another Specheat run measures on this machine")
