"""Prompts become the ids the options ask for, and a prompt that does not fit is refused before anything is timed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bench.prompts import formatting
from bench.prompts.sets import Message, Prompt, PromptSet
from bench.records.decoding import ModelPair

WORDS = ("<unk>", "<s>", "</s>", "user", "system", "model", ":", "a", "b", "c", "d")
TEMPLATE = (
    "{{ bos_token }} {% for message in messages %}{{ message.role }} : {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}model :{% endif %}"
)


def make_tokenizer(*, adds_bos: bool = False, chat_template: str | None = TEMPLATE) -> Any:
    words_to_ids = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words_to_ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_template,
    )


def ask(*contents: str) -> PromptSet:
    prompts = (Prompt(index=i, messages=(Message("user", text),), text=None) for i, text in enumerate(contents))
    return PromptSet(name="questions", prompts=tuple(prompts))


def raw(*texts: str) -> PromptSet:
    prompts = (Prompt(index=i, messages=(), text=text) for i, text in enumerate(texts))
    return PromptSet(name="texts", prompts=tuple(prompts))


def words(prompt_set: PromptSet, tokenizer: Any, *, context_length: int = 100, **options: Any) -> list[str]:
    """Each encoded prompt as words."""
    prompt_format = formatting.prompt_format(tokenizer, **options)
    encoded = formatting.encode(prompt_set, tokenizer, prompt_format)
    formatting.check_room(prompt_set, encoded, context_length=context_length, max_new_tokens=10, num_draft_tokens=4)
    return [" ".join(WORDS[i] for i in ids) for ids in encoded]


def test_messages_go_through_the_tokenizers_template_and_get_no_second_bos() -> None:
    assert words(ask("a b"), make_tokenizer(adds_bos=True), chat_template="default") == ["<s> user : a b model :"]


def test_without_a_template_messages_are_joined_and_get_the_tokenizers_own_bos() -> None:
    assert words(ask("a b"), make_tokenizer(adds_bos=True), chat_template="none") == ["<s> a b"]
    assert words(ask("a b"), make_tokenizer(), chat_template="none") == ["a b"]


def test_raw_text_is_never_templated() -> None:
    assert words(raw("a b"), make_tokenizer(), chat_template="default") == ["a b"]


def test_a_template_file_takes_the_place_of_the_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }} d")
    tokenizer = make_tokenizer(chat_template=None)
    assert words(ask("a"), tokenizer, chat_template=str(tmp_path / "mine.jinja")) == ["a d"]


def test_the_system_prompt_goes_first() -> None:
    tokenizer = make_tokenizer()
    assert words(ask("a"), tokenizer, chat_template="default", system_prompt="b") == [
        "<s> system : b user : a model :",
    ]
    assert words(ask("a"), tokenizer, chat_template="none", system_prompt="b") == ["b a"]


def test_a_second_system_message_is_refused() -> None:
    conversation = Prompt(index=4, messages=(Message("system", "a"), Message("user", "b")), text=None)
    with pytest.raises(ValueError, match="mine, line 5: it has a system message already"):
        words(PromptSet("mine", (conversation,)), make_tokenizer(), chat_template="default", system_prompt="c")


def test_raw_text_with_a_system_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="texts, line 1: raw text takes no system prompt"):
        words(raw("a"), make_tokenizer(), chat_template="default", system_prompt="b")


def test_a_tokenizer_without_a_template_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="has no chat template; use --chat-template none"):
        formatting.prompt_format(make_tokenizer(chat_template=None), chat_template="default")


def test_a_template_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected none, default or a readable file, got absent\.jinja"):
        formatting.prompt_format(make_tokenizer(), chat_template="absent.jinja")


@pytest.mark.parametrize("template", ["{{ raise_exception('no such role') }}", "{% for %}"])
def test_a_template_that_refuses_a_prompt_is_reported_with_its_line(tmp_path: Path, template: str) -> None:
    (tmp_path / "mine.jinja").write_text(template)
    with pytest.raises(ValueError, match="questions, line 1: the chat template refuses it"):
        words(ask("a"), make_tokenizer(), chat_template=str(tmp_path / "mine.jinja"))


def test_a_prompt_just_as_long_as_the_context_allows_is_accepted_and_one_more_token_refused() -> None:
    # 5 prompt tokens + 10 new + 4 draft + 1 of the target's own
    assert words(raw("a b c d a"), make_tokenizer(), chat_template="none", context_length=20) == ["a b c d a"]
    with pytest.raises(ValueError, match=r"texts, line 2: the prompt has 6 tokens; expected at most 5 .*--max-prompt"):
        words(raw("a", "a b c d a b"), make_tokenizer(), chat_template="none", context_length=20)


def test_truncation_keeps_the_end_and_a_leading_bos() -> None:
    text = raw("a b c d", "a b")
    assert words(text, make_tokenizer(), chat_template="none", max_prompt_tokens=3) == ["b c d", "a b"]
    with_bos = make_tokenizer(adds_bos=True)
    assert words(text, with_bos, chat_template="none", max_prompt_tokens=3) == ["<s> c d", "<s> a b"]
    assert words(text, with_bos, chat_template="none", max_prompt_tokens=1) == ["<s>", "<s>"]


def test_an_empty_truncation_is_refused() -> None:
    with pytest.raises(ValueError, match="expected max_prompt_tokens >= 1, got 0"):
        formatting.prompt_format(make_tokenizer(), chat_template="none", max_prompt_tokens=0)


def test_the_record_says_how_prompts_became_ids() -> None:
    prompt_format = formatting.prompt_format(make_tokenizer(adds_bos=True), chat_template="default", system_prompt="b")
    assert prompt_format.as_record() == {
        "chat_template": "default",
        "chat_template_hash": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
        "system_prompt": "b",
        "bos_on_raw_text": True,
        "max_prompt_tokens": None,
        "truncation": "off",
    }
    plain = formatting.prompt_format(make_tokenizer(), chat_template="none", max_prompt_tokens=9).as_record()
    assert (plain["chat_template"], plain["chat_template_hash"], plain["bos_on_raw_text"]) == ("none", "", False)
    assert plain["truncation"] == "keep_end"


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [
        ({"eos_token_id": [2, 5]}, {"eos_token_id": 3}, (2, 5)),
        ({"eos_token_id": 2}, {"eos_token_id": 3}, (2,)),
        (None, {"eos_token_id": 3}, (3,)),
        ({}, {}, ()),
    ],
)
def test_end_tokens_come_from_the_generation_config_first(
    tmp_path: Path, generation_config: dict[str, Any] | None, config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation_config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation_config))
    pair = ModelPair("tiny", str(tmp_path), str(tmp_path), "causal", "float32")
    assert formatting.end_token_ids(pair) == expected
