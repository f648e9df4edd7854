"""The record of the suite `token_length`: for every tested draft token, what was emitted in its place and in which context.

A record is JSON lines: a header, then one decoded text per line. Each column of a text has one entry for every draft token
that was tested. The entry describes the emitted token: the draft token where it was accepted, else the recovered one.
Length is in bytes, a leading space included. `bench.reporting.suites.token_length` makes tables of it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from bench.errors import IncomparableResults
from bench.records import files
from bench.records.command_line import stored_words
from bench.records.decoding import BONUS, ModelPair, Replay, Scalar, emitted_positions, num_tested
from bench.records.environment import RESUMABLE_KEYS, check_comparable
from bench.records.storage import LineFile, is_being_written, read_lines, storage_errors

SCHEMA = 2  # of the newest records; those of schema 1 hold their command as one string
SUITE = "token_length"


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a record: what was measured, and where."""

    schema: int
    suite: str
    preset: str
    command: tuple[str, ...]
    created: str  # ISO 8601, UTC
    environment: dict[str, Scalar]
    backend: str
    backend_settings: dict[str, Scalar]
    model_pair: ModelPair
    model_hashes: dict[str, str]
    prompt_set: str
    prompts_hash: str
    prompt_format: dict[str, Scalar]
    num_prompts: int
    num_draft_tokens: int
    rule: str
    temperatures: tuple[float, ...]
    draft_temperature: float | None  # None: the decode T
    top_k: int
    top_p: float
    max_new_tokens: int
    end_token: str  # "natural" or "ignored"
    seed: int


@dataclass(frozen=True, slots=True)
class JudgedText:
    """A further line: one decoded text. Every column has one entry per tested position, in order."""

    prompt_index: int
    temperature: float
    places: tuple[int, ...]  # index in the output, from 0
    slots: tuple[int, ...]  # slot of the round, 1..k
    accepted: tuple[int, ...]  # 0 or 1
    acceptance_probs: tuple[float, ...]  # beta, 0..1
    token_ids: tuple[int, ...]  # of the token emitted there
    num_bytes: tuple[int, ...]
    num_chars: tuple[int, ...]  # characters that begin in the token; 0: it only continues one
    special: tuple[int, ...]  # 1: a special token, which has no length
    entropies: tuple[float, ...]  # nats, of the target at T = 1 for every decode T


@dataclass(frozen=True, slots=True)
class LengthRecord:
    header: Header
    texts: tuple[JudgedText, ...]


def judged_positions(replay: Replay) -> Iterator[tuple[int, int, bool, float]]:
    """Yield place, slot, acceptance and beta of every tested draft token. Raise ValueError if rounds do not fit the text."""
    for round_, probs in zip(replay.rounds, replay.acceptance_probs, strict=True):
        if len(probs) != num_tested(round_):
            raise ValueError(f"expected {num_tested(round_)} acceptance probabilities in a round, got {len(probs)}")
    # Draft tokens after a rejection are not tested, and neither are those after an accepted end token.
    tested = [one for one in emitted_positions(replay.rounds, len(replay.token_ids)) if one.slot != BONUS]
    for position, prob in zip(tested, itertools.chain.from_iterable(replay.acceptance_probs), strict=True):
        yield *position, prob


def judged_text(
    replay: Replay, *, prompt_index: int, temperature: float, spellings: Sequence[bytes | None], entropies: Sequence[float]
) -> JudgedText:
    """Return the line of one text; spellings and entropies are of every token, and a special token has no spelling."""
    tested = list(judged_positions(replay))
    places = tuple(place for place, *_ in tested)
    spelled = [spellings[place] or b"" for place in places]
    return JudgedText(
        prompt_index=prompt_index,
        temperature=temperature,
        places=places,
        slots=tuple(slot for _, slot, *_ in tested),
        accepted=tuple(int(accepted) for _, _, accepted, _ in tested),
        acceptance_probs=tuple(round(min(prob, 1.0), 6) for *_, prob in tested),
        token_ids=tuple(replay.token_ids[place] for place in places),
        num_bytes=tuple(map(len, spelled)),
        # Characters of UTF-8 that begin in a token, so that the tokens of a text sum up to its characters.
        num_chars=tuple(sum(byte & 0xC0 != 0x80 for byte in token) for token in spelled),
        special=tuple(int(spellings[place] is None) for place in places),
        entropies=tuple(round(entropies[place], 5) for place in places),
    )


