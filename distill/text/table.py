"""Text sampled from a model, stored once and used by many runs: tokens, where they came from, and the model's hidden states.

A table is a folder of shards, each one batch as it was sampled. What a row asks (prompt, temperature, seed) follows from the
plan alone, so a killed run goes on behind its last shard, and a longer table begins with a shorter one. The final hidden
states behind the answer's tokens take about 1 KB a token and give the model's distribution exactly, as head(hidden): epochs
need no forward of the target.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.records.files import write_atomically
from distill.text.sampler import Answer, Ask
from distill.text.workers import ALONE, Workers

PLAN = "plan.json"
TEXT, HIDDEN = "text-{:05d}.safetensors", "hidden-{:05d}.safetensors"
Sampler = Callable[[Sequence[Ask]], Sequence[Answer]]

WINDOW_BATCHES = 16  # batches whose prompts are sorted by length together, so that a batch pads little


@dataclass(frozen=True, slots=True)
class TextPlan:
    """What the rows of a table ask. Two tables of one plan hold the same text."""

    model: str  # hash of the model that speaks
    prompts: str  # hash of the prompts' token ids, in order
    temperatures: tuple[tuple[float, float], ...]  # (KD data T, weight): each row draws its T from these
    max_new_tokens: int
    end_token_ids: tuple[int, ...]
    batch_rows: int
    seed: int
    through: str = ""  # the backend that sampled; empty: we did

    def __post_init__(self) -> None:
        if not self.temperatures or not all(t >= 0 and weight > 0 for t, weight in self.temperatures):
            raise ValueError(f"expected temperatures >= 0 with weights > 0, got {self.temperatures}")
        if self.max_new_tokens < 1 or self.batch_rows < 1:
            raise ValueError(
                f"expected max_new_tokens and batch_rows >= 1, got {self.max_new_tokens}, {self.batch_rows}"
            )

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


def prompts_hash(prompts: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([list(ids) for ids in prompts]).encode()).hexdigest()


def batches(plan: TextPlan, prompts: Sequence[tuple[int, ...]]) -> Iterator[list[Ask]]:
    """Endless batches of asks: passes over the shuffled prompts, each row with a temperature and a seed of its own."""
    rng = random.Random(plan.seed)
    values, weights = zip(*plan.temperatures, strict=True)
    queue: list[tuple[int, ...]] = []
    while True:
        window: list[Ask] = []
        while len(window) < WINDOW_BATCHES * plan.batch_rows:
            if not queue:
                queue = rng.sample(list(prompts), len(prompts))
            window.append(Ask(queue.pop(), rng.choices(values, weights)[0], rng.getrandbits(62)))
        window.sort(key=lambda ask: len(ask.prompt_ids))
        cut = [window[at : at + plan.batch_rows] for at in range(0, len(window), plan.batch_rows)]
        yield from rng.sample(cut, len(cut))


def extend(
    folder: Path,
    plan: TextPlan,
    prompts: Sequence[tuple[int, ...]],
    sample: Sampler,
    *,
    num_tokens: int,
    on_progress: Callable[[TextTable], None] = lambda table: None,
    workers: Workers = ALONE,
) -> TextTable:
    """The plan's first shards that hold `num_tokens` answer tokens, read from `folder` or sampled into it.

    Args:    on_progress: told what is there before each shard that has to be sampled, and at the end
    Raises:  ValueError: the folder holds a table of another plan
    """
    if plan.prompts != prompts_hash(prompts):
        raise ValueError("expected the prompts that the plan names by their hash, got others")
    claim(folder, plan)
    table = TextTable(folder, ())
    asked = enumerate(batches(plan, prompts))
    while table.num_tokens < num_tokens:
        index, asks = next(asked)
        if not is_there(folder, index):
            on_progress(table)
        table = TextTable(folder, (*table.shards, sampled_shard(folder, index, asks, sample, workers=workers)))
    on_progress(table)
    return table


def claim(folder: Path, plan: TextPlan) -> None:
    """Say whose text the folder holds.

    Raises:  ValueError: it holds that of another plan
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(plan), indent=1)
    path = folder / PLAN
    if not path.exists():
        write_atomically(path, text.encode())
    elif path.read_text() != text:
        raise ValueError(f"{folder} holds text of another plan; expected\n{text}\ngot\n{path.read_text()}")


def sampled_shard(folder: Path, index: int, asks: Sequence[Ask], sample: Sampler, *, workers: Workers = ALONE) -> Shard:
    """The shard of this number, sampled unless it is there."""
    if not workers.as_main_says(is_there(folder, index)):
        started = time.perf_counter()
        answers = workers.spread(sample, asks)
        if workers.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            write_shard(folder, index, asks, answers, seconds=time.perf_counter() - started)
        workers.wait()
    return Shard(folder, index)


