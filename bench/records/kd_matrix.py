"""The record of a KD matrix: drafts trained at KD temperatures, each measured at several decode temperatures.

A record is JSON lines: a header with the plan and the pair, then one line for every draft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from bench.records.files import pair_name, record_path
from bench.records.storage import LineFile, read_lines, storage_errors, whole_lines, write_atomically

NUM_DRAFT_TOKENS = 3  # k of the decoder's alpha and block efficiency
OTHER_K = (1, 5)  # the block efficiency is stored for these too
START = "start"  # name of the draft that all others start from; it is measured too
TUNING = "tuning"  # arm of drafts that only choose a learning rate; they are measured on the tuning prompts
IN_SECONDS_OF = "="  # offline=online: offline on as many tokens as the seconds of online are worth
RECORD, DRAFTS = "matrix.jsonl", "drafts"


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """One draft at one decode T and draft T on one domain: one sum per prompt, at k = NUM_DRAFT_TOKENS."""

    domain: str
    temperature: float
    tokens: tuple[int, ...]
    overlap: tuple[float, ...]  # over all tokens; / tokens: alpha_text
    tested: tuple[float, ...]
    accepted: tuple[float, ...]  # / tested: alpha
    emitted: tuple[int, ...]
    rounds: tuple[float, ...]  # emitted / rounds: block efficiency
    # Only of the start: overlap along the text of the first decode T, but decoded at this one. It shows the softmax's share.
    rescaled: tuple[float, ...] = ()
    draft_temperature: float | None = None  # None: the decode T
    tuned: bool = False  # whether this draft T was the best one on the tuning prompts
    other_rounds: dict[int, tuple[float, ...]] = field(default_factory=dict)  # by k of OTHER_K

    def rounds_at(self, num_draft_tokens: int) -> tuple[float, ...]:
        """Return the rounds of each prompt at this k; none if they were not stored."""
        return self.rounds if num_draft_tokens == NUM_DRAFT_TOKENS else self.other_rounds.get(num_draft_tokens, ())


@dataclass(frozen=True, slots=True)
class MeasuredDraft:
    """A line of the record."""

    draft: str
    arm: str
    kd_temperature: float | None  # None: a mixture, or the start
    on_policy: float
    seed: int | None
    tokens: dict[str, int]
    seconds: dict[str, float]
    cells: tuple[MatrixCell, ...]
    distinct_prompts: int | None = None  # that its text answers; None: of older records, and of the start
    learning_rate: float | None = None  # likewise


@dataclass(frozen=True, slots=True)
class Matrix:
    """A record: its plan as plain data, and the drafts measured so far."""

    plan: dict[str, Any]
    measured: tuple[MeasuredDraft, ...]
    pair: str = ""  # its name
    records: tuple[Path, ...] = ()  # files that hold these drafts
    start_recipe: str = ""  # of the draft that all others start from; empty: unknown

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.plan["domains"])

    def on(self, domain: str) -> Matrix:
        """Return what was measured on one domain with draft T = decode T."""
        return self._part(domain, varied=False)

    def varied(self, domain: str) -> Matrix:
        """Return what was measured on one domain with draft T 1 and with the tuned draft T."""
        return self._part(domain, varied=True)

    def _part(self, domain: str, *, varied: bool) -> Matrix:
        def is_part(cell: MatrixCell) -> bool:
            return cell.domain == domain and (cell.draft_temperature is not None) == varied

        trained = (line for line in self.measured if line.arm != TUNING)
        lines = (replace(line, cells=tuple(filter(is_part, line.cells))) for line in trained)
        return replace(self, plan=self.plan | {"domains": [domain]}, measured=tuple(lines))


def load(path: Path) -> Matrix:
    """Read a record without a last line that a crash cut short. Raise ValueError if it is damaged elsewhere."""
    lines = read_lines(path)
    try:
        header = msgspec.json.decode(lines[0])
        plan = header["plan"]
        if "domain" in plan:  # of older plans, which had one
            plan["domains"] = [plan.pop("domain")]
        only = {"domain": plan["domains"][0]}  # for records of one domain, whose cells do not name it
        stored = map(msgspec.json.decode, lines[1:])
        drafts = (line | {"cells": [only | cell for cell in line["cells"]]} for line in stored)
        measured = tuple(msgspec.convert(draft, MeasuredDraft, str_keys=True) for draft in drafts)
        return Matrix(plan, measured, pair_name(header), (path,), header.get("start_card", {}).get("recipe", ""))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not a record of a KD matrix ({error})") from error


def start(path: Path, header: Mapping[str, Any]) -> None:
    """Create a record without drafts; the header holds the plan, the pair, the command and the environment."""
    LineFile.create(path, msgspec.json.encode(header)).close()


@contextmanager
def adding(path: Path) -> Iterator[Callable[[MeasuredDraft], None]]:
    """Yield a function that adds a draft to a record. The draft is on the disk when the function returns.

    Raises:  StorageError: another process adds drafts to this record
    """
    with storage_errors(f"cannot add to {path}", "its drafts are kept"), closing(LineFile.reopen(path)) as file:
        yield lambda draft: file.append(msgspec.json.encode(draft))


def merged(records: Sequence[Path]) -> list[Matrix]:
    """Join records (oldest first) whose drafts can stand in one table: a matrix for each set of conditions, newest first."""
    waiting = [load(path) for path in records]
    groups = []
    while waiting:
        newest, wanted = waiting[-1], _conditions(waiting[-1].plan)
        alike = [each for each in waiting if _conditions(each.plan) == wanted]
        waiting = [each for each in waiting if _conditions(each.plan) != wanted]
        drafts = {line.draft: line for each in alike for line in each.measured}  # the newest line of a draft comes last
        used = [each for each in alike if any(drafts[line.draft] is line for line in each.measured if line.draft != START)]
        files = tuple(path for each in used or alike for path in each.records)
        groups.append(replace(newest, measured=tuple(drafts.values()), records=files))
    return groups


def _conditions(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what drafts must share to stand in one table."""
    job = {name: value for name, value in plan["job"].items() if name not in ("recipe", "seed", "text_tokens")}
    return {"job": job, "domains": plan["domains"], "decode_temperatures": plan["decode_temperatures"]}


def store(out: Path, results: Path, *, suite: str = "kd_matrix") -> Path:
    """Copy the finished record in `out` to the results, unless it is there, and return its path there."""
    content = (out / RECORD).read_bytes()
    header = msgspec.json.decode(whole_lines(content)[0])
    path = record_path(results, suite, header["environment"], header["created"], ending=".jsonl")
    if not path.exists():
        write_atomically(path, content)
    elif path.read_bytes() != content:
        raise ValueError(f"{path} is already there with other content than {out / RECORD}; choose another --results")
    return path
