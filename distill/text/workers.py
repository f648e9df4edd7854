"""The processes of one run, started by `accelerate launch` or `torchrun`. A run without either is one process.

All processes follow the same run over the same stream. The slow work is divided: the rows that are sampled, and the batches of
a step, whose gradients are summed. The main process writes the files, in a folder that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from bench.errors import BackendUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among the others."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def spread(self, work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
        """Return `work(items)`. Each process does its share, and all of them get the whole result, in order."""
        if self.count == 1:
            return list(work(items))
        own = items[self.index :: self.count]
        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, list(work(own)) if own else [])
        return [parts[place % self.count][place // self.count] for place in range(len(items))]

    def total(self, values_N: Tensor) -> Tensor:
        """Return the sum over the processes, with the same bits in each."""
        if self.count > 1:
            distributed.all_reduce(values_N)  # sums in place
        return values_N

    def decided_by_main(self, value: bool) -> bool:
        """Return the main process's value. When runs share a folder, each process may have looked at another moment."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values)  # replaces the values of all but rank 0
        return values[0]

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.count > 1:
            distributed.barrier()


ALONE = Workers()


@contextmanager
def launched(device: str) -> Iterator[tuple[Workers, str]]:
    """Yield this process's place among those that a launcher started, and its device: of `cuda` the GPU with its number.

    Raises:  ValueError: there is no GPU; BackendUnavailable: accelerate is missing
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was requested, torch finds no GPU; try --device cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise BackendUnavailable("several processes need accelerate; pip install -e '.[distill]'") from error
    state: Any = PartialState(cpu=device == "cpu")
    try:
        own = f"{device}:{state.local_process_index}" if device == "cuda" else device
        yield Workers(state.process_index, state.num_processes), own
    finally:
        state.destroy_process_group()
