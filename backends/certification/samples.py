"""TODO: purpose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records.decoding import ModelPair, Round

if TYPE_CHECKING:
    from backends.certification.scoring import Text

SAMPLE_KEYS = ("prompt_ids", "token_ids", "finish_reason")


@dataclass(frozen=True, slots=True)
class DecodedSample:
    """One output as its engine gave it."""

    prompt_index: int
    repeat: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    stopped: bool
    rounds: tuple[Round, ...] | None

    def as_text(self, end_token_ids: Sequence[int]) -> Text:
        """With its end token and its slots.

        Raises: ValueError: the end token is missing and could be any of several, or the rounds do not add up
        """
        from backends.certification.scoring import Text, slots_of

        token_ids, rounds = self.token_ids, self.rounds
        if self.stopped and (not token_ids or token_ids[-1] not in end_token_ids):
            if len(end_token_ids) != 1:
                raise ValueError(
                    f"the text stopped and its end token is missing, and the target has {len(end_token_ids)}: "
                    "give it in token_ids"
                )
            if rounds and sum(round_.emitted for round_ in rounds) == len(token_ids) - 1:
                rounds = _with_one_more(rounds)
            token_ids = (*token_ids, *end_token_ids)
        slots = slots_of(rounds, len(token_ids))
        return Text(self.prompt_ids, token_ids, slots, self.prompt_index, self.repeat)


def _with_one_more(rounds: tuple[Round, ...]) -> tuple[Round, ...]:
    """Rounds that did not count the end token, which came next: within the last round, or alone in another."""
    last = rounds[-1]
    if last.emitted <= last.accepted:
        return (*rounds[:-1], replace(last, emitted=last.emitted + 1))
    return (*rounds, Round(drafted=max(1, last.drafted), accepted=0, emitted=1))


def read_samples(path: Path, pair: ModelPair) -> list[Text]:
    """Texts of a JSONL file, in the target's ids.

    Raises:  ValueError: no text, or what is wrong with which line
    """
    from transformers import AutoConfig

    from backends.models import checkpoints
    from bench.prompts import formatting

    context_length = checkpoints.context_length(pair)
    vocab_size = AutoConfig.from_pretrained(pair.target, local_files_only=True).get_text_config().vocab_size
    end_token_ids = formatting.end_token_ids(pair)
    texts = []
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            decoded = _parsed(index, line, vocab_size)
            text = decoded.as_text(end_token_ids)
            length = len(text.prompt_ids) + len(text.token_ids)
            if length > context_length:
                raise ValueError(f"expected at most {context_length} tokens with the prompt, got {length}")
        except ValueError as error:
            raise ValueError(f"{path.name}, line {index + 1}: {error}") from error
        texts.append(text)
    if not texts:
        raise ValueError(f"{path.name}: expected at least one text, got none")
    return texts


def _parsed(index: int, line: str, vocab_size: int) -> DecodedSample:
    row = json.loads(line)
    if not isinstance(row, dict) or not set(SAMPLE_KEYS) <= set(row) <= {*SAMPLE_KEYS, "rounds"}:
        got = ", ".join(row) if isinstance(row, dict) else line[:40]
        raise ValueError(f"expected an object of {', '.join(SAMPLE_KEYS)} and maybe rounds, got {got or 'nothing'}")
    if row["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"expected a finish_reason of stop or length, got {row['finish_reason']!r}")
    stopped = row["finish_reason"] == "stop"
    token_ids = _ids("token_ids", row["token_ids"], vocab_size, least=0 if stopped else 1)
    rounds = row.get("rounds")
    return DecodedSample(
        prompt_index=index,
        repeat=0,
        prompt_ids=_ids("prompt_ids", row["prompt_ids"], vocab_size, least=1),
        token_ids=token_ids,
        stopped=stopped,
        rounds=None if rounds is None else _rounds(rounds),
    )


def _ids(name: str, values: Any, vocab_size: int, *, least: int) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) < least:
        raise ValueError(f"expected {name} to be a list of at least {least} ids, got {json.dumps(values)[:40]}")
    for value in values:
        if type(value) is not int or not 0 <= value < vocab_size:
            raise ValueError(f"expected ids of 0 to {vocab_size - 1} in {name}, got {json.dumps(value)[:40]}")
    return tuple(values)


def _rounds(rows: Any) -> tuple[Round, ...]:
    if not isinstance(rows, list):
        raise ValueError(f"expected rounds to be a list, got {json.dumps(rows)[:40]}")
    return tuple(map(_round, rows))


def _round(row: Any) -> Round:
    if not isinstance(row, list) or len(row) != 3 or any(type(count) is not int for count in row):
        raise ValueError(f"expected a round of [drafted, accepted, emitted], got {json.dumps(row)[:40]}")
    drafted, accepted, emitted = row
    if not (0 <= accepted <= drafted and accepted <= emitted <= accepted + 1 and emitted >= 1):
        raise ValueError(f"expected accepted <= drafted and emitted of accepted or one more, got {row}")
    return Round(drafted, accepted, emitted)
