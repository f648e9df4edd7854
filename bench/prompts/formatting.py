"""Prompts become token ids once, by the target's tokenizer; every backend gets the same ids.

Chat messages go through a chat template, which writes its own special tokens. Raw text is never templated: it gets the
special tokens that the tokenizer puts around plain text. Every record contains how this was done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.prompts.sets import Message, Prompt, PromptSet
from bench.records.decoding import ModelPair, Scalar

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How prompts become ids."""

    template_name: str  # "none", "default" or the name of the file
    template: str | None  # Jinja source; None: messages are joined by blank lines, without roles
    system_prompt: str | None  # None: whatever the template does without one
    bos_on_raw_text: bool  # whether the tokenizer starts plain text with its BOS; templates write their own
    max_prompt_tokens: int | None  # longer prompts lose their beginning (a leading BOS stays); None: never cut

    def as_record(self) -> dict[str, Scalar]:
        """Return the format as records store it, with the hash of the template."""
        return {
            "chat_template": self.template_name,
            "chat_template_hash": hashlib.sha256(self.template.encode()).hexdigest() if self.template else "",
            "system_prompt": self.system_prompt,
            "bos_on_raw_text": self.bos_on_raw_text,
            "max_prompt_tokens": self.max_prompt_tokens,
            "truncation": "off" if self.max_prompt_tokens is None else "keep_end",
        }


def prompt_format(
    tokenizer: Any, *, chat_template: str, system_prompt: str | None = None, max_prompt_tokens: int | None = None
) -> PromptFormat:
    """Return the format that the options describe.

    Args:    chat_template: `none`, `default` (the tokenizer's own) or a Jinja file
    Raises:  ValueError: there is no such template, or max_prompt_tokens < 1
    """
    if max_prompt_tokens is not None and max_prompt_tokens < 1:
        raise ValueError(f"expected max_prompt_tokens >= 1, got {max_prompt_tokens}")
    return PromptFormat(
        template_name=Path(chat_template).name,  # records name no folder
        template=_template(chat_template, tokenizer),
        system_prompt=system_prompt,
        bos_on_raw_text=tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id,
        max_prompt_tokens=max_prompt_tokens,
    )


def encode(prompt_set: PromptSet, tokenizer: Any, format: PromptFormat) -> tuple[Ids, ...]:
    """Return the token ids of each prompt.

    Raises:  ValueError: a prompt is empty, or the template refuses it
    """
    encoded = []
    for prompt in prompt_set.prompts:
        try:
            ids = _cut(_prompt_ids(prompt, tokenizer, format), tokenizer.bos_token_id, format.max_prompt_tokens)
            if not ids:
                raise ValueError("expected at least one token, got none")
        except ValueError as error:
            raise ValueError(f"{prompt_set.name}, line {prompt.index + 1}: {error}") from error
        encoded.append(ids)
    return tuple(encoded)


def check_room(
    prompt_set: PromptSet, encoded: Sequence[Ids], *, context_length: int, max_new_tokens: int, num_draft_tokens: int
) -> None:
    """Raise ValueError unless every prompt leaves room for the answer.

    Args:    context_length: tokens that both models have positions for; num_draft_tokens: the largest k of the run
    """
    # The last round may draft k tokens beyond the last new one, and verifies them together with one of the target's own.
    room = context_length - max_new_tokens - num_draft_tokens - 1
    for prompt, ids in zip(prompt_set.prompts, encoded, strict=True):
        if len(ids) > room:
            raise ValueError(
                f"{prompt_set.name}, line {prompt.index + 1}: the prompt has {len(ids)} tokens; expected at most {room} "
                f"(context {context_length} - {max_new_tokens} new - {num_draft_tokens} draft - 1): "
                "leave it out, request fewer new tokens, or cut prompts with --max-prompt-tokens"
            )


def end_token_ids(pair: ModelPair) -> Ids:
    """Return the ids that end a resolved target's text; possibly none."""
    for name in ("generation_config.json", "config.json"):  # transformers' order: the first that names any decides
        file = Path(pair.target) / name
        ids = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def _template(choice: str, tokenizer: Any) -> str | None:
    if choice == "none":
        return None
    if choice == "default":
        if not tokenizer.chat_template:
            raise ValueError("the target's tokenizer has no chat template; use --chat-template none, or name a file")
        return tokenizer.get_chat_template()
    try:
        return Path(choice).read_text(encoding="utf-8")
    except OSError as error:
        expected = "--chat-template: expected none, default or a readable file"
        raise ValueError(f"{expected}, got {choice} ({error.strerror})") from error


def _prompt_ids(prompt: Prompt, tokenizer: Any, format: PromptFormat) -> Ids:
    if prompt.text is not None:
        if format.system_prompt is not None:
            raise ValueError("raw text takes no system prompt; write it into the text or give chat messages")
        return tuple(tokenizer(prompt.text)["input_ids"])
    messages = prompt.messages
    if format.system_prompt is not None:
        if any(message.role == "system" for message in messages):
            raise ValueError("it has a system message already; leave the system prompt option out")
        messages = (Message("system", format.system_prompt), *messages)
    if format.template is None:
        return tuple(tokenizer("\n\n".join(message.content for message in messages))["input_ids"])
    from jinja2 import TemplateError

    turns = [{"role": message.role, "content": message.content} for message in messages]
    options = {"chat_template": format.template, "add_generation_prompt": True, "tokenize": False}
    try:
        text = tokenizer.apply_chat_template(turns, **options)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses it: {error}") from error
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])  # the template has written them


def _cut(ids: Ids, bos_token_id: int | None, limit: int | None) -> Ids:
    """Return the last `limit` ids. A leading BOS keeps its place, because many models fail without it."""
    if limit is None or len(ids) <= limit:
        return ids
    kept = ids[:1] if ids[0] == bos_token_id else ()
    return (*kept, *ids[len(ids) - limit + len(kept) :])
