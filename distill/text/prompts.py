"""Prompts for training as token ids: from prompt sets, or written by the target itself.

A chat model that is given its template up to the place of the user's words continues with what users ask. So it writes as
many prompts as a run needs, and no data set has to be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.prompts.formatting import encode, prompt_format
from bench.prompts.sets import PromptSet
from distill.text.table import TextRow

Prompts = tuple[tuple[int, ...], ...]

MARK = "\u2588"  # stands for the user's words in a rendered template


def encoded(prompt_set: PromptSet, tokenizer: Any) -> Prompts:
    """Return the ids of each prompt. Chat messages use the tokenizer's own template, if it has one.

    Without a template, measure the draft with `--chat-template none`, which gives the same ids.
    """
    how = prompt_format(tokenizer, chat_template="default" if tokenizer.chat_template else "none")
    return encode(prompt_set, tokenizer, how)


def self_written(rows: Sequence[TextRow], after: tuple[int, ...], end_token_ids: Sequence[int]) -> Prompts:
    """Return the prompts in rows that continue where the user's words begin. Rows that do not end, or are empty, give none.

    Args:    after: what the template puts after the user's words
    """
    texts = ((row.prompt.tolist(), row.answer.tolist()) for row in rows)
    return tuple((*before, *words, *after) for before, (*words, last) in texts if words and last in end_token_ids)


def user_turn(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what the tokenizer's template puts before and after the user's words.

    Raises:  ValueError: there is no template, or it changes the words
    """
    if not tokenizer.chat_template:
        raise ValueError("prompts are self-written in the target's chat template, and its tokenizer has none")
    turn = [{"role": "user", "content": MARK}]
    before, _, after = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False).partition(MARK)
    if not after:
        raise ValueError("the chat template changes the user's words, so prompts cannot be self-written")
    before_ids, after_ids = (tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after))
    return before_ids, after_ids