def is_there(folder: Path, index: int) -> bool:
    return (folder / TEXT.format(index)).is_file()


def write_shard(folder: Path, index: int, asks: Sequence[Ask], answers: Sequence[Answer], *, seconds: float) -> None:
    """Store what was answered, and the hidden states that came with it."""
    hashes = [hashlib.sha256(np.array(ask.prompt_ids, dtype=np.int32).tobytes()).digest() for ask in asks]
    hidden = [answer.hidden_AD for answer in answers if answer.hidden_AD is not None]
    if hidden:
        write_hidden(folder, index, torch.cat(hidden))
    columns = {
        "prompt_ids": torch.tensor([token for ask in asks for token in ask.prompt_ids], dtype=torch.int32),
        "prompt_lengths": torch.tensor([len(ask.prompt_ids) for ask in asks]),
        "prompt_sha256": torch.tensor([list(digest) for digest in hashes], dtype=torch.uint8),
        "temperatures": torch.tensor([ask.temperature for ask in asks], dtype=torch.float64),
        "seeds": torch.tensor([ask.seed for ask in asks]),
        "answer_ids": torch.cat([answer.token_ids_A for answer in answers]).int(),
        "answer_lengths": torch.tensor([len(answer.token_ids_A) for answer in answers]),
        "seconds": torch.tensor(seconds, dtype=torch.float64),
    }
    _save(folder / TEXT.format(index), columns)  # last: with it the shard exists


def write_hidden(folder: Path, index: int, hidden_ND: Tensor) -> None:
    """Store the hidden states of one shard, row after row."""
    _save(folder / HIDDEN.format(index), {"hidden": hidden_ND})


def _save(path: Path, columns: dict[str, Tensor]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(columns, scratch)
    os.replace(scratch, path)


class Shard:
    """One batch of rows. Tokens are in memory; hidden states are read when asked for."""

    def __init__(self, folder: Path, index: int) -> None:
        self.folder, self.index = folder, index
        columns = load_file(folder / TEXT.format(index))
        self.prompts = columns["prompt_ids"].long().split(columns["prompt_lengths"].tolist())
        self.answers = columns["answer_ids"].long().split(columns["answer_lengths"].tolist())
        self.starts = (columns["answer_lengths"].cumsum(0) - columns["answer_lengths"]).tolist()
        self.temperatures: list[float] = columns["temperatures"].tolist()
        self.seconds = float(columns["seconds"])  # that sampling took
        self.num_tokens = sum(map(len, self.answers))

    @property
    def rows(self) -> tuple[TextRow, ...]:
        return tuple(TextRow(self, index) for index in range(len(self.answers)))

    @property
    def has_hidden(self) -> bool:
        return (self.folder / HIDDEN.format(self.index)).is_file()

    @cached_property
    def _hidden(self) -> Any:
        return safe_open(self.folder / HIDDEN.format(self.index), framework="pt").get_slice("hidden")

    def hidden_AD(self, row: int) -> Tensor:
        """Hidden states from which the tokens of one answer were drawn."""
        start = self.starts[row]
        return self._hidden[start : start + len(self.answers[row])]


@dataclass(frozen=True, slots=True)
class TextRow:
    """One text of a table."""

    shard: Shard
    index: int

    @property
    def prompt(self) -> Tensor:
        return self.shard.prompts[self.index]

    @property
    def answer(self) -> Tensor:
        return self.shard.answers[self.index]

    @property
    def temperature(self) -> float:
        return self.shard.temperatures[self.index]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)

    def hidden_AD(self) -> Tensor:
        return self.shard.hidden_AD(self.index)


@dataclass(frozen=True, slots=True)
class TextTable:
    """All finished shards of a folder."""

    folder: Path
    shards: tuple[Shard, ...]

    @property
    def num_tokens(self) -> int:
        """Answer tokens."""
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def rows(self) -> tuple[TextRow, ...]:
        return tuple(row for shard in self.shards for row in shard.rows)

    @property
    def seconds(self) -> float:
        """What sampling it took."""
        return sum(shard.seconds for shard in self.shards)


def frequent_tokens(tables: Sequence[TextTable]) -> list[int]:
    """Ids of the tokens of the answers, the most frequent first; of equally frequent ones the lowest."""
    counts = Counter(
        token for table in tables for shard in table.shards for row in shard.answers for token in row.tolist()
    )
    return sorted(counts, key=lambda token: (-counts[token], token))


def open_table(folder: Path) -> TextTable:
    """The table in a folder; shards are numbered without a gap."""
    shards: list[Shard] = []
    while is_there(folder, len(shards)):
        shards.append(Shard(folder, len(shards)))
    return TextTable(folder, tuple(shards))
