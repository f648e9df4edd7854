"""The record of the suite `token_length`: for every draft token that was tested, what was emitted there and in which context.

A record is JSON lines: a header, then one text a line, with an entry for every draft token that was tested and gave way to
an emitted token: the draft token itself where it was accepted, else the recovered one. All columns are of that position.
Length is in bytes; a leading space is one of them. `bench.reporting.suites.token_length` says what it shows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.errors import IncomparableResults
from bench.records.decoding import ModelPair, Replay, Scalar, is_rejection
from bench.records.environment import check_comparable, machine_slug
from bench.records.files import UNFINISHED, write_atomically
from bench.records.journal import RESUMABLE_KEYS

SCHEMA = 1
SUITE = "token_length"


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a record: what was asked, and where."""

    schema: int
    suite: str
    preset: str
    command: str
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
    """A further line: one decoded text. Columns have an entry for each tested position, in order."""

    prompt_index: int
    temperature: float
    places: tuple[int, ...]  # in the output, from 0
    slots: tuple[int, ...]  # in the round, 1..k
    accepted: tuple[int, ...]  # 0 or 1
    acceptance_probs: tuple[float, ...]  # beta, 0..1
    token_ids: tuple[int, ...]  # of the token emitted there
    num_bytes: tuple[int, ...]
    num_chars: tuple[int, ...]  # characters that begin in the token: 0 where it only goes on with one
    special: tuple[int, ...]  # 1: it stands for no text, and has no length
    entropies: tuple[float, ...]  # nats, of the target at T = 1 whatever the decode T


@dataclass(frozen=True, slots=True)
class LengthRecord:
    header: Header
    texts: tuple[JudgedText, ...]


def judged_positions(replay: Replay) -> Iterator[tuple[int, int, bool, float]]:
    """Place in the output, slot, whether accepted, and beta of every draft token that was tested.

    Raises:  ValueError: rounds that emit another number of tokens, or that do not have one probability per tested position
    """
    place = len(replay.token_ids) - sum(round_.emitted for round_ in replay.rounds)
    if place not in (0, 1):  # 0 where the first round carries the prefill
        raise ValueError(f"expected rounds that emit all tokens but at most the first, got {place} left")
    for round_, probs in zip(replay.rounds, replay.acceptance_probs, strict=True):
        tested = round_.accepted + is_rejection(round_)
        if len(probs) != tested:
            raise ValueError(f"expected {tested} acceptance probabilities in a round, got {len(probs)}")
        for slot, prob in enumerate(probs, start=1):
            yield place + slot - 1, slot, slot <= round_.accepted, prob
        place += round_.emitted


def judged_text(
    replay: Replay,
    *,
    prompt_index: int,
    temperature: float,
    spellings: Sequence[bytes | None],
    entropies: Sequence[float],
) -> JudgedText:
    """The line of one text.

    Args:    spellings, entropies: of every token of the text; no spelling: a special token
    """
    tested = list(judged_positions(replay))
    places = tuple(place for place, *_ in tested)
    spelled = [spellings[place] for place in places]
    return JudgedText(
        prompt_index=prompt_index,
        temperature=temperature,
        places=places,
        slots=tuple(slot for _, slot, *_ in tested),
        accepted=tuple(int(accepted) for _, _, accepted, _ in tested),
        acceptance_probs=tuple(round(min(prob, 1.0), 6) for *_, prob in tested),
        token_ids=tuple(replay.token_ids[place] for place in places),
        num_bytes=tuple(len(token or b"") for token in spelled),
        num_chars=tuple(_num_chars(token or b"") for token in spelled),
        special=tuple(int(token is None) for token in spelled),
        entropies=tuple(round(entropies[place], 5) for place in places),
    )


def _num_chars(token: bytes) -> int:
    """Characters of UTF-8 that begin in it, so that the tokens of a text sum up to its characters."""
    return sum(byte & 0xC0 != 0x80 for byte in token)


def measure(
    path: Path, header: Header, judge: Callable[[float, int], JudgedText], *, on_text: Callable[[int], None]
) -> None:
    """Add to an unfinished record what it lacks.

    Args:    judge: makes the line of a decode temperature and a prompt; on_text: told how many texts there are
    """
    done = {(text.temperature, text.prompt_index) for text in load(path).texts}
    on_text(len(done))
    for temperature in header.temperatures:
        for prompt_index in range(header.num_prompts):
            if (temperature, prompt_index) in done:
                continue
            _append(path, judge(temperature, prompt_index))
            done.add((temperature, prompt_index))
            on_text(len(done))


def start(results: Path, header: Header) -> Path:
    """A new record without texts.

    Returns: results/<machine>/token_length/<moment>-<commit>-<backend>.partial.jsonl
    """
    moment = datetime.fromisoformat(header.created).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    commit = header.environment.get("harness_commit", "unknown")
    path = _folder(results, header) / f"{moment}-{commit}-{header.backend}{UNFINISHED}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() or _final(path).exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    write_atomically(path, _line(header))
    return path


def find_resumable(results: Path, header: Header) -> Path | None:
    """The newest unfinished record of the same plan, models, versions and commit on this machine."""
    unfinished = sorted(_folder(results, header).glob(f"*{UNFINISHED}"), reverse=True)
    return next((path for path in unfinished if _resumes(path, header)), None)


def finish(path: Path) -> Path:
    """Give a record that is whole its final name."""
    os.replace(path, _final(path))
    return _final(path)


def load(path: Path) -> LengthRecord:
    """A record. A last line that was cut short by a crash is left out, and taken out of an unfinished file.

    Raises:  ValueError: no record of this schema, or one that is damaged elsewhere
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content and path.name.endswith(UNFINISHED):
        write_atomically(path, whole.decode())
    try:
        header, *texts = whole.splitlines() or [b""]
        found = msgspec.json.decode(header, type=Header)
        if found.schema != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {found.schema}")
        return LengthRecord(found, tuple(msgspec.json.decode(text, type=JudgedText) for text in texts))
    except ValueError as error:
        raise ValueError(f"{path} is not a record of {SUITE} ({error})") from error


def _final(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(UNFINISHED) + ".jsonl")


def _append(path: Path, text: JudgedText) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(text))
        file.flush()
        os.fsync(file.fileno())


def _line(value: Header | JudgedText) -> str:
    return msgspec.json.encode(asdict(value)).decode() + "\n"


def _folder(results: Path, header: Header) -> Path:
    return results / machine_slug(header.environment) / SUITE


def _resumes(path: Path, wanted: Header) -> bool:
    try:
        found = load(path).header
        check_comparable(found.environment, wanted.environment, keys=RESUMABLE_KEYS)
    except (ValueError, IncomparableResults):
        return False
    varying: dict[str, Any] = {"command": "", "created": "", "environment": {}}
    return replace(found, **varying) == replace(wanted, **varying)
