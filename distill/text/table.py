"""Text sampled from a model, stored once and used by many runs: tokens, their origin, and the model's hidden states.

A table is a folder of shards. A shard is one batch as it was sampled. The plan alone fixes the requests of all rows (prompt,
temperature, seed). So a killed run continues after its last shard, and a longer table begins with a shorter one.
The final hidden states at the answer tokens take about 1 KB per token and give the model's distribution exactly, as
head(hidden). So epochs over the text need no forward of the target.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from bench.records.storage import write_atomically
from distill.text.sampler import Answer, Request, Sampler
from distill.text.workers import ALONE, Workers

TEXT, HIDDEN = "text-{:05d}.safetensors", "hidden-{:05d}.safetensors"
VERSION = 2  # how `batches` chooses requests. 1 sorted prompts by length across batches, so a short table had few lengths

Shares = tuple[tuple[float, float], ...]  # (KD data T, weight)


@dataclass(frozen=True, slots=True)
class TextPlan:
    """What decides the rows of a table. Two tables of one plan hold the same text."""

    model: str  # hash of the model that writes
    prompts: str  # hash of the prompts' token ids, in order
    temperatures: Shares  # the T of each row is drawn from these
    max_new_tokens: int
    end_token_ids: tuple[int, ...]
    batch_rows: int
    seed: int
    through: str = ""  # the backend that samples; empty: our sampler
    version: int = VERSION

    def __post_init__(self) -> None:
        if not self.temperatures or not all(t >= 0 and weight > 0 for t, weight in self.temperatures):
            raise ValueError(f"expected temperatures >= 0 with weights > 0, got {self.temperatures}")
        for name in ("max_new_tokens", "batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")

    @property
    def folder_name(self) -> str:
        """Return a name that depends on everything that decides the text."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def prompts_hash(prompts: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()  # JSON has no tuples: lists and tuples hash alike


def batches(plan: TextPlan, prompts: Sequence[tuple[int, ...]]) -> Iterator[list[Request]]:
    """Yield batches of requests without end: passes over the shuffled prompts, with a temperature and a seed for each row.

    No prompt comes twice before every prompt has come once. The order of the draws must not change without a new VERSION: it
    decides the text that a plan stands for.
    """
    rng = random.Random(plan.seed)
    values, weights = zip(*plan.temperatures, strict=True)
    queue: list[tuple[int, ...]] = []
    while True:
        batch: list[Request] = []
        while len(batch) < plan.batch_rows:
            if not queue:  # the next pass over the prompts
                queue = rng.sample(list(prompts), len(prompts))
            batch.append(Request(queue.pop(), rng.choices(values, weights)[0], rng.getrandbits(62)))
        yield batch


def extend(
    folder: Path,
    plan: TextPlan,
    prompts: Sequence[tuple[int, ...]],
    sample: Sampler,
    *,
    num_tokens: int,
    on_progress: Callable[[int], None] = lambda num_tokens: None,
    workers: Workers = ALONE,
) -> TextTable:
    """Return the plan's first shards that hold `num_tokens` answer tokens, read from `folder` or sampled into it.

    Args:    on_progress: called with the number of answer tokens before each shard that has to be sampled, and at the end
    Raises:  ValueError: the folder holds a table of another plan
    """
    if plan.prompts != prompts_hash(prompts):
        raise ValueError("expected the prompts whose hash is in the plan, got others")
    claim(folder, plan)
    table = TextTable(folder, ())
    for index, requests in enumerate(batches(plan, prompts)):
        if table.num_tokens >= num_tokens:
            break
        if not is_there(folder, index):
            on_progress(table.num_tokens)
        table = TextTable(folder, (*table.shards, sampled_shard(folder, index, requests, sample, workers=workers)))
    on_progress(table.num_tokens)
    return table


def claim(folder: Path, plan: TextPlan) -> None:
    """Write the plan into the folder. Raise ValueError if the folder holds text of another plan."""
    text, path = json.dumps(asdict(plan), indent=1), folder / "plan.json"
    if not path.exists():
        write_atomically(path, text)
    elif path.read_text() != text:
        raise ValueError(f"{folder} holds text of another plan; expected\n{text}\ngot\n{path.read_text()}")


def sampled_shard(folder: Path, index: int, requests: Sequence[Request], sample: Sampler, *, workers: Workers = ALONE) -> Shard:
    """Return the shard of this number. If it is not there, all processes sample it and the main one writes it."""
    if not workers.decided_by_main(is_there(folder, index)):
        started = time.perf_counter()
        answers = workers.spread(sample, requests)
        if workers.is_main:
            write_shard(folder, index, requests, answers, seconds=time.perf_counter() - started)
        workers.wait()  # nobody reads the shard before it is written
    return Shard(folder, index)


