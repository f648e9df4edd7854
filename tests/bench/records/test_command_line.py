"""Commands are stored as arguments and shown as a shell takes them."""

from __future__ import annotations

import sys

import pytest

from bench.records.command_line import own_words, shell_text, stored_words


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["/usr/bin/pytest", "--results", "/home/me/runs", "a b"], ("pytest", "--results", "runs", "a b")),
        (["/venv/lib/pytest/__main__.py", "-q"], ("python", "-m", "pytest", "-q")),
    ],
)
def test_a_record_holds_no_folder_of_the_machine(
    typed: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", typed)
    assert own_words() == words


def test_a_shell_takes_what_is_shown() -> None:
    words = ("pytest", "--system-prompt", "don't say 'no'", "--temperatures", "0,1")
    assert stored_words(shell_text(words)) == words
    assert stored_words(list(words)) == words
    assert stored_words("") == ("",)
