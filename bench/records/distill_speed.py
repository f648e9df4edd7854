"""What the suite distill_speed stores: JSON lines, a header and then one line for each round of all arms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ArmRun:
    """What one process measured, from behind its first step on; the memory is that of all steps."""

    seconds: float
    filling_s: float  # of these, in the forward of the target that `target_cached` begins with
    num_tokens: int  # answer tokens trained on, every epoch counted
    num_steps: int
    first_loss: float  # of the step before them: mean over its answer tokens
    mean_loss: float  # over that step and the measured ones
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
    _, *lines = (json.loads(line) for line in path.read_text().splitlines())
    return [
        TrainingRound(tuple(line["order"]), {arm: ArmRun(**run) for arm, run in line["runs"].items()}) for line in lines
    ]
