"""Prompt sets: which prompts a run decodes, identified by a name and a hash.

A source is a built-in name or a file, with an optional part after a colon: a split ("instructions:train",
"my_prompts.jsonl:held_out") or a range of lines ("my_prompts.jsonl:1-100"). Without a part, lines marked "train" are left out,
so that a draft distilled on them is never measured on them. A .txt file holds one prompt per line. A line of a .jsonl file is
one of

    {"prompt": str}                        one user message
    {"messages": [{"role", "content"}]}    a conversation that the model continues
    {"text": str}                          raw text: no chat template is applied
    {"instruction": str, "input": str}     Alpaca: one user message; the input (may be empty) follows after a blank line
    {"question": str}                      GSM8K: one user message

and may have "id", "split", "answer", "output", which are not sent to the model. "answer" and "output" hold the answer of a
person or another model, on which `specheat distill reference` trains.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

BUILT_IN = ("instructions", "word_problems")
SPLITS = ("train", "held_out")
RANGE = re.compile("([0-9]+)-([0-9]+)")  # of lines, both included
SHAPES = ("messages", "prompt", "instruction", "question", "text")  # a line has one of these keys


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: str
    content: str


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line of a .jsonl file."""

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    instruction: str | None = None
    question: str | None = None
    text: str | None = None
    input: str | None = None  # of an instruction
    split: Literal["train", "held_out"] | None = None
    id: Any = None  # this and what follows is not sent to the model
    answer: Any = None
    output: Any = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Chat messages for the target's template, or raw text."""

    index: int  # line in the source, from 0
    messages: tuple[Message, ...]  # empty: raw text
    text: str | None  # None: messages
    answer: str = ""  # in the source; empty: none


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
        # Records hold this hash, so the separators must stay as they are.
        return hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def load(source: str, *, limit: int | None = None) -> PromptSet:
    """Read a prompt set.

    Args:    source: built-in name or file, with an optional ":train", ":held_out" or ":FIRST-LAST", lines from 1
             limit: number of prompts, from the start; None: all
    Raises:  ValueError: what is wrong, and in which line
    """
    location, split = parted(source)
    path = Path(__file__).with_name(f"{location}.jsonl") if location in BUILT_IN else Path(location)
    marked = list(_read(path))
    if lines := RANGE.fullmatch(split):
        first, last = int(lines[1]), int(lines[2])
        if not 1 <= first <= last <= len(marked):
            raise ValueError(f"{source}: expected lines within 1-{len(marked)}, the first one first, got {split}")
        prompts = [prompt for prompt, _ in marked[first - 1 : last]]
    elif split:
        prompts = [prompt for prompt, mark in marked if mark == split]
    else:
        split = "held_out" if any(mark for _, mark in marked) else ""
        prompts = [prompt for prompt, mark in marked if mark != "train"]
    name = location if location in BUILT_IN else path.name
    name = f"{name}:{split}" if split else name
    if not prompts:
        raise ValueError(f"{name}: expected at least one prompt, got none")
    if limit is not None and not 1 <= limit <= len(prompts):
        raise ValueError(f"{name}: expected between 1 and {len(prompts)} prompts, got {limit}")
    return PromptSet(name=name, prompts=tuple(prompts[:limit]))


def parted(source: str) -> tuple[str, str]:
    """Return the place of a source, and its split or range of lines; empty: neither.

    Raises:  ValueError: a built-in set has no such part
    """
    location, _, part = source.rpartition(":")
    if part in SPLITS or (location and RANGE.fullmatch(part)):
        return location, part
    if location in BUILT_IN:
        raise ValueError(f"unknown split {part!r} of {location} (known: {', '.join(SPLITS)}, or lines such as 1-100)")
    return source, ""  # what follows the colon is a part of the file's name


def _read(path: Path) -> Iterator[tuple[Prompt, str | None]]:
    """Yield each prompt with its split."""
    if not path.is_file():
        close = difflib.get_close_matches(str(path), BUILT_IN, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no prompt set {str(path)!r}{hint} (built in: {', '.join(BUILT_IN)}; or give a file)")
    if path.suffix not in (".jsonl", ".txt"):
        raise ValueError(f"{path}: expected a .jsonl or .txt file")
    # Only \n ends a line: str.splitlines would also split at characters that may stand inside a prompt.
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")  # without a byte order mark
    if not lines[-1]:
        lines.pop()  # what follows the end of the last line
    parse = _parse_json if path.suffix == ".jsonl" else _parse_text
    for index, line in enumerate(lines):
        try:
            yield parse(index, line.decode().removesuffix("\r"))
        except ValueError as error:  # broken JSON and broken UTF-8 among them
            raise ValueError(f"{path}, line {index + 1}: {error}") from error


def _parse_text(index: int, line: str) -> tuple[Prompt, None]:
    if not line.strip():
        raise ValueError("empty 'prompt'")
    return Prompt(index, (Message("user", line),), None), None


def _parse_json(index: int, line: str) -> tuple[Prompt, str | None]:
    if not line.strip():
        raise ValueError("expected an object, got an empty line")
    row = msgspec.json.decode(line, type=Line)
    # Alpaca's rows have a "text" too, which repeats the instruction.
    shapes = [name for name in SHAPES if getattr(row, name) is not None and (name != "text" or row.instruction is None)]
    if len(shapes) != 1:
        raise ValueError(f"expected one of the keys {', '.join(SHAPES)}, got {', '.join(shapes) or 'none'}")
    shape, content = shapes[0], getattr(row, shapes[0])
    turns = content if shape == "messages" else (Message("user", content),)
    texts = [text for message in turns for text in (message.role, message.content)]
    if not texts or not all(map(str.strip, texts)):
        raise ValueError(f"empty {shape!r}")
    if row.input and shape != "instruction":
        raise ValueError(f"expected 'input' beside 'instruction', got it beside {shape!r}")
    if row.input and not row.input.strip():
        raise ValueError("empty 'input'")
    answer = next((each for each in (row.answer, row.output) if isinstance(each, str)), "")
    if shape == "text":
        return Prompt(index, (), content, answer), row.split
    if row.input:
        turns = (Message("user", f"{content}\n\n{row.input}"),)
    return Prompt(index, turns, None, answer), row.split