def measure(path: Path, header: Header, judge: Callable[[float, int], JudgedText], *, on_text: Callable[[int], None]) -> None:
    """Add the missing texts to an unfinished record.

    Args:    judge: makes the line of a decode temperature and a prompt; on_text: receives the number of texts so far
    Raises:  StorageError: the disk takes no more; finished texts are kept
             OSError: another process is writing the record
    """
    with closing(LineFile.reopen(path)) as file:
        done = {(text.temperature, text.prompt_index) for text in _decoded(path, file.lines).texts}
        on_text(len(done))
        for place in itertools.product(header.temperatures, range(header.num_prompts)):
            if place not in done:
                line = msgspec.json.encode(judge(*place))
                with storage_errors(f"cannot write {path}", "finished texts are kept; run again with --resume"):
                    file.append(line)
                done.add(place)
                on_text(len(done))


def start(results: Path, header: Header) -> Path:
    """Create a record without texts, and return its path. Raise OSError if one of this name exists."""
    file = files.start_lines(_record_path(results, header), msgspec.json.encode(header))
    file.close()
    return file.path


def find_resumable(results: Path, header: Header) -> tuple[Path | None, tuple[str, ...]]:
    """Return the newest unfinished record of the same plan and code on this machine, or None, and why newer ones do not fit."""
    passed_over: list[str] = []
    for path in files.unfinished_like(_record_path(results, header)):
        reason = _not_resumable(path, header)
        if reason is None:
            return path, tuple(passed_over)
        passed_over.append(f"{path.name} is not resumable: {reason}")
    return None, tuple(passed_over)


def finish(path: Path) -> Path:
    """Give a complete record its final name."""
    record = files.finished_path(path, ".jsonl")
    os.replace(path, record)
    return record


def load(path: Path) -> LengthRecord:
    """Read a record without a last line that a crash cut short. Raise ValueError for another schema or other damage."""
    return _decoded(path, read_lines(path))


def _decoded(path: Path, lines: Sequence[bytes]) -> LengthRecord:
    try:
        stored = msgspec.json.decode(lines[0] if lines else b"{}")
        if stored.get("schema") not in (1, SCHEMA):
            raise ValueError(f"expected schema 1 or {SCHEMA}, got {stored.get('schema')}")
        header = msgspec.convert(stored | {"command": stored_words(stored.get("command", ""))}, Header)
        return LengthRecord(header, tuple(msgspec.json.decode(line, type=JudgedText) for line in lines[1:]))
    except ValueError as error:
        raise ValueError(f"{path} is not a record of {SUITE} ({error})") from error


def _record_path(results: Path, header: Header) -> Path:
    return files.record_path(results, SUITE, header.environment, header.created, name=header.backend, ending=".jsonl")


def _not_resumable(path: Path, wanted: Header) -> str | None:
    """Return why this record cannot be continued as that of the wanted header; None if it can."""
    try:
        found = load(path).header
        if is_being_written(path):
            return "another process is still writing it"
        check_comparable(found.environment, wanted.environment, keys=RESUMABLE_KEYS)
    except (OSError, ValueError, IncomparableResults) as error:
        return str(error)
    free = ("command", "created", "environment")
    names = [field.name for field in fields(Header) if field.name not in free]
    differing = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    return f"another experiment, with a different {', '.join(differing)}" if differing else None
