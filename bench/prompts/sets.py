"""Prompt sets: which prompts a run decodes, identified by a name and a hash.

A source is a built-in name or a file, with an optional split after a colon: "instructions", "instructions:train",
"my_prompts.jsonl", "my_prompts.jsonl:held_out". Without a split, lines marked "train" are left out, so that a draft
distilled on them is never measured on them. A .txt file holds one prompt per line; a line of a .jsonl file is one of

    {"prompt": str}                        one user message
    {"messages": [{"role", "content"}]}    a conversation that the model continues
    {"text": str}                          raw text: no chat template is applied
    {"instruction": str, "input": str}     Alpaca: one user message; the input (may be empty) follows after a blank line
    {"question": str}                      GSM8K: one user message

and may have "id", "split", "answer", "output", which are not sent to the model.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUILT_IN = ("instructions", "word_problems")
SPLITS = ("train", "held_out")

# The key that gives a line its shape -> the other keys of that shape. The first key present decides, because Alpaca
# rows have a "text" too.
_SHAPES = {
    "messages": (),
    "prompt": (),
    "instruction": ("input", "text"),
    "question": (),
    "text": (),
}
_IGNORED = ("id", "split", "answer", "output")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Chat messages for the target's template, or raw text."""

    index: int  # line in the source, from 0
    messages: tuple[Message, ...]  # empty: raw text
    text: str | None  # None: messages


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of a run, in the order in which they are decoded."""

    name: str
    prompts: tuple[Prompt, ...]

    @property
    def sha256(self) -> str:
        """Return the hash of the prompts and their order. Names, line numbers and ignored keys do not change it."""
        content = [
            prompt.text if prompt.text is not None else [[message.role, message.content] for message in prompt.messages]
            for prompt in self.prompts
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def load(source: str, *, limit: int | None = None) -> PromptSet:
    """Read a prompt set.

    Args:    source: built-in name or file, with an optional ":train" or ":held_out"
             limit: number of prompts, from the start; None: all
    Raises:  ValueError: what is wrong, and in which line
    """
    location, split = _split_of(source)
    path = Path(__file__).with_name(f"{location}.jsonl") if location in BUILT_IN else Path(location)
    marked = list(_read(path))
    if split is None:
        split = "held_out" if any(mark for _, mark in marked) else None
        prompts = [prompt for prompt, mark in marked if mark != "train"]
    else:
        prompts = [prompt for prompt, mark in marked if mark == split]
    name = location if location in BUILT_IN else path.name
    name = f"{name}:{split}" if split else name
    if not prompts:
        raise ValueError(f"{name}: expected at least one prompt, got none")
    if limit is not None and not 1 <= limit <= len(prompts):
        raise ValueError(f"{name}: expected between 1 and {len(prompts)} prompts, got {limit}")
    return PromptSet(name=name, prompts=tuple(prompts[:limit]))


def _split_of(source: str) -> tuple[str, str | None]:
    """Return the name or file, and the split."""
    location, _, split = source.rpartition(":")
    if split in SPLITS:
        return location, split
    if location in BUILT_IN:
        raise ValueError(f"unknown split {split!r} of {location} (known: {', '.join(SPLITS)})")
    return source, None


def _read(path: Path) -> Iterator[tuple[Prompt, str | None]]:
    """Yield each prompt with its split."""
    if not path.is_file():
        close = difflib.get_close_matches(str(path), BUILT_IN, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no prompt set {str(path)!r}{hint} (built in: {', '.join(BUILT_IN)}; or give a file)")
    if path.suffix not in (".jsonl", ".txt"):
        raise ValueError(f"{path}: expected a .jsonl or .txt file")
    # Only \n ends a line: str.splitlines would also split at characters that may stand inside a prompt.
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the end of the last line
    parse = _parse_json if path.suffix == ".jsonl" else _parse_text
    for index, line in enumerate(lines):
        try:
            yield parse(index, line.decode().removesuffix("\r"))
        except ValueError as error:  # broken JSON and broken UTF-8 among them
            raise ValueError(f"{path}, line {index + 1}: {error}") from error


def _parse_text(index: int, line: str) -> tuple[Prompt, None]:
    return _user_prompt(index, line), None


def _parse_json(index: int, line: str) -> tuple[Prompt, str | None]:
    row = json.loads(line) if line.strip() else None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {line[:40].strip() or 'an empty line'}")
    shape = next((key for key in _SHAPES if key in row), None)
    if shape is None:
        raise ValueError(f"expected one of the keys {', '.join(_SHAPES)}, got {', '.join(row) or 'none'}")
    unknown = row.keys() - {shape, *_SHAPES[shape], *_IGNORED}
    if unknown:
        raise ValueError(f"unknown keys beside {shape!r}: {', '.join(sorted(unknown))}")
    split = row.get("split")
    if split not in (None, *SPLITS):
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    if shape == "messages":
        return Prompt(index=index, messages=_messages(row["messages"]), text=None), split
    if shape == "text":
        return Prompt(index=index, messages=(), text=_checked(row["text"], "text")), split
    content = _checked(row[shape], shape)
    if shape == "instruction" and row.get("input"):
        content += f"\n\n{_checked(row['input'], 'input')}"
    return _user_prompt(index, content), split


def _user_prompt(index: int, content: str) -> Prompt:
    return Prompt(index=index, messages=(Message("user", _checked(content, "prompt")),), text=None)


def _messages(rows: Any) -> tuple[Message, ...]:
    if not isinstance(rows, list) or not rows:
        raise ValueError("expected messages to be a list of at least one")
    for row in rows:
        if not isinstance(row, dict) or row.keys() != {"role", "content"}:
            raise ValueError(f"expected messages of role and content, got {json.dumps(row)[:60]}")
    return tuple(Message(_checked(row["role"], "role"), _checked(row["content"], "content")) for row in rows)


def _checked(value: Any, key: str) -> str:
    """Return the value of a key, which must be a string that is not blank."""
    if not isinstance(value, str):
        raise ValueError(f"expected {key!r} to be a string, got {json.dumps(value)[:40]}")
    if not value.strip():
        raise ValueError(f"empty {key!r}")
    return value
