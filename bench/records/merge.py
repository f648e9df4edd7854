"""Several records of JSON lines joined into one, openly: the result keeps where each of its lines comes from.

Its header lists the sources: file, command, moment and environment of each record. Every line has the index of its source.
KD matrices may differ in their arms and seeds, records of token lengths in their temperatures, and in nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import IncomparableResults
from bench.records import token_length
from bench.records.command_line import own_words
from bench.records.environment import MACHINE_KEYS, check_comparable
from bench.records.files import UNFINISHED, line_header, pair_name
from bench.records.kd_matrix import START
from bench.records.storage import read_lines

SOURCES, SOURCE = "sources", "source"  # of the header, and of a line: the index of its source
OF_RUNS = ("file", "command", "created", "environment")  # what a source states
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """What is particular to one form of record."""

    lists: tuple[str, ...]  # names in the plan (of the header, if it has none) that say which lines there are
    name: Callable[[Json], str]  # of a line: what no two lines may share


MATRIX = Form(("arms", "seeds"), lambda line: str(line["draft"]))
LENGTHS = Form(("temperatures",), lambda line: f"prompt {line['prompt_index']} at T = {line['temperature']:g}")


@dataclass(frozen=True, slots=True)
class Input:
    """A record that is merged; one that is itself merged has several sources."""

    path: Path
    header: Json
    lines: tuple[Json, ...]

    @property
    def plan(self) -> Json:
        found: Json = self.header.get("plan", self.header)
        return found

    @property
    def form(self) -> Form:
        if "plan" in self.header:
            return MATRIX
        if self.header.get("suite") == token_length.SUITE:
            return LENGTHS
        raise ValueError(f"expected records of KD matrices or of {token_length.SUITE}, got {self.path}")

    @property
    def sources(self) -> list[Json]:
        own = {"file": self.path.name, **{name: self.header[name] for name in OF_RUNS if name != "file"}}
        return list(self.header.get(SOURCES, [own]))


def merged(paths: Sequence[Path]) -> bytes:
    """Return the content of the merged record. The inputs are only read.

    Raises:  IncomparableResults: other machines, models or plans, with the keys that differ
             ValueError: fewer than two records, one that cannot be merged, or a line that two records have
    """
    if len(paths) < 2:
        raise ValueError(f"expected at least two records, got {len(paths)}")
    inputs = [_read(path) for path in paths]
    first, *others = inputs
    for other in others:
        _check_alike(first, other)
    sources = [source for each in inputs for source in each.sources]
    header = {
        **first.header,
        **_joined_plan(inputs),
        "model_pair": first.header.get("model_pair", pair_name(first.header)),
        "command": own_words(),
        "created": max(source["created"] for source in sources),
        "environment": _common([source["environment"] for source in sources]),
        SOURCES: sources,
    }
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in (header, *_lines(inputs)))


def _read(path: Path) -> Input:
    if path.name.endswith(UNFINISHED):
        raise ValueError(f"{path} is unfinished: end the run with --resume")
    header = line_header(path, "environment", "created")
    return Input(path, header, tuple(json.loads(line) for line in read_lines(path)[1:]))


def _check_alike(first: Input, other: Input) -> None:
    one, another = (dict(_identity(each)) for each in (first, other))
    differing = [
        f"{name} ({one.get(name, 'absent')} against {another.get(name, 'absent')})"
        for name in (one | another)
        if one.get(name, "absent") != another.get(name, "absent")
    ]
    if differing:
        free = " and ".join(first.form.lists)
        raise IncomparableResults(
            f"expected records that differ in {free} at most; {other.path.name} differs from {first.path.name} in "
            f"{', '.join(differing)}"
        )
    for source in (*first.sources, *other.sources):
        check_comparable(first.sources[0]["environment"], source["environment"], keys=MACHINE_KEYS)


def _identity(record: Input) -> Iterator[tuple[str, Any]]:
    """Yield what the records must share, each value by its dotted name, such as plan.job.seed."""
    free = {"command", "created", "environment", "model_pair", SOURCES, *record.form.lists}
    yield "model_pair", pair_name(record.header)
    yield from _flat({name: value for name, value in record.header.items() if name not in free}, free=record.form.lists)


def _flat(values: Mapping[str, Any], prefix: str = "", *, free: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.", free=free)
        elif not (prefix == "plan." and name in free):
            yield f"{prefix}{name}", value


def _joined_plan(inputs: Sequence[Input]) -> Json:
    """Return the lists of all inputs as one, each value once, in order; with the plan around them if there is one."""
    first = inputs[0]
    lists = {name: list(dict.fromkeys(value for each in inputs for value in each.plan[name])) for name in first.form.lists}
    return {"plan": first.plan | lists} if "plan" in first.header else lists


def _common(environments: Sequence[Json]) -> Json:
    """Return what all environments state alike, and of the commits all of them. One dirty source makes the whole dirty."""
    first = environments[0]
    alike = {name: value for name, value in first.items() if all(each.get(name) == value for each in environments)}
    commits = ", ".join(dict.fromkeys(str(each.get("harness_commit", "unknown")) for each in environments))
    dirty = {name: any(each.get(name) for each in environments) for name in ("harness_dirty", "backends_dirty")}
    return alike | {"harness_commit": commits} | {name: found for name, found in dirty.items() if name in first or found}


def _lines(inputs: Sequence[Input]) -> Iterator[Json]:
    """Yield every line with the index of its source. Raise ValueError if two inputs have a line of one name.

    Every KD matrix has the start. The first is kept; the others must be along the same texts, for effects are paired by prompt.
    """
    seen: dict[str, tuple[Json, Path]] = {}
    offset = 0
    for each in inputs:
        for line in each.lines:
            name = each.form.name(line)
            if name in seen:
                known, path = seen[name]
                if name != START:
                    raise ValueError(f"expected each line once, got {name} in {path.name} and in {each.path.name}")
                if _texts(line) != _texts(known):
                    raise IncomparableResults(f"{each.path.name} was measured along other texts than {path.name}")
                continue
            seen[name] = line, each.path
            yield line | {SOURCE: offset + line.get(SOURCE, 0)}
        offset += len(each.sources)


def _texts(line: Json) -> list[tuple[str, float, list[int]]]:
    """Return the number of tokens of every text along which a draft was measured."""
    return [(cell.get("domain", ""), cell["temperature"], cell["tokens"]) for cell in line["cells"]]
