"""A finished table of plain text, and a page of tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

Facts = dict[str, str]  # what a caption states, by its first word
DERIVED = "Derived from raw records by `specheat tables`: do not edit."
MISSING = "–"


@dataclass(frozen=True, slots=True)
class Entry:
    text: str
    bold: bool = False
    note: int | None = None  # number of its footnote


Line = Sequence[str | Entry]


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Its entries are plain text; narrow formats break headers at their line breaks."""

    title: str
    headers: tuple[str, ...]
    body: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]  # footnote 1 first
    facts: Facts
    records: Facts  # file -> what distinguishes its run
    figures: tuple[str, ...] = ()  # names of the figures of its page that are shown with it


def with_mark(table: Table, sentence: str) -> Table:
    """Return the table with what its caption must say of a record that it uses; unchanged if that is empty."""
    return replace(table, facts={"beware": sentence} | table.facts) if sentence else table


class Notes(dict[str, int]):
    """The footnotes of a table while it is made: text -> number. A text that occurs again keeps its number."""

    def number(self, text: str) -> int | None:
        """Return the number of a footnote; None for an empty text. Error messages lose their line breaks."""
        words = " ".join(text.split())
        return self.setdefault(words, len(self) + 1) if words else None


def table_of(
    title: str,
    headers: Sequence[str],
    lines: Iterable[Line],
    facts: Facts,
    notes: Iterable[str] = (),
    records: Facts | None = None,
) -> Table:
    """Return a table; a text stands for a plain entry."""
    body = (tuple(cell if isinstance(cell, Entry) else Entry(cell) for cell in line) for line in lines)
    return Table(title, tuple(headers), tuple(body), tuple(notes), facts, records or {})


@dataclass(frozen=True, slots=True)
class Page:
    """What is shown of one suite on one machine."""

    tables: tuple[Table, ...]
    figures: dict[str, bytes]  # SVG, by what the figure shows
