"""Prompts for training as token ids: of prompt sets, in the target's chat template, or written by the target itself.

A chat model that is shown its template up to where the user speaks goes on with what users ask. So it writes as many prompts
of its own domain as a run needs, and no data set has to be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.prompts import PromptSet
from distill.sampling import Ask
from distill.text import Sampler

MARK = "\u2588"  # stands for the user's words in a rendered template


def encoded(prompt_set: PromptSet, tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Ids of each prompt: chat messages in the tokenizer's own template, raw text as it is."""
    return tuple(
        _ids(tokenizer, prompt.text) if prompt.text is not None else _chat_ids(tokenizer, prompt.messages)
        for prompt in prompt_set.prompts
    )


def self_written(
    tokenizer: Any,
    sample: Sampler,
    *,
    temperature: float,
    batch_rows: int,
    end_token_ids: Sequence[int],
    first_seed: int,
) -> Iterator[tuple[int, ...]]:
    """Endless prompts that the model writes. One that does not end, or ends at once, is dropped."""
    before, after = user_turn(tokenizer)
    seed = first_seed
    while True:
        asks = [Ask(before, temperature, seed + row) for row in range(batch_rows)]
        seed += batch_rows
        for answer in sample(asks):
            *words, last = answer.token_ids_A.tolist()
            if words and last in end_token_ids:
                yield (*before, *words, *after)


def user_turn(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer's template puts before the user's words and behind them."""
    before, _, after = _rendered(tokenizer, [{"role": "user", "content": MARK}]).partition(MARK)
    if not after:
        raise ValueError(
            "the chat template does not show the user's words as they are, so prompts cannot be self-written"
        )
    return _ids(tokenizer, before, special=False), _ids(tokenizer, after, special=False)


def _chat_ids(tokenizer: Any, messages: Sequence[Any]) -> tuple[int, ...]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return _ids(tokenizer, _rendered(tokenizer, turns), special=False)


def _rendered(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def _ids(tokenizer: Any, text: str, *, special: bool = True) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])
