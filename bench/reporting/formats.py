"""Renders a finished table for the terminal, for GitHub and for LaTeX, so that all three say the same."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence

from bench.reporting.table import MISSING, Entry, Facts, Table

_TERMINAL_COLUMNS = 130

# Of a line of the article class, and of a character and the gap between columns in \scriptsize.
_LINE_PT, _CHARACTER_PT, _GAP_PT = 345, 3.9, 6


def terminal(table: Table) -> str:
    """For the end of a terminal session: the table, then notes and facts, wrapped."""
    from tabulate import tabulate

    def entry_text(entry: Entry) -> str:
        return entry.text + (" *" if entry.bold else "") + (f" ({entry.note})" if entry.note else "")

    body = [list(map(entry_text, entries)) for entries in table.body]
    # As a row like others: tabulate would make every column two wider than its header.
    rows = [list(table.headers), *body]
    lines = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=alignments(table)).splitlines()
    lines.insert(max(header.count("\n") for header in table.headers) + 1, "-" * max(map(len, lines)))
    any_bold = any(entry.bold for entries in table.body for entry in entries)
    notes = [f"* {table.facts.get('bold', 'the best')}"] if any_bold else []
    notes += [f"({number}) {note}" for number, note in enumerate(table.notes, start=1)]
    notes += [f"{name}: {text}" for name, text in table.facts.items() if text and name != "bold"]
    return "\n".join([*lines, *(textwrap.fill(note, _TERMINAL_COLUMNS, subsequent_indent="  ") for note in notes)])


def terminal_page(tables: Sequence[Table]) -> str:
    """Return several tables for the terminal, each under its title."""
    return "\n".join(f"{table.title}\n\n{terminal(table)}\n" for table in tables)


def pipe_table(table: Table) -> str:
    """For GitHub: the table alone."""
    from tabulate import tabulate

    def entry_text(entry: Entry) -> str:
        text = markdown_text(entry.text)
        text = f"**{text}**" if entry.bold else text
        return f"{text} <sup>{entry.note}</sup>" if entry.note else text

    headers = [markdown_text(header) for header in table.headers]
    body = [list(map(entry_text, entries)) for entries in table.body]
    return tabulate(body, headers, tablefmt="pipe", disable_numparse=True, colalign=alignments(table))


def markdown_records(records: Facts, results: str) -> list[str]:
    """Links to the raw records, and what tells one from another."""
    lines = ["Raw records:", ""] if records else []
    for number, (file, detail) in enumerate(records.items(), start=1):
        prefix = f"R{number}: " if len(records) > 1 else ""
        lines.append(f"- {prefix}[{file}]({results}/{file})" + (f" ({markdown_text(detail)})" if detail else ""))
    return lines


def markdown(table: Table, results: str, *, figures: str = "figure-{}.svg") -> str:
    """Return for GitHub the table, its footnotes, its caption, its figures and its records.

    Args:    results: path to the folder of records from where the text will lie; figures: path of a figure by its name
    """
    blocks = (
        pipe_table(table),
        "\n".join(f"{number}. {markdown_text(note)}" for number, note in enumerate(table.notes, start=1)),
        "\n".join(f"- **{name}**: {markdown_text(text)}" for name, text in table.facts.items() if text),
        *(f"![{table.title}]({figures.format(name)})" for name in table.figures),
        "\n".join(markdown_records(table.records, results)),
    )
    return "\n\n".join(block for block in blocks if block)


def slug(text: str) -> str:
    """Return a text as a part of a file name, an anchor or a label."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def distinct_names(candidates: Sequence[Sequence[str]]) -> list[str]:
    """Return a file name for each item: its first words, and more of its words only if another item has the same name.

    Args:    candidates: of each item its words, as many as of any other; the last ones must tell all items apart
    """
    names = [slug(words[0]) for words in candidates]
    for words in zip(*(words[1:] for words in candidates), strict=True):
        alike: dict[str, set[str]] = {}
        for name, word in zip(names, words, strict=True):
            alike.setdefault(name, set()).add(word)
        names = [
            slug(f"{name} {word}") if len(alike[name]) > 1 else name for name, word in zip(names, words, strict=True)
        ]
    return names


