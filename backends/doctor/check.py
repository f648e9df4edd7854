"""One line of the doctor's report, and how the report is printed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]
_MARK_WIDTH = 9


@dataclass(frozen=True, slots=True)
class Check:
    """One result. A problem stops measurements or spoils them and names its remedy; a note is worth reading."""

    topic: str
    state: State
    text: str
    remedy: str = ""  # one sentence

    def __post_init__(self) -> None:
        if self.state == "problem" and not self.remedy:
            raise ValueError(f"expected a remedy for the problem {self.text!r}, got none")


def as_text(checks: Sequence[Check], *, width: int) -> str:
    """Return the report grouped by topic, in the order given; it is readable without colour."""
    lines = []
    for topic in dict.fromkeys(check.topic for check in checks):
        lines += ["", topic]
        for check in (each for each in checks if each.topic == topic):
            mark = "PROBLEM" if check.state == "problem" else check.state
            lines.append(_indented(f"  {mark:{_MARK_WIDTH}}", check.text, width))
            if check.remedy:
                lines.append(_indented(" " * (_MARK_WIDTH + 2) + "-> ", check.remedy, width))
    return "\n".join(lines[1:])


def _indented(prefix: str, text: str, width: int) -> str:
    wrapper = textwrap.TextWrapper(width, prefix, " " * len(prefix), break_on_hyphens=False, break_long_words=False)
    return wrapper.fill(text)


def summary(checks: Sequence[Check]) -> str:
    """Return the last line of the report."""
    num_problems, num_notes = (sum(check.state == state for check in checks) for state in ("problem", "note"))
    notes = f"{num_notes} note{'s' * (num_notes != 1)}"
    if not num_problems:
        return f"no problem, {notes}"
    return f"{num_problems} problem{'s' * (num_problems != 1)} to fix, {notes}"
