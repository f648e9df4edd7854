"""The console script: cheap help, one line for bad input, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.commands import main
from bench.errors import BackendUnavailable, IncomparableResults


class Raising:
    """A command that raises a given error."""

    help = "fails"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("--loud", action="store_true")

    def run(self, args: Namespace) -> int:
        raise self.error


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    def run(error: BaseException) -> int:
        monkeypatch.setitem(main.COMMANDS, "fail", "")
        monkeypatch.setattr(main, "load", lambda name: Raising(error))
        return main.main(["fail"])

    return run


@pytest.mark.parametrize("kind", [ValueError, BackendUnavailable, IncomparableResults, OSError])
def test_an_expected_failure_is_one_line_and_exit_code_2(
    kind: type[Exception], failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(kind("expected this,\n  got that")) == 2
    assert capsys.readouterr().err == "specheat: error: expected this, got that\n"


def test_an_interrupt_is_one_line_and_exit_code_130(
    failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "specheat: interrupted\n"


def test_an_error_nobody_expected_keeps_its_traceback(failing: Callable[[BaseException], int]) -> None:
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())


def test_help_lists_the_commands_and_imports_no_torch() -> None:
    script = (
        "import sys; from bench.commands.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'pandas', 'scipy'} & set(sys.modules), 'help imported too much'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pairs" in done.stdout
    assert "list model pairs" in done.stdout


def test_pairs_lists_the_shipped_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["pairs"]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["name", "target", "draft", "family", "dtype", "licence", "ready"]
    assert "smollm2" in table
    assert main.main(["pairs", "--json"]) == 0
    assert {"name", "target", "draft", "ready", "why"} <= json.loads(capsys.readouterr().out)[0].keys()


def test_an_unknown_pair_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["pairs", "--prepare", "nope"]) == 2
    assert capsys.readouterr().err.startswith("specheat: error: expected a pair of smollm2")


def test_a_pairs_file_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["pairs", "--pairs-file", str(tmp_path / "absent.toml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_preparing_the_embedded_pair_prints_two_checkpoint_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["pairs", "--prepare", "smollm2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert all((Path(printed[role]) / "model.safetensors").is_file() for role in ("target", "draft"))


def test_a_command_that_is_named_imports_no_other_and_help_no_numpy() -> None:
    script = (
        "import sys; from bench.commands.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sorted(name for name in sys.modules if name in ('numpy', 'torch') or '.commands.' in name))"
    )
    for given, expected in ((["pairs", "--help"], ["backends.commands.pairs"]), (["--help"], None)):
        command = [sys.executable, "-c", script, *given]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
        assert not {"numpy", "torch"} & set(found)
        found.remove("bench.commands.main")
        assert found == expected if expected else len(found) > 5
