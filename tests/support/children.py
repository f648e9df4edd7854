"""Child processes that start in milliseconds: a server that has imported torch and transformers forks them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["accelerate", "peft", "tests.support.tiny_distillation", "distill.runs.distillation"])


def start(function: Callable[..., object], *args: object, **environment: str) -> BaseProcess:
    """Start `function(*args)` in a process with one thread and this environment. Its output is discarded."""
    process = CONTEXT.Process(target=_run, args=(function, args, environment))
    process.start()
    return process


def _run(function: Callable[..., object], args: tuple[object, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    torch.set_num_threads(1)
    function(*args)
