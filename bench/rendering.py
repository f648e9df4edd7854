"""Renders a finished table for the terminal, for GitHub and for LaTeX, so that all three say the same."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

Facts = dict[str, str]  # what a caption says, by its first word
DERIVED = "Derived from raw records by `specheat tables`: do not edit."
MISSING = "–"
_TERMINAL_COLUMNS = 130


@dataclass(frozen=True, slots=True)
class Entry:
    text: str
    bold: bool = False
    note: int | None = None  # number of its footnote


@dataclass(frozen=True, slots=True)
class Table:
    """Plain text; line breaks in headers are where narrow formats break them."""

    title: str
    headers: tuple[str, ...]
    body: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]  # footnote 1 first
    facts: Facts
    records: Facts  # file -> what distinguishes its run


@dataclass(frozen=True, slots=True)
class Page:
    """What another package makes of its own records: markdown without a title, and images by file format."""

    markdown: str
    images: dict[str, bytes]


def terminal(table: Table) -> str:
    """For the end of a terminal session: the table, then notes and facts, wrapped."""
    from tabulate import tabulate

    body = [[entry.text + (f" ({entry.note})" if entry.note else "") for entry in entries] for entries in table.body]
    # As a row like others: tabulate would make every column two wider than its header.
    rows = [list(table.headers), *body]
    lines = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=_alignments(table)).splitlines()
    lines.insert(max(header.count("\n") for header in table.headers) + 1, "-" * max(map(len, lines)))
    notes = [f"({number}) {note}" for number, note in enumerate(table.notes, start=1)]
    notes += [f"{name}: {text}" for name, text in table.facts.items() if text]
    return "\n".join([*lines, *(textwrap.fill(note, _TERMINAL_COLUMNS, subsequent_indent="  ") for note in notes)])


def pipe_table(table: Table) -> str:
    """For GitHub: the table alone."""
    from tabulate import tabulate

    def entry_text(entry: Entry) -> str:
        text = markdown_text(entry.text)
        text = f"**{text}**" if entry.bold else text
        return f"{text} <sup>{entry.note}</sup>" if entry.note else text

    headers = [markdown_text(header) for header in table.headers]
    body = [list(map(entry_text, entries)) for entries in table.body]
    return tabulate(body, headers, tablefmt="pipe", disable_numparse=True, colalign=_alignments(table))


def markdown_records(records: Facts, results: str) -> list[str]:
    """Links to the raw records, and what tells one from another."""
    lines = ["Raw records:", ""] if records else []
    for number, (file, detail) in enumerate(records.items(), start=1):
        prefix = f"R{number}: " if len(records) > 1 else ""
        lines.append(f"- {prefix}[{file}]({results}/{file})" + (f" ({markdown_text(detail)})" if detail else ""))
    return lines


def latex_float(table: Table) -> str:
    r"""For a paper: a float with caption, label and notes; needs \usepackage{booktabs}."""

    def entry_text(entry: Entry) -> str:
        text = _latex(entry.text)
        text = rf"\textbf{{{text}}}" if entry.bold else text
        return f"{text}$^{{{entry.note}}}$" if entry.note else text

    def header_text(header: str) -> str:
        lines = _latex(header).split("\n")
        return lines[0] if len(lines) == 1 else r"\shortstack{" + r" \\ ".join(lines) + "}"

    label = re.sub("[^a-z0-9]+", "-", table.title.lower())
    facts = "; ".join([table.title, *(f"{name}: {text}" for name, text in table.facts.items() if text)])
    notes = [f"$^{{{number}}}$ {_latex(note)}." for number, note in enumerate(table.notes, start=1)]
    several = len(table.records) > 1
    for number, (file, detail) in enumerate(table.records.items(), start=1):
        name = _escape_latex(file).replace("/", r"/\allowbreak ").replace("-", r"-\allowbreak ")
        about = f" ({_latex(detail)})" if detail else ""
        notes.append(f"{f'R{number}: ' if several else 'Raw record: '}\\texttt{{{name}}}{about}.")
    lines = [
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_latex(facts)}.}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{''.join(alignment[0] for alignment in _alignments(table))}}}",
        r"\toprule",
        " & ".join(map(header_text, table.headers)) + r" \\",
        r"\midrule",
        *(" & ".join(map(entry_text, entries)) + r" \\" for entries in table.body),
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\smallskip\raggedright", *notes] if notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _alignments(table: Table) -> tuple[str, ...]:
    columns = zip(*table.body, strict=True)
    return tuple("right" if any(e.text[:1].isdigit() for e in column) else "left" for column in columns)


_MARKDOWN_SPECIAL = str.maketrans(
    {"\n": " ", "\\": "\\\\", "|": "\\|", "*": "\\*", "`": "\\`", "<": "&lt;", ">": "&gt;"}
)
_LATEX_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "{}$&#%_"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "∞": r"$\infty$",
        MISSING: "--",
    }
)


def markdown_text(text: str) -> str:
    """Escaped for GitHub."""
    return text.translate(_MARKDOWN_SPECIAL)


def _escape_latex(text: str) -> str:
    return text.translate(_LATEX_SPECIAL)


def _latex(text: str) -> str:
    """Escaped, with the two words that papers write as Greek letters."""
    return re.sub(r"\b(alpha|gamma)\b(?!\\_)", r"$\\\1$", _escape_latex(text))
