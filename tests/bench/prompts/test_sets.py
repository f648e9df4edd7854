"""Prompt sets: the built-in ones are sound, every file shape is read, and bad input is named with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.prompts import make_word_problems, sets
from bench.prompts.sets import BUILT_IN, Message, Prompt, load

USER = "user"


def written(tmp_path: Path, *lines: str, name: str = "set.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def contents(source: str) -> list[str]:
    return [prompt.messages[0].content for prompt in load(source).prompts]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_set_measures_its_held_out_half_and_never_repeats_a_prompt(name: str) -> None:
    train, held_out = contents(f"{name}:train"), contents(f"{name}:held_out")
    assert (len(train), len(held_out)) == (96, 64)
    assert len({*train, *held_out}) == 160
    assert load(name) == load(f"{name}:held_out")
    assert load(name).name == f"{name}:held_out"


def test_the_word_problems_are_what_their_generator_writes() -> None:
    file = Path(sets.__file__).with_name("word_problems.jsonl")
    assert [json.loads(line) for line in file.read_text().splitlines()] == make_word_problems.problems()


def test_every_word_problem_of_many_seeds_has_a_positive_whole_answer() -> None:
    for seed in range(50):
        for row in make_word_problems.problems(seed):
            assert isinstance(row["answer"], int), row
            assert row["answer"] > 0, row


# The answers below were worked out by hand from the text, once per template: the code is not used.
@pytest.mark.parametrize(
    ("beginning", "answer"),
    [
        ("Jonas buys 9 packs", 100 - 45 - 48),
        ("Jonas has 23 bagels", 4),
        ("Zofia starts with $33", 33 + 90),
        ("On the way to a museum in another town, Samir cycles for 2 hours at 20", 44),
        ("Kavya grows 4 rows", 54 + 4),
        ("Zofia reads a book of 269", 5 + 6),
        ("For a concert the bakery", 242 * 8),
        ("Zofia paints 2 walls", 71),
        ("A box of badges costs $80", 136 + 5),
        ("The tank behind the bakery holds 21", 181),
        ("At the library, Yusuf earns $16", 320 + 192),
        ("Ximena puts a fence", 71 * 9),
        ("Vera packs marbles", 12 + 12),
    ],
)
def test_the_answers_agree_with_a_calculation_by_hand(beginning: str, answer: int) -> None:
    rows = [row for row in make_word_problems.problems() if str(row["prompt"]).startswith(beginning)]
    assert [row["answer"] for row in rows] == [answer]


@pytest.mark.parametrize(
    ("row", "content"),
    [
        ({"prompt": "Why?"}, "Why?"),
        ({"prompt": "Why?", "id": 7, "answer": 42, "output": "x", "split": "held_out"}, "Why?"),
        ({"instruction": "Sort.", "input": "b, a", "output": "a, b"}, "Sort.\n\nb, a"),
        ({"instruction": "Sort.", "input": "", "output": "a, b", "text": "Below is ..."}, "Sort."),
        ({"question": "1 + 1?", "answer": "#### 2"}, "1 + 1?"),
    ],
)
def test_every_shape_of_one_question_becomes_a_user_message(row: dict[str, object], content: str, tmp_path: Path) -> None:
    (prompt,) = load(written(tmp_path, json.dumps(row))).prompts
    answer = next((row[key] for key in ("answer", "output") if isinstance(row.get(key), str)), "")
    assert prompt == Prompt(index=0, messages=(Message(USER, content),), text=None, answer=str(answer))


def test_conversations_and_raw_text_are_kept_as_they_are(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    first, second = load(written(tmp_path, json.dumps({"messages": turns}), json.dumps({"text": "Once upon "}))).prompts
    assert first.messages == (Message("system", "Be brief."), Message(USER, "Hi"))
    assert (second.index, second.messages, second.text) == (1, (), "Once upon ")


def test_a_text_file_holds_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "set.txt"
    path.write_bytes("\ufeffWhy? \u2028 Because.\r\nHow?".encode())
    assert contents(str(path)) == ["Why? \u2028 Because.", "How?"]


def test_a_file_is_named_without_its_folder(tmp_path: Path) -> None:
    assert load(written(tmp_path, "Why?", name="mine.txt")).name == "mine.txt"


def test_lines_marked_train_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    rows = ('{"prompt": "a", "split": "train"}', '{"prompt": "b"}', '{"prompt": "c", "split": "held_out"}')
    source = written(tmp_path, *rows)
    assert contents(source) == ["b", "c"]
    assert contents(f"{source}:train") == ["a"]
    assert contents(f"{source}:held_out") == ["c"]
    assert load(f"{source}:train").name == "set.jsonl:train"


def test_the_limit_takes_the_first_prompts() -> None:
    assert load("instructions", limit=5).prompts == load("instructions").prompts[:5]


def test_the_hash_follows_what_is_asked_and_its_order_and_nothing_else(tmp_path: Path) -> None:
    plain = load(written(tmp_path, "a", "b", name="plain.txt")).sha256
    assert re.fullmatch("[0-9a-f]{64}", plain)
    rows = ('{"prompt": "a", "id": 1}', '{"prompt": "-", "split": "train"}', '{"question": "b"}')
    assert load(written(tmp_path, *rows)).sha256 == plain
    assert load(written(tmp_path, "b", "a", name="swapped.txt")).sha256 != plain
    assert load(written(tmp_path, '{"text": "a"}', '{"text": "b"}')).sha256 != plain
    assert load(written(tmp_path, "a", name="short.txt")).sha256 != plain


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "cut', "Input data was truncated"),
        ("", "got an empty line"),
        ("[1]", "Expected `object`, got `array`"),
        ("{}", "expected one of the keys messages, prompt, instruction, question, text, got none"),
        ('{"promt": "a"}', "Object contains unknown field `promt`"),
        ('{"prompt": "a", "system": "b"}', "Object contains unknown field `system`"),
        ('{"prompt": "a", "text": "b"}', "got prompt, text"),
        ('{"prompt": "a", "input": "b"}', "expected 'input' beside 'instruction', got it beside 'prompt'"),
        ('{"prompt": "  "}', "empty 'prompt'"),
        ('{"prompt": 3}', "Expected `str | null`, got `int` - at `$.prompt`"),
        ('{"instruction": "a", "input": 3}', "Expected `str | null`, got `int` - at `$.input`"),
        ('{"text": ""}', "empty 'text'"),
        ('{"messages": []}', "empty 'messages'"),
        ('{"messages": [{"role": "user"}]}', "Object missing required field `content` - at `$.messages[0]`"),
        ('{"messages": [{"role": "user", "content": ""}]}', "empty 'messages'"),
        ('{"prompt": "a", "split": "test"}', "Invalid enum value 'test' - at `$.split`"),
    ],
)
def test_a_bad_line_is_refused_in_one_line_with_its_number(line: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^.*set\.jsonl, line 2: ") as caught:
        load(written(tmp_path, '{"prompt": "fine"}', line, '{"prompt": "fine"}'))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "set.txt"
    path.write_bytes(b"fine\n\xff\n")
    with pytest.raises(ValueError, match="line 2: 'utf-8' codec"):
        load(str(path))


def test_empty_files_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one prompt, got none"):
        load(written(tmp_path))
    with pytest.raises(ValueError, match=r"set\.jsonl:train: expected at least one prompt, got none"):
        load(written(tmp_path, '{"prompt": "a"}') + ":train")
    with pytest.raises(ValueError, match="line 1: empty 'prompt'"):
        load(written(tmp_path, "", name="blank.txt"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("instruction", "no prompt set 'instruction'; did you mean 'instructions'"),
        ("nowhere/set.jsonl", r"no prompt set 'nowhere/set.jsonl' \(built in: instructions, word_problems;"),
        ("instructions:test", r"unknown split 'test' of instructions \(known: train, held_out, or lines such as 1-100\)"),
    ],
)
def test_an_unknown_source_is_refused_in_one_line(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load(source)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set\.csv: expected a \.jsonl or \.txt file"):
        load(written(tmp_path, "a", name="set.csv"))


@pytest.mark.parametrize("limit", [0, -1, 65])
def test_a_limit_that_the_set_cannot_meet_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"expected between 1 and 64 prompts, got {limit}"):
        load("instructions", limit=limit)


def test_a_range_of_lines_is_a_part_of_any_set(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text("".join(f'{{"prompt": "p{place}", "split": "train", "answer": "a{place}"}}\n' for place in range(1, 6)))
    found = load(f"{file}:2-4")
    assert found.name == "set.jsonl:2-4"
    assert [(prompt.messages[0].content, prompt.answer) for prompt in found.prompts] == [
        ("p2", "a2"),
        ("p3", "a3"),
        ("p4", "a4"),
    ]
    assert len(load("instructions:1-160").prompts) == 160
    for wrong in ("0-2", "4-2", "2-6"):
        with pytest.raises(ValueError, match=f"expected lines within 1-5, the first one first, got {wrong}"):
            load(f"{file}:{wrong}")
