"""The command that measures one cell of a record again.

Everything the cell's identity holds is said, so that neither presets nor a suite's own defaults matter. Where a suite says
nothing of one value alone, it gets all that it had: then other cells are measured beside this one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from bench.analysis.rows import LOAD_SUITES, Row
from bench.options.arguments import add_options
from bench.options.settings import DEFAULT_PAIR, INFLATED
from bench.prompts.sets import SPLITS
from bench.records.command_line import shell_text
from bench.records.decoding import Scalar
from bench.records.runs import RunRecord

COMPARED = {"backends": "backend", "kd_grid": "draft"}  # suite that needs several values -> field of its cells


def cell_command(row: Row, rows: Sequence[Row]) -> str:
    """What measures a cell again.

    Args:    rows: of the same table, in which a suite that compares finds the others
    """
    cell, run = row.record.cell, row.run
    given = _given(run)
    words = ["python", "-m", "pytest", "--benchmark-only", f"suites/test_{cell.suite}.py"]
    for name, value in (*_models(row, rows, given), *_decoding(row), *_amount(row, given)):
        words += [f"--{name}"] if value is True else [f"--{name}", _text(value)]
    return shell_text(words)


def _given(run: RunRecord) -> argparse.Namespace:
    """Options as the record's command had them; those of pytest itself are left out."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_options(parser)
    return parser.parse_known_args(run.command)[0]


def _models(row: Row, rows: Sequence[Row], given: argparse.Namespace) -> Iterator[tuple[str, Scalar]]:
    cell, run = row.record.cell, row.run
    for name in _values("backend", row, rows):
        yield "backend", _backend(name, given.backend or (name,))
    for option in given.backend_option or ():
        yield "backend-option", option
    if given.pairs_file is not None:
        yield "pairs-file", str(given.pairs_file)
    pair = cell.pair.removesuffix(f"{INFLATED}{cell.inflation}")
    if given.target is not None:
        yield "target", given.target
    elif pair != DEFAULT_PAIR:
        yield "pair", pair
    if cell.inflation or cell.suite == "virtual_scale":
        yield "inflate", cell.inflation or "none"
    drafts = {record.cell.draft for record in run.cells}
    if given.draft or len(drafts) > 1:
        for name in _values("draft", row, rows):
            yield "draft", _place(name, given.draft)
    if given.dtype is not None:
        yield "dtype", cell.dtype
    if cell.device != "cpu":
        yield "device", cell.device


def _decoding(row: Row) -> Iterator[tuple[str, Scalar]]:
    cell = row.record.cell
    temperatures = {cell.temperature}
    if cell.schedule:  # the suite makes its schedules of the hottest and the coldest
        temperatures = {t for record in row.run.cells for _, t in record.cell.schedule}
    yield "temperatures", ",".join(map(_text, sorted(temperatures)))
    if not cell.schedule and any(one.cell.draft_temperature != one.cell.temperature for one in row.run.cells):
        yield "draft-temperature", cell.draft_temperature
    yield "num-draft-tokens", cell.num_draft_tokens
    yield "rule", cell.rule
    if cell.top_k:
        yield "top-k", cell.top_k
    if cell.top_p < 1:
        yield "top-p", cell.top_p
    if cell.suite in LOAD_SUITES:
        yield "concurrency", cell.concurrency


def _amount(row: Row, given: argparse.Namespace) -> Iterator[tuple[str, Scalar]]:
    cell, prompt_format = row.record.cell, row.run.prompt_format
    yield "prompts", _place(cell.prompt_set, given.prompts)
    yield "num-prompts", cell.num_prompts
    yield "repeats", cell.repeats
    yield "max-new-tokens", cell.max_new_tokens
    if cell.end_token == "ignored":
        yield "ignore-end-token", True
    for name in ("max_prompt_tokens", "system_prompt"):
        if prompt_format.get(name) is not None:
            yield name.replace("_", "-"), prompt_format[name]
    if given.chat_template not in (None, "default"):
        yield "chat-template", given.chat_template
    if given.instrument_every is not None:
        yield "instrument-every", given.instrument_every
    if cell.seed:
        yield "seed", cell.seed


def _values(field: str, row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """The cell's own value; of a field that its suite compares also the others of the table, in the order of the rows."""
    cell = row.record.cell
    if COMPARED.get(cell.suite) != field:
        return (getattr(cell, field),)
    return tuple(dict.fromkeys(getattr(each, field) for each in (cell, *(other.record.cell for other in rows))))


def _backend(name: str, given: Sequence[str]) -> str:
    """One that is not installed was given by its place, package.module:factory, and calls itself otherwise."""
    return name if name in given else next((place for place in given if ":" in place), name)


def _place(recorded: str, given: Sequence[str] | None) -> str:
    """Where the command found what a record calls by a name: records hold no folders of the machine."""
    base, _, split = recorded.rpartition(":")
    names = {recorded, base} if split in SPLITS else {recorded}
    found = [place for place in given or () if place == recorded or names & set(PurePath(place).parts)]
    return found[0] if len(found) == 1 else recorded


def _text(value: Scalar) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)
