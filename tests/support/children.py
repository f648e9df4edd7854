"""Child processes that start in milliseconds: a server that has imported torch and transformers forks them.

A new interpreter needs several seconds for these imports. The server imports no module of this project. A command imports them
as it does from a shell.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.support import ROOT

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "SPECHEAT_LOCK"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1"}  # a resumed run must find the number of threads that it had
LIBRARIES = (
    *("transformers.models.auto", "transformers.models.llama.modeling_llama", "transformers.models.t5.modeling_t5"),
    *("transformers.generation.utils", "transformers.integrations.hub_kernels", "transformers.integrations.moe"),
    *("accelerate", "peft", "scipy.stats", "hypothesis", "anyio.pytest_plugin"),
)


@functools.cache
def server() -> ForkServerContext:
    """Start the process that imports the libraries. It ends with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", ENVIRONMENT["OMP_NUM_THREADS"])  # torch reads it when it is imported
        forkserver.ensure_running()
    return context


def start(function: Callable[..., object], *args: object, **environment: str) -> BaseProcess:
    """Start `function(*args)` in a process with one thread and this environment. Its output is discarded."""
    process = server().Process(target=_call, args=(function, args, ENVIRONMENT | environment, Path(os.devnull)))
    process.start()
    return process


class Command:
    """A running command: `pytest` or `specheat` with its arguments."""

    def __init__(self, program: str, *arguments: str, environment: Mapping[str, str] = ENVIRONMENT) -> None:
        self.words = (program, *arguments)
        self.output = Path(tempfile.mkdtemp())
        run = {"pytest": _pytest, "specheat": _specheat}[program]
        variables = {"SPECHEAT_LOCK": str(self.output / "lock"), **environment}  # a test may start several at once
        self.process = server().Process(target=_call, args=(run, (self.words,), variables, self.output))
        self.process.start()

    def is_running(self) -> bool:
        return self.process.is_alive()

    def press_ctrl_c(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGINT)

    def result(self) -> subprocess.CompletedProcess[str]:
        """Wait until the command ends, and return its exit code and its output."""
        self.process.join()
        assert self.process.exitcode is not None
        stdout, stderr = (self.output.joinpath(name).read_text() for name in ("stdout", "stderr"))
        shutil.rmtree(self.output)
        return subprocess.CompletedProcess(self.words, self.process.exitcode, stdout, stderr)


def start_suites(*arguments: str, environment: Mapping[str, str] = ENVIRONMENT) -> Command:
    return Command("pytest", "--benchmark-only", "-p", "no:cacheprovider", "--no-page", *arguments, environment=environment)


def run_suites(*arguments: str) -> subprocess.CompletedProcess[str]:
    return start_suites(*arguments).result()


def run_specheat(*arguments: str, environment: Mapping[str, str] = ENVIRONMENT) -> subprocess.CompletedProcess[str]:
    return Command("specheat", *arguments, environment=environment).result()


def _call(function: Callable[..., object], args: tuple[object, ...], environment: dict[str, str], output: Path) -> None:
    """Call a function in this process, which was forked for it, and send what it writes to a folder or to nowhere."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a background job ignore Ctrl-C otherwise
    for number, name in ((1, "stdout"), (2, "stderr")):
        path = output / name if output.is_dir() else output
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(ROOT), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    function(*args)


def _pytest(words: tuple[str, ...]) -> None:
    # To rewrite every assert statement takes a second, and would only explain a failed assertion in a suite.
    sys.argv = [*words]
    sys.exit(pytest.main(["--assert=plain", *words[1:]]))


def _specheat(words: tuple[str, ...]) -> None:
    from bench.commands.main import main

    sys.argv = [*words]
    sys.exit(main(list(words[1:])))
