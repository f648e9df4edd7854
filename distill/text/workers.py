"""The processes of one run, started by `accelerate launch` or `torchrun`; a run without either is alone.

All of them walk through the same run over the same stream. What takes time is divided: texts that are sampled, and the batches
of a step, whose gradients are added up. The main one writes the files, in a folder that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.errors import BackendUnavailable

Asked = TypeVar("Asked")
Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among the others."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def spread(self, work: Callable[[Sequence[Asked]], Sequence[Given]], asked: Sequence[Asked]) -> list[Given]:
        """`work(asked)`, each process doing its share; all of them get all of it, in order."""
        if self.count == 1:
            return list(work(asked))
        from accelerate.utils import gather_object

        own = asked[self.index :: self.count]
        parts = gather_object([list(work(own)) if own else []])
        return [parts[place % self.count][place // self.count] for place in range(len(asked))]

    def total(self, values_N: Tensor) -> Tensor:
        """Sum over the processes, the same bits in each."""
        if self.count == 1:
            return values_N
        from accelerate.utils import reduce

        summed: Tensor = reduce(values_N, reduction="sum")
        return summed

    def as_main_says(self, value: bool) -> bool:
        """The main process's value. Where two runs share a folder, each process could have looked at another moment."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return bool(broadcast_object_list([value])[0])

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Workers()


@contextmanager
def launched(device: str) -> Iterator[tuple[Workers, str]]:
    """This process among those that a launcher started, and its own device: of `cuda`, the one with its number.

    Raises:  ValueError: there is no GPU; BackendUnavailable: accelerate is missing
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, torch finds no GPU; try --device cpu")
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
