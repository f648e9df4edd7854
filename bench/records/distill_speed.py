"""What the suite distill_speed stores: JSON lines, a header and then one line for each round of all arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.records.storage import read_lines


@dataclass(frozen=True, slots=True)
class ArmRun:
    """What one process measured from its second step on; the memory is that of all steps."""

    seconds: float
    filling_s: float  # of these, in the target's one forward over the text; 0 for arms other than `target_cached`
    num_tokens: int  # answer tokens trained on, every epoch counted
    num_steps: int
    first_loss: float  # of the first step: mean over its answer tokens
    mean_loss: float  # over all steps
    start_bytes: int  # resident when the models were loaded
    peak_bytes: int  # largest resident size of the process
    num_threads: int


@dataclass(frozen=True, slots=True)
class TrainingRound:
    """Every arm once."""

    order: tuple[str, ...]
    runs: dict[str, ArmRun]


def load_rounds(path: Path) -> Sequence[TrainingRound]:
    """Return the rounds of one record, in the order in which they ran."""
    return [msgspec.json.decode(line, type=TrainingRound) for line in read_lines(path)[1:]]