def labelled(tables: Sequence[Table]) -> tuple[str, ...]:
    """A LaTeX label for each, of its title; numbered from the second of one title on."""
    seen: Counter[str] = Counter()
    labels = []
    for table in tables:
        label = f"tab:{slug(table.title)}"
        seen[label] += 1
        labels.append(label if seen[label] == 1 else f"{label}-{seen[label]}")
    return tuple(labels)


def latex_packages(tables: Sequence[Table]) -> str:
    """The comment on top of a LaTeX file of these tables."""
    packages = "booktabs,graphicx,rotating" if any(map(is_wide, tables)) else "booktabs"
    return f"% Needs \\usepackage{{{packages}}}.\n"


def is_wide(table: Table) -> bool:
    """Whether LaTeX would set it wider than a line, by its longest texts."""
    columns = zip(table.headers, *([entry.text for entry in entries] for entries in table.body), strict=True)
    longest = [max(len(line) for text in column for line in text.split("\n")) for column in columns]
    return _CHARACTER_PT * sum(longest) + _GAP_PT * len(longest) > _LINE_PT


def latex_float(table: Table, *, label: str, same_rows: str | None = None) -> str:
    r"""For a paper: a float with caption, label and notes, on a page of its own and turned where it is wider than a line.

    Args:    same_rows: label of the table whose caption says of these rows what this one's does not
    """

    def entry_text(entry: Entry) -> str:
        text = _latex(entry.text)
        text = rf"\textbf{{{text}}}" if entry.bold else text
        return f"{text}$^{{{entry.note}}}$" if entry.note else text

    def header_text(header: str) -> str:
        lines = _latex(header).split("\n")
        return lines[0] if len(lines) == 1 else r"\shortstack{" + r" \\ ".join(lines) + "}"

    wide = is_wide(table)
    environment = "sidewaystable" if wide else "table"
    facts = "; ".join([table.title, *(f"{name}: {text}" for name, text in table.facts.items() if text)])
    rest = (
        rf" Formula, machine, versions, commit and settings are those of Table~\ref{{{same_rows}}}."
        if same_rows
        else ""
    )
    notes = [f"$^{{{number}}}$ {_latex(note)}." for number, note in enumerate(table.notes, start=1)]
    several = len(table.records) > 1
    for number, (file, detail) in enumerate(table.records.items(), start=1):
        name = _escape_latex(file).replace("/", r"/\allowbreak ").replace("-", r"-\allowbreak ")
        about = f" ({_latex(detail)})" if detail else ""
        notes.append(f"{f'R{number}: ' if several else 'Raw record: '}\\texttt{{{name}}}{about}.")
    lines = [
        rf"\begin{{{environment}}}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption[{_latex(table.title)}]{{\scriptsize {_latex(facts)}.{rest}}}",
        rf"\label{{{label}}}",
        *([_SHRUNK_TO_THE_LINE] if wide else []),
        rf"\begin{{tabular}}{{{''.join(alignment[0] for alignment in alignments(table))}}}",
        r"\toprule",
        " & ".join(map(header_text, table.headers)) + r" \\",
        r"\midrule",
        *(" & ".join(map(entry_text, entries)) + r" \\" for entries in table.body),
        r"\bottomrule",
        r"\end{tabular}" + ("}" if wide else ""),
        *([r"\par\smallskip\raggedright", *notes] if notes else []),
        rf"\end{{{environment}}}",
    ]
    return "\n".join(lines) + "\n"


_SHRUNK_TO_THE_LINE = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def alignments(table: Table) -> tuple[str, ...]:
    """Return the side of each column: numbers stand at the right."""
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
