"""TODO: purpose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.records.environment import machine_slug
from bench.records.files import write_atomically

NUM_DRAFT_TOKENS = 3  # k of the decoder's alpha and block efficiency
START = "start"  # the name of the draft that all others start from, which is measured too
IN_SECONDS_OF = "="  # offline=online: offline on as many tokens as the seconds of online are worth
RECORD, DRAFTS = "matrix.jsonl", "drafts"


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """One draft at one decode temperature on one domain: sums over each prompt's text, at the k of `held_out`."""

    domain: str
    temperature: float
    tokens: tuple[int, ...]
    overlap: tuple[float, ...]  # of all tokens; / tokens: alpha_text
    tested: tuple[float, ...]
    accepted: tuple[float, ...]  # / tested: alpha
    emitted: tuple[int, ...]
    rounds: tuple[float, ...]  # emitted / rounds: block efficiency
    # Of the start: overlap along the domain's text of the first T, decoded at this one; over its tokens: the softmax's share.
    rescaled: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class MeasuredDraft:
    """A line of the record."""

    draft: str
    arm: str
    kd_temperature: float | None  # none: a mixture, or the start
    on_policy: float
    seed: int | None
    tokens: dict[str, int]
    seconds: dict[str, float]
    cells: tuple[MatrixCell, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A record: what was asked for, in plain data, and the drafts measured so far."""

    plan: dict[str, Any]
    measured: tuple[MeasuredDraft, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        return _domains(self.plan)

    def on(self, domain: str) -> Matrix:
        """What was measured on one domain."""
        only = (tuple(cell for cell in line.cells if cell.domain == domain) for line in self.measured)
        lines = (replace(line, cells=cells) for line, cells in zip(self.measured, only, strict=True))
        return Matrix(self.plan | {"domains": [domain]}, tuple(lines))


def load(path: Path) -> Matrix:
    """A record. A last line that was cut short by a crash is left out, and taken out of the file.

    Raises:  ValueError: no record, or one that is damaged elsewhere
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomically(path, whole)
    try:
        header, *lines = (json.loads(line) for line in whole.splitlines())
        plan = header["plan"]
        only = {"domain": _domains(plan)[0]}  # of records of one domain, whose cells do not name it
        measured = tuple(
            MeasuredDraft(**line | {"cells": tuple(MatrixCell(**only | cell) for cell in line["cells"])})
            for line in lines
        )
        return Matrix(plan, measured)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record of a KD matrix ({error})") from error


def merged(records: Sequence[Path]) -> list[Matrix]:
    """The drafts of records that were made alike, arms, KD temperatures and seeds apart; the newest first.

    Args:    records: oldest first; of a draft that is in several the newest line counts
    """
    waiting = [load(path) for path in records]
    groups = []
    while waiting:
        plan = waiting[-1].plan
        alike = [each for each in waiting if _conditions(each.plan) == _conditions(plan)]
        waiting = [each for each in waiting if _conditions(each.plan) != _conditions(plan)]
        groups.append(Matrix(plan, tuple({line.draft: line for each in alike for line in each.measured}.values())))
    return groups


def _conditions(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What drafts must share to stand in one table."""
    job = {name: value for name, value in plan["job"].items() if name not in ("recipe", "seed", "text_tokens")}
    return {"job": job, "domains": _domains(plan), "decode_temperatures": plan["decode_temperatures"]}


def _domains(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Plans had one `domain` before they had several."""
    return tuple(plan["domains"] if "domains" in plan else [plan["domain"]])


def store(out: Path, results: Path, *, suite: str = "kd_matrix") -> Path:
    """Copy a finished record to where records of this machine are kept.

    Returns: results/<machine>/<suite>/<moment>-<commit>.jsonl
    """
    content = (out / RECORD).read_bytes()
    header = json.loads(content.splitlines()[0])
    moment = datetime.fromisoformat(header["created"]).strftime("%Y%m%dT%H%M%SZ")
    env = header["environment"]
    path = results / machine_slug(env) / suite / f"{moment}-{env.get('harness_commit', 'unknown')}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path
