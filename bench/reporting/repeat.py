"""The command that measures one cell of a record again.

It names every field of the cell's identity, so that neither presets nor the defaults of a suite matter. A suite that compares
several values gets all of them; then it measures other cells too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from bench.analysis.rows import LOAD_SUITES, Row
from bench.options.arguments import add_options
from bench.options.settings import DEFAULT_PAIR, INFLATED
from bench.prompts.sets import parted
from bench.records.command_line import shell_text
from bench.records.decoding import Scalar

COMPARED = {"backends": "backend", "kd_grid": "draft"}  # suite that needs several values -> field of its cells


def cell_command(row: Row, rows: Sequence[Row]) -> str:
    """Return the command that measures a cell again; a suite that compares finds the other values in the rows of its table."""
    # The options of the record's command; those of pytest itself are left out.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_options(parser)
    given = parser.parse_known_args(row.run.command)[0]
    words = ["python", "-m", "pytest", "--benchmark-only", f"suites/test_{row.record.cell.suite}.py"]
    for name, value in (*_models(row, rows, given), *_decoding(row, given).items()):
        if value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", _text(value)]
    return shell_text(words)


def _models(row: Row, rows: Sequence[Row], given: argparse.Namespace) -> Iterator[tuple[str, Scalar]]:
    cell = row.record.cell
    for name in _values("backend", row, rows):
        yield "backend", _backend(name, given.backend or (name,))
    for option in given.backend_option or ():
        yield "backend-option", option
    yield "pairs-file", None if given.pairs_file is None else str(given.pairs_file)
    pair = cell.pair.removesuffix(f"{INFLATED}{cell.inflation}")
    yield "target", given.target
    yield "pair", None if given.target is not None or pair == DEFAULT_PAIR else pair
    yield "inflate", cell.inflation or ("none" if cell.suite == "virtual_scale" else None)
    if given.draft or len({record.cell.draft for record in row.run.cells}) > 1:
        for name in _values("draft", row, rows):
            yield "draft", found_at(name, given.draft)
    yield "dtype", None if given.dtype is None else cell.dtype
    yield "device", None if cell.device == "cpu" else cell.device


def _decoding(row: Row, given: argparse.Namespace) -> dict[str, Scalar]:
    """Return the options of decoding and of its amount; None where the default is right."""
    cell, prompt_format, cells = row.record.cell, row.run.prompt_format, [record.cell for record in row.run.cells]
    temperatures = {cell.temperature}
    if cell.schedule:  # the suite makes its schedules of the hottest and the coldest temperature
        temperatures = {temperature for each in cells for _, temperature in each.schedule}
    swept = not cell.schedule and any(each.draft_temperature != each.temperature for each in cells)
    return {
        "temperatures": ",".join(map(_text, sorted(temperatures))),
        "draft-temperature": cell.draft_temperature if swept else None,
        "num-draft-tokens": cell.num_draft_tokens,
        "rule": cell.rule,
        "top-k": cell.top_k or None,
        "top-p": cell.top_p if cell.top_p < 1 else None,
        "concurrency": cell.concurrency if cell.suite in LOAD_SUITES else None,
        "prompts": found_at(cell.prompt_set, given.prompts),
        "num-prompts": cell.num_prompts,
        "repeats": cell.repeats,
        "max-new-tokens": cell.max_new_tokens,
        "ignore-end-token": True if cell.end_token == "ignored" else None,
        "max-prompt-tokens": prompt_format.get("max_prompt_tokens"),
        "system-prompt": prompt_format.get("system_prompt"),
        "chat-template": None if given.chat_template == "default" else given.chat_template,
        "instrument-every": given.instrument_every,
        "seed": cell.seed or None,
    }


def _values(field: str, row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the cell's value of a field, and also the others of the table if its suite compares them."""
    cell = row.record.cell
    if COMPARED.get(cell.suite) != field:
        return (getattr(cell, field),)
    return tuple(dict.fromkeys(getattr(each, field) for each in (cell, *(other.record.cell for other in rows))))


def _backend(name: str, given: Sequence[str]) -> str:
    """Return how the command named a backend: one that is not installed by its place, which is package.module:factory."""
    return name if name in given else next((place for place in given if ":" in place), name)


def found_at(recorded: str, given: Sequence[str] | None) -> str:
    """Return where the command found what a record calls by a name. Records hold no folders of the machine."""
    names = {recorded, parted(recorded)[0]}
    found = [place for place in given or () if place == recorded or names & set(PurePath(place).parts)]
    return found[0] if len(found) == 1 else recorded


def _text(value: Scalar) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)  # 15 digits give back any decimal that was typed
