"""Prompts for training as token ids: of prompt sets, in the target's chat template, or written by the target itself.

A chat model that is shown its template up to where the user speaks goes on with what users ask. So it writes as many prompts
of its own domain as a run needs, and no data set has to be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.prompts.sets import Message, PromptSet
from distill.text.table import TextRow

Prompts = tuple[tuple[int, ...], ...]

MARK = "\u2588"  # stands for the user's words in a rendered template


def encoded(prompt_set: PromptSet, tokenizer: Any) -> Prompts:
    """Ids of each prompt: raw text as it is; chat messages in the tokenizer's own template, or behind each other without one.

    Where there is no template, measure the draft with `--chat-template none`, which does the same.
    """
    return tuple(
        _ids(tokenizer, prompt.text) if prompt.text is not None else _chat_ids(tokenizer, prompt.messages)
        for prompt in prompt_set.prompts
    )


def self_written(rows: Sequence[TextRow], after: tuple[int, ...], end_token_ids: Sequence[int]) -> Prompts:
    """Prompts from texts that go on where the user speaks. A text that does not end, or ends at once, is none."""
    texts = ((row.prompt.tolist(), row.answer.tolist()) for row in rows)
    return tuple((*before, *words, *after) for before, (*words, last) in texts if words and last in end_token_ids)


def user_turn(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer's template puts before the user's words and behind them.

    Raises:  ValueError: there is no template, or it changes the words
    """
    if not tokenizer.chat_template:
        raise ValueError("prompts are self-written in the target's chat template, and its tokenizer has none")
    before, _, after = _rendered(tokenizer, [{"role": "user", "content": MARK}]).partition(MARK)
    if not after:
        raise ValueError(
            "the chat template does not show the user's words as they are, so prompts cannot be self-written"
        )
    return _ids(tokenizer, before, special=False), _ids(tokenizer, after, special=False)


def _chat_ids(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    if not tokenizer.chat_template:
        return _ids(tokenizer, "\n\n".join(message.content for message in messages))
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return _ids(tokenizer, _rendered(tokenizer, turns), special=False)


def _rendered(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def _ids(tokenizer: Any, text: str, *, special: bool = True) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])