def is_there(folder: Path, index: int) -> bool:
    return (folder / TEXT.format(index)).is_file()


def write_shard(folder: Path, index: int, requests: Sequence[Request], answers: Sequence[Answer], *, seconds: float) -> None:
    """Store the answers, and the hidden states that came with them."""
    if hidden := [answer.hidden_AD for answer in answers if answer.hidden_AD is not None]:
        write_hidden(folder, index, torch.cat(hidden))
    columns = {
        "prompt_ids": torch.tensor([token for request in requests for token in request.prompt_ids], dtype=torch.int32),
        "prompt_lengths": torch.tensor([len(request.prompt_ids) for request in requests]),
        "temperatures": torch.tensor([request.temperature for request in requests], dtype=torch.float64),
        "seeds": torch.tensor([request.seed for request in requests]),
        "answer_ids": torch.cat([answer.token_ids_A for answer in answers]).int(),
        "answer_lengths": torch.tensor([len(answer.token_ids_A) for answer in answers]),
        "seconds": torch.tensor(seconds, dtype=torch.float64),
    }
    write_atomically(folder / TEXT.format(index), save(columns))  # last, because this file makes the shard exist


def write_hidden(folder: Path, index: int, hidden_ND: Tensor) -> None:
    write_atomically(folder / HIDDEN.format(index), save({"hidden": hidden_ND}))


class Shard:
    """One batch of rows. Tokens are in memory; hidden states are read from the file on request."""

    def __init__(self, folder: Path, index: int) -> None:
        self.folder, self.index = folder, index
        columns = load_file(folder / TEXT.format(index))
        self.prompts = columns["prompt_ids"].long().split(columns["prompt_lengths"].tolist())
        self.answers = columns["answer_ids"].long().split(columns["answer_lengths"].tolist())
        self.starts: list[int] = (columns["answer_lengths"].cumsum(0) - columns["answer_lengths"]).tolist()
        self.temperatures: list[float] = columns["temperatures"].tolist()
        self.seconds = float(columns["seconds"])  # of sampling
        self.num_tokens = sum(map(len, self.answers))

    @property
    def rows(self) -> tuple[TextRow, ...]:
        columns = zip(self.starts, self.prompts, self.answers, self.temperatures, strict=True)
        return tuple(TextRow(self, *values) for values in columns)

    @cached_property
    def hidden_ND(self) -> Any:
        """Open the hidden states of all rows; a slice of it is read from the file."""
        return safe_open(self.folder / HIDDEN.format(self.index), framework="pt").get_slice("hidden")


@dataclass(frozen=True, slots=True)
class TextRow:
    """One prompt and its answer."""

    shard: Shard | None  # None: not stored, so without hidden states
    start: int  # place of its first answer token among those of the shard
    prompt: Tensor = field(compare=False, repr=False)
    answer: Tensor = field(compare=False, repr=False)
    temperature: float

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)

    def hidden_AD(self) -> Tensor:
        """Return the hidden states from which the tokens of the answer were drawn."""
        assert self.shard is not None
        return self.shard.hidden_ND[self.start : self.start + len(self.answer)]


@dataclass(frozen=True, slots=True)
class TextTable:
    """Some shards of a folder."""

    folder: Path
    shards: tuple[Shard, ...]

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)  # of the answers

    @property
    def rows(self) -> tuple[TextRow, ...]:
        return tuple(row for shard in self.shards for row in shard.rows)

    @property
    def seconds(self) -> float:
        return sum(shard.seconds for shard in self.shards)  # of sampling


def first_rows(rows: Sequence[TextRow], num_tokens: int) -> tuple[TextRow, ...]:
    """Return the first rows that hold `num_tokens` answer tokens together, or all."""
    upto = list(accumulate(len(row.answer) for row in rows))
    return tuple(rows[: bisect_left(upto, num_tokens) + 1])


def frequent_tokens(rows: Sequence[TextRow]) -> list[int]:
    """Return the token ids of the answers, the most frequent first. Of equally frequent ones the lowest id comes first."""
    answers = torch.cat([row.answer for row in rows])
    token_ids, counts = answers.unique(return_counts=True)  # in ascending order of the ids
    return token_ids[counts.argsort(descending=True, stable=True)].tolist()


def open_table(folder: Path) -> TextTable:
    """Return all shards of a folder. They are numbered without gaps."""
    shards: list[Shard] = []
    while is_there(folder, len(shards)):
        shards.append(Shard(folder, len(shards)))
    return TextTable(folder, tuple(shards))
