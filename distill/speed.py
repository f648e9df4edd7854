"""Rounds of the arms of `speed_arms`, their record and the table of it.

A round runs every arm once, one after the other, each in a process of its own; over three rounds every arm is first, second
and third once. Tokens are answer tokens, seconds wall-clock.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM

from bench.environment import machine_slug
from bench.records import ModelPair, Scalar
from bench.rendering import Page
from bench.statistics import RatioInterval, ratio_of_totals
from bench.store import write_atomically
from distill.sampling import Answer, Ask, sample_answers
from distill.speed_arms import ARMS, ArmProcess, ArmRun, Training, target_cached, target_in_step, trl
from distill.text import TextPlan, TextTable, extend

SCHEMA = 1
WANTED = {target_in_step.__name__: 1.5, target_cached.__name__: 3.0}  # times TRL's tokens/s
TIMED_ARM = target_cached.__name__  # by pytest-benchmark; all arms by their own clocks
# bf16 keeps three digits: the losses of one batch differ by 1e-4, and those of a run, whose steps carry it on, by little more.
LOSS_TOLERANCE = 3e-3


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

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


@dataclass(frozen=True, slots=True)
class Round:
    """Every arm once."""

    order: tuple[str, ...]
    runs: dict[str, ArmRun]


@dataclass(frozen=True, slots=True)
class SpeedRecord:
    """One run of the suite: a line of a file, followed by one for each round."""

    schema: int
    suite: str
    preset: str
    command: str
    created: str  # ISO 8601, UTC
    environment: dict[str, Scalar]
    model_pair: ModelPair
    model_hashes: dict[str, str]
    prompt_set: str
    prompts_hash: str
    loss: str
    text: TextPlan
    training: Training
    rounds: tuple[Round, ...]


def text(folder: Path, plan: TextPlan, prompts: Sequence[tuple[int, ...]], *, target: str) -> TextTable:
    """One batch of the target's text, without hidden states, as an engine that keeps them to itself leaves it."""
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()

    def sample(asks: Sequence[Ask]) -> list[Answer]:
        answers = sample_answers(model, asks, max_new_tokens=plan.max_new_tokens, end_token_ids=plan.end_token_ids)
        return [replace(answer, hidden_AD=None) for answer in answers]

    return extend(folder, plan, prompts, sample, num_tokens=1)


def orders(num_rounds: int) -> list[tuple[str, ...]]:
    """Rotations of the arms, then these reversed: all six orders in six rounds."""
    names = tuple(ARMS)
    rotations = [names[start:] + names[:start] for start in range(len(names))]
    return [*rotations, *(order[::-1] for order in rotations)][:num_rounds]


class Rounds:
    """`setup`, `timed` and `teardown` of `benchmark.pedantic`: the timed arm is loaded and warm when its clock starts."""

    def __init__(self, training: Training, orders: Sequence[tuple[str, ...]]) -> None:
        self.training = training
        self.orders = orders
        self.done: list[Round] = []
        self.runs: dict[str, ArmRun] = {}

    @property
    def order(self) -> tuple[str, ...]:
        return self.orders[len(self.done)]

    def setup(self) -> None:
        self.runs = {}
        self._run(self.order[: self.order.index(TIMED_ARM)])
        self.waiting = ArmProcess(TIMED_ARM, self.training)

    def timed(self) -> None:
        self.runs[TIMED_ARM] = self.waiting.run()

    def teardown(self) -> None:
        self.waiting.close()
        self._run(self.order[self.order.index(TIMED_ARM) + 1 :])
        check_same_steps(self.runs)
        self.done.append(Round(self.order, self.runs))

    def _run(self, names: Sequence[str]) -> None:
        for name in names:
            process = ArmProcess(name, self.training)
            self.runs[name] = process.run()
            process.close()


def check_same_steps(runs: dict[str, ArmRun]) -> None:
    """Raise ValueError unless all arms did what TRL's did: tokens, steps, threads, and the loss within rounding."""
    wanted = runs[trl.__name__]
    for name, run in runs.items():
        for field in ("num_tokens", "num_steps", "num_threads"):
            if getattr(run, field) != getattr(wanted, field):
                raise ValueError(f"{name}: expected {field} {getattr(wanted, field)} as TRL, got {getattr(run, field)}")
        for field in ("first_loss", "mean_loss"):
            if not math.isclose(getattr(run, field), getattr(wanted, field), rel_tol=LOSS_TOLERANCE):
                raise ValueError(
                    f"{name}: expected a {field} of {getattr(wanted, field):.4f} as TRL, got {getattr(run, field):.4f}"
                )


def speed_up(rounds: Sequence[Round], name: str) -> RatioInterval:
    """TRL's seconds per token / the arm's: ratio of totals, interval over rounds."""
    theirs, ours = ([each.runs[arm] for each in rounds] for arm in (trl.__name__, name))
    return ratio_of_totals(
        [run.seconds for run in theirs],
        [run.num_tokens for run in theirs],
        [run.seconds for run in ours],
        [run.num_tokens for run in ours],
        range(len(rounds)),
    )


def table(rounds: Sequence[Round]) -> str:
    """Markdown: a row for each way of ours."""
    headers = ("row", "tokens/s", "TRL's", "ratio [95 %]", "wanted", "peak GiB", "TRL's")
    theirs = [each.runs[trl.__name__] for each in rounds]
    rows = []
    for name, wanted in WANTED.items():
        runs = [each.runs[name] for each in rounds]
        ratio = speed_up(rounds, name)
        rows.append(
            (
                name,
                f"{_tokens_per_s(runs):.0f}",
                f"{_tokens_per_s(theirs):.0f}",
                f"{ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
                f">= {wanted:g}",
                f"{_peak_gib(runs):.2f}",
                f"{_peak_gib(theirs):.2f}",
            )
        )
    caption = (
        f"Answer tokens/s of KD training, {len(rounds)} rounds; ratio = seconds per token of TRL's GKDTrainer / ours. "
        "target_cached: the target's one forward over the text and all epochs after it."
    )
    return f"{caption}\n\n{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}"


def _tokens_per_s(runs: Sequence[ArmRun]) -> float:
    return sum(run.num_tokens for run in runs) / sum(run.seconds for run in runs)


def _peak_gib(runs: Sequence[ArmRun]) -> float:
    return max(run.peak_bytes for run in runs) / 2**30


def store(results: Path, record: SpeedRecord) -> Path:
    """Write the record, whole or not at all; JSON lines, which no reader of decoding records takes for one of these."""
    header: dict[str, Any] = asdict(replace(record, rounds=()))
    del header["rounds"]
    moment = datetime.fromisoformat(record.created).strftime("%Y%m%dT%H%M%SZ")
    name = f"{moment}-{record.environment.get('harness_commit', 'unknown')}-trl.jsonl"
    path = results / machine_slug(record.environment) / record.suite / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in (header, *map(asdict, record.rounds))))
    return path


def derived(records: Sequence[Path]) -> Page:
    """Of the newest record, for `specheat tables`."""
    _, *lines = (json.loads(line) for line in records[-1].read_text().splitlines())
    rounds = [Round(tuple(line["order"]), {arm: ArmRun(**run) for arm, run in line["runs"].items()}) for line in lines]
    return Page(table(rounds), {})
