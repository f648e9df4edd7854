"""A finished table as plain text, and a page of tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Facts = dict[str, str]  # what a caption says, by its first word
DERIVED = "Derived from raw records by `specheat tables`: do not edit."
MISSING = "–"


@dataclass(frozen=True, slots=True)
class Entry:
    text: str
    bold: bool = False
    note: int | None = None  # number of its footnote


@dataclass(frozen=True, slots=True)
class Table:
    """Plain text; line breaks in headers are where narrow formats break them."""

    title: str
    headers: tuple[str, ...]
    body: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]  # footnote 1 first
    facts: Facts
    records: Facts  # file -> what distinguishes its run
    figures: tuple[str, ...] = ()  # names of the figures of its page that are shown with it


def table_of(title: str, headers: Sequence[str], lines: Iterable[Sequence[str | Entry]], facts: Facts) -> Table:
    """Return a table without footnotes and records; a text stands for a plain entry."""
    body = (tuple(cell if isinstance(cell, Entry) else Entry(cell) for cell in line) for line in lines)
    return Table(title, tuple(headers), tuple(body), (), facts, {})


@dataclass(frozen=True, slots=True)
class Page:
    """What is shown of one suite on one machine."""

    tables: tuple[Table, ...]
    figures: dict[str, bytes]  # SVG, by what the figure shows
