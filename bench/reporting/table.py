"""TODO: purpose."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Page:
    """What another package makes of its own records: markdown without a title, and images."""

    markdown: str
    images: dict[str, dict[str, bytes]]  # by what is added to the name of the suite, then by file format
