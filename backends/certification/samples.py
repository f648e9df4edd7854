"""Reads outputs of engines that this project does not run: one JSON object per line, in the target's ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec

from backends.certification.scoring import Text, slots_of
from backends.models import checkpoints
from bench.prompts import formatting
from bench.records.decoding import ModelPair, Round

Ids = tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
Rounds = tuple[Round, ...] | None


class SampleRow(msgspec.Struct, forbid_unknown_fields=True):
    """One line of the file."""

    prompt_ids: Annotated[Ids, msgspec.Meta(min_length=1)]
    token_ids: Ids
    finish_reason: str
    rounds: list[tuple[int, int, int]] | None = None  # drafted, accepted, emitted


def with_end_token(token_ids: Ids, rounds: Rounds, end_token_ids: Ids) -> tuple[Ids, Rounds]:
    """Return the tokens and rounds of an output that stopped, with the end token if its engine left that out.

    Raises: ValueError: the end token is missing and could be any of several
    """
    if token_ids and token_ids[-1] in end_token_ids:
        return token_ids, rounds
    if len(end_token_ids) != 1:
        found = f"its end token is missing, and the target has {len(end_token_ids)}"
        raise ValueError(f"the output stopped and {found}: give it in token_ids")
    if rounds and sum(round_.emitted for round_ in rounds) == len(token_ids) - 1:  # the rounds left it out too
        last = rounds[-1]
        if last.emitted <= last.accepted:  # the last round has room for it
            rounds = (*rounds[:-1], replace(last, emitted=last.emitted + 1))
        else:
            rounds = (*rounds, Round(drafted=max(1, last.drafted), accepted=0, emitted=1))
    return (*token_ids, *end_token_ids), rounds


def read_samples(path: Path, pair: ModelPair) -> list[Text]:
    """Return the outputs of a JSONL file.

    Raises:  ValueError: there is none, or what is wrong with which line
    """
    context_length = checkpoints.context_length(pair)
    vocab_size = checkpoints.model_config(pair.target).get_text_config().vocab_size
    end_token_ids = formatting.end_token_ids(pair)
    texts = []
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            text = _parsed(index, line, vocab_size, end_token_ids)
            length = len(text.prompt_ids) + len(text.token_ids)
            if length > context_length:
                raise ValueError(f"expected at most {context_length} tokens with the prompt, got {length}")
        except ValueError as error:  # msgspec's errors are ValueErrors
            raise ValueError(f"{path.name}, line {index + 1}: {error}") from error
        texts.append(text)
    if not texts:
        raise ValueError(f"{path.name}: expected at least one output, got none")
    return texts


def _parsed(index: int, line: str, vocab_size: int, end_token_ids: Ids) -> Text:
    row = msgspec.json.decode(line, type=SampleRow)
    for name in ("prompt_ids", "token_ids"):
        if (largest := max(getattr(row, name), default=0)) >= vocab_size:
            raise ValueError(f"expected ids of 0 to {vocab_size - 1} in {name}, got {largest}")
    if row.finish_reason not in ("stop", "length"):
        raise ValueError(f"expected a finish_reason of stop or length, got {row.finish_reason!r}")
    stopped = row.finish_reason == "stop"
    if not (row.token_ids or stopped):  # an output may consist of the end token alone, which the engine dropped
        raise ValueError("expected token_ids to be a list of at least one id, got []")
    rounds = None if row.rounds is None else tuple(Round(*counts) for counts in row.rounds)
    for round_ in rounds or ():
        drafted, accepted, emitted = counts = round_.drafted, round_.accepted, round_.emitted
        if not (0 <= accepted <= drafted and accepted <= emitted <= accepted + 1 and emitted >= 1):
            raise ValueError(f"expected accepted <= drafted and emitted of accepted or one more, got {list(counts)}")
    token_ids, rounds = with_end_token(row.token_ids, rounds, end_token_ids) if stopped else (row.token_ids, rounds)
    return Text(row.prompt_ids, token_ids, slots_of(rounds, len(token_ids)), prompt_index=index)
