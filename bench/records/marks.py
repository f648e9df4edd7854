"""Marks: what readers must be told of single published records, which themselves are never edited.

They are in marks.toml of the folder of results: path of the record below that folder -> one sentence.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FILE = "marks.toml"


@dataclass(frozen=True, slots=True)
class Marks:
    """The sentences by the path of their record."""

    sentences: Mapping[str, str] = field(default_factory=dict)

    def of(self, files: Iterable[str]) -> str:
        """Return the sentences of the marked ones of these records; empty if none is marked."""
        return " ".join(dict.fromkeys(self.sentences[file] for file in files if file in self.sentences))


NO_MARKS = Marks()


def load_marks(results: Path) -> Marks:
    """Return the marks of a folder of results. Raise ValueError if one is no sentence, or of a record that is not there."""
    path = results / FILE
    if not path.is_file():
        return NO_MARKS
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for file, sentence in found.items():
        if not isinstance(sentence, str) or not (results / file).is_file():
            raise ValueError(f'{path}: expected "path of a record below {results}" = "a sentence", got {file!r}')
    return Marks(found)
