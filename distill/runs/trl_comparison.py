"""The arms of `distill.runs.trl_arms` side by side: each in a separate process, in rotating order, with one record.

A process starts before its turn: it loads its models and takes a first step. It does the measured work on request.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from backends.models.loading import load_model
from bench.records.distill_speed import ArmRun, TrainingRound
from bench.records.files import record_path
from bench.records.storage import write_atomically
from distill.runs.trl_arms import ARMS, Training, trl
from distill.text.sampler import Answer, Request, sample_answers
from distill.text.table import TextPlan, TextTable, extend

SCHEMA = 1
TIMED_ARM = "target_cached"  # by pytest-benchmark; every arm also measures itself
# bfloat16 keeps three digits: losses of one batch differ by 1e-4, and those of a whole run by little more.
LOSS_TOLERANCE = 3e-3


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained."""

    rows: int  # texts of one epoch
    batch_rows: int
    max_new_tokens: int
    rounds: int
    epochs: int = 3


SIZES = {
    "smoke": Size(rows=8, batch_rows=4, max_new_tokens=16, rounds=2),
    "quick": Size(rows=32, batch_rows=16, max_new_tokens=128, rounds=3),
    "paper": Size(rows=128, batch_rows=16, max_new_tokens=128, rounds=6),
}


def text(folder: Path, plan: TextPlan, prompts: Sequence[tuple[int, ...]], *, target: str) -> TextTable:
    """Return one batch of the target's text without hidden states, like the text of an engine that does not return them."""
    model = load_model(target, dtype="bfloat16", device="cpu")

    def sample(requests: Sequence[Request]) -> list[Answer]:
        answers = sample_answers(model, requests, max_new_tokens=plan.max_new_tokens, end_token_ids=plan.end_token_ids)
        return [replace(answer, hidden_AD=None) for answer in answers]

    return extend(folder, plan, prompts, sample, num_tokens=1)


def orders(num_rounds: int) -> list[tuple[str, ...]]:
    """Return rotations of the arms, then these reversed: six rounds have all six orders."""
    names = tuple(ARMS)
    rotations = [names[start:] + names[:start] for start in range(len(names))]
    return [*rotations, *(order[::-1] for order in rotations)][:num_rounds]


class Rounds:
    """`setup`, `timed` and `teardown` for `benchmark.pedantic`: the timed arm is loaded and warm when its clock starts."""

    def __init__(self, training: Training, orders: Sequence[tuple[str, ...]]) -> None:
        self.training, self.orders = training, orders
        self.done: list[TrainingRound] = []

    def setup(self) -> None:
        self.order = self.orders[len(self.done)]
        self.runs: dict[str, ArmRun] = {}
        self._run(self.order[: self.order.index(TIMED_ARM)])
        self.waiting = ArmProcess(TIMED_ARM, self.training)

    def timed(self) -> None:
        self.runs[TIMED_ARM] = self.waiting.run()

    def teardown(self) -> None:
        self.waiting.close()
        self._run(self.order[self.order.index(TIMED_ARM) + 1 :])
        check_same_steps(self.runs)
        self.done.append(TrainingRound(self.order, self.runs))

    def _run(self, names: Sequence[str]) -> None:
        for name in names:
            process = ArmProcess(name, self.training)
            self.runs[name] = process.run()
            process.close()


class ArmProcess:
    """The process of one arm. When it is constructed, the arm has loaded its models and waits."""

    def __init__(self, name: str, training: Training) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, training, theirs))
        self._process.start()
        theirs.close()  # otherwise `recv` would wait for ever for a process that died
        self._receive()

    def run(self) -> ArmRun:
        self._pipe.send("start")
        return self._receive()

    def close(self) -> None:
        """Wait until its memory is free again."""
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the process of an arm ended with status {self._process.exitcode}") from None


def _serve(name: str, training: Training, pipe: Connection) -> None:
    def ready() -> None:
        pipe.send("ready")
        pipe.recv()  # waits for the turn of this arm

    pipe.send(ARMS[name](training, ready))


def check_same_steps(runs: dict[str, ArmRun]) -> None:
    """Raise ValueError if an arm did not take the steps of TRL's: tokens, steps, threads, and the loss within rounding."""
    expected = runs[trl.__name__]
    for name, run in runs.items():
        for field in ("num_tokens", "num_steps", "num_threads"):
            wanted, got = getattr(expected, field), getattr(run, field)
            if got != wanted:
                raise ValueError(f"{name}: expected {field} {wanted} as TRL, got {got}")
        for field in ("first_loss", "mean_loss"):
            wanted, got = getattr(expected, field), getattr(run, field)
            if not math.isclose(got, wanted, rel_tol=LOSS_TOLERANCE):
                raise ValueError(f"{name}: expected a {field} of {wanted:.4f} as TRL, got {got:.4f}")


def store(results: Path, header: dict[str, Any], rounds: Sequence[TrainingRound]) -> Path:
    """Write a record as JSON lines, the header and then each round, and return its path."""
    path = record_path(results, header["suite"], header["environment"], header["created"], name="trl", ending=".jsonl")
    write_atomically(path, b"".join(msgspec.json.encode(line) + b"\n" for line in (header, *rounds)))
    return path
