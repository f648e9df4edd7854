"""Reading records of schema 1: some of a cell's identity was among its options, and a command was one string."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import msgspec

from bench.options.settings import INFLATED
from bench.records.command_line import stored_words
from bench.records.decoding import parse_schedule
from bench.records.runs import SCHEMA, Cell, RunRecord


@dataclass(frozen=True, slots=True)
class _Record(RunRecord):
    command: str  # type: ignore[assignment]


def decoded(content: bytes | msgspec.Raw) -> RunRecord:
    """Return the record as the newest schema holds it."""
    old = msgspec.json.decode(content, type=_Record)
    values = {field.name: getattr(old, field.name) for field in fields(RunRecord)}
    values["schema"] = SCHEMA
    values["command"] = stored_words(old.command)
    values["model_pair"] = replace(old.model_pair, inflation=_inflation(old.model_pair.name))
    values["cells"] = tuple(replace(record, cell=_typed(record.cell)) for record in old.cells)
    return RunRecord(**values)


def _typed(cell: Cell) -> Cell:
    options = dict(cell.options)
    schedule = options.pop("schedule", None)
    return replace(
        cell,
        concurrency=int(options.pop("concurrency", None) or 1),
        draft_length="adaptive" if options.pop("draft_length", None) == "adaptive" else "constant",
        schedule=() if schedule is None else parse_schedule(str(schedule)),
        inflation=_inflation(cell.pair),
        options=tuple(options.items()),
    )


def _inflation(pair: str) -> str:
    return pair.partition(INFLATED)[2]
