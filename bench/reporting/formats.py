"""Render finished tables for the terminal, for GitHub and for LaTeX, so that all three show the same."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence

from tabulate import tabulate

from bench.reporting.table import DERIVED, MISSING, Entry, Table

FIGURE = "figure-{}.svg"
TERMINAL_COLUMNS = 100
# In points: a line of the article class, and in \scriptsize a character and the gap between columns.
_LINE_PT, _CHARACTER_PT, _GAP_PT = 345, 3.9, 6


def _texts(table: Table, form: Callable[[Entry], str]) -> list[list[str]]:
    return [[form(entry) for entry in entries] for entries in table.body]


def alignments(table: Table) -> tuple[str, ...]:
    """Return the side of each column: numbers stand at the right."""
    columns = zip(*table.body, strict=True)
    return tuple("right" if any(e.text.lstrip("+-")[:1].isdigit() for e in column) else "left" for column in columns)


# Terminal
def terminal(table: Table) -> str:
    """Return the table, then its notes and facts, wrapped to the width of a terminal."""

    def entry_text(entry: Entry) -> str:
        return entry.text + (" *" if entry.bold else "") + (f" ({entry.note})" if entry.note else "")

    # Headers go in as a row like others: tabulate would make every column two wider than its header.
    rows = [list(table.headers), *_texts(table, entry_text)]
    lines = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=alignments(table)).splitlines()
    lines.insert(max(header.count("\n") for header in table.headers) + 1, "-" * max(map(len, lines)))
    any_bold = any(entry.bold for entries in table.body for entry in entries)
    notes = [f"* {table.facts.get('bold', 'the best')}"] if any_bold else []
    notes += [f"({number}) {note}" for number, note in enumerate(table.notes, start=1)]
    notes += [f"{name}: {text}" for name, text in table.facts.items() if text and name != "bold"]
    return "\n".join([*lines, *(textwrap.fill(note, TERMINAL_COLUMNS, subsequent_indent="  ") for note in notes)])


def terminal_page(tables: Sequence[Table]) -> str:
    """Return several tables for the terminal, each under its title."""
    return "\n".join(f"{table.title}\n\n{terminal(table)}\n" for table in tables)


# GitHub
_MARKDOWN_SPECIAL = str.maketrans({"\n": " ", "\\": "\\\\", "|": "\\|", "*": "\\*", "`": "\\`", "<": "&lt;", ">": "&gt;"})


def markdown_text(text: str) -> str:
    """Return a text with the characters escaped that mean something in markdown."""
    return text.translate(_MARKDOWN_SPECIAL)


def pipe_table(table: Table) -> str:
    """Return the table alone, for GitHub."""

    def entry_text(entry: Entry) -> str:
        text = f"**{markdown_text(entry.text)}**" if entry.bold else markdown_text(entry.text)
        return f"{text} <sup>{entry.note}</sup>" if entry.note else text

    headers = [markdown_text(header) for header in table.headers]
    body = _texts(table, entry_text)
    return tabulate(body, headers, tablefmt="pipe", disable_numparse=True, colalign=alignments(table))


def markdown(table: Table, results: str = "") -> str:
    """Return for GitHub the table, its footnotes, its caption, its figures and its records.

    Args:    results: path to the folder of results from where the text will lie; figures lie beside it
    """
    records = ["Raw records:", ""] if table.records else []
    for number, (file, detail) in enumerate(table.records.items(), start=1):
        prefix = f"R{number}: " if len(table.records) > 1 else ""
        records.append(f"- {prefix}[{file}]({results}/{file})" + (f" ({markdown_text(detail)})" if detail else ""))
    blocks = (
        pipe_table(table),
        "\n".join(f"{number}. {markdown_text(note)}" for number, note in enumerate(table.notes, start=1)),
        "\n".join(f"- **{name}**: {markdown_text(text)}" for name, text in table.facts.items() if text),
        *(f"![{table.title}]({FIGURE.format(name)})" for name in table.figures),
        "\n".join(records),
    )
    return "\n\n".join(filter(None, blocks))


def markdown_sections(tables: Sequence[Table], results: str = "", *, heading: str = "##", page: str = "") -> str:
    """Return several tables for GitHub, each under its title; the first one's may be the title of the page."""
    sections = []
    for number, table in enumerate(tables):
        sections += [f"{heading} {markdown_text(table.title)}"] if number or table.title != page else []
        sections.append(markdown(table, results))
    return "\n\n".join(sections)


def markdown_page(title: str, tables: Sequence[Table], *, results: str = "..") -> str:
    """Return a page of tables for GitHub; the arguments are those of `markdown`."""
    return f"# {title}\n\n_{DERIVED}_\n\n{markdown_sections(tables, results, page=title)}\n"


# LaTeX
_LATEX_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "{}$&#%_"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "∞": r"$\infty$", MISSING: "--"}
)
_SHRUNK_TO_THE_LINE = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def _latex(text: str) -> str:
    """Escape a text; papers write alpha and gamma as Greek letters."""
    return re.sub(r"\b(alpha|gamma)\b(?!\\_)", r"$\\\1$", text.translate(_LATEX_SPECIAL))


def latex_page(tables: Sequence[Table]) -> str:
    """Return tables for a paper, with a comment that names the packages that they need.

    The caption of a table without records refers to the table before it for machine, versions and settings.
    """
    packages = "booktabs,graphicx,rotating" if any(map(is_wide, tables)) else "booktabs"
    seen: Counter[str] = Counter()
    floats, main = [], ""
    for table in tables:
        label = f"tab:{slug(table.title)}"
        seen[label] += 1
        label += f"-{seen[label]}" if seen[label] > 1 else ""
        main = label if table.records else main
        floats.append(latex_float(table, label=label, same_rows="" if table.records else main))
    return f"% Needs \\usepackage{{{packages}}}.\n" + "\n".join(floats)


def is_wide(table: Table) -> bool:
    """Return whether LaTeX would set the table wider than a line, judged by its longest texts."""
    columns = zip(table.headers, *([entry.text for entry in entries] for entries in table.body), strict=True)
    longest = [max(len(line) for text in column for line in text.split("\n")) for column in columns]
    return _CHARACTER_PT * sum(longest) + _GAP_PT * len(longest) > _LINE_PT


def latex_float(table: Table, *, label: str, same_rows: str = "") -> str:
    r"""Return a float with caption, label and notes. One that is wider than a line is turned and gets a whole page.

    Args:    same_rows: label of the table whose caption holds the facts of these rows that this caption lacks
    """

    def entry_text(entry: Entry) -> str:
        text = rf"\textbf{{{_latex(entry.text)}}}" if entry.bold else _latex(entry.text)
        return f"{text}$^{{{entry.note}}}$" if entry.note else text

    def header_text(header: str) -> str:
        lines = _latex(header).split("\n")
        return lines[0] if len(lines) == 1 else r"\shortstack{" + r" \\ ".join(lines) + "}"

    wide = is_wide(table)
    environment = "sidewaystable" if wide else "table"
    facts = "; ".join([table.title, *(f"{name}: {text}" for name, text in table.facts.items() if text)])
    rest = f" Formula, machine, versions, commit and settings are those of Table~\\ref{{{same_rows}}}." if same_rows else ""
    notes = [f"$^{{{number}}}$ {_latex(note)}." for number, note in enumerate(table.notes, start=1)]
    for number, (file, detail) in enumerate(table.records.items(), start=1):
        name = file.translate(_LATEX_SPECIAL).replace("/", r"/\allowbreak ").replace("-", r"-\allowbreak ")
        prefix = f"R{number}: " if len(table.records) > 1 else "Raw record: "
        notes.append(f"{prefix}\\texttt{{{name}}}{f' ({_latex(detail)})' if detail else ''}.")
    lines = [
        rf"\begin{{{environment}}}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption[{{{_latex(table.title)}}}]{{\scriptsize {_latex(facts)}.{rest}}}",
        rf"\label{{{label}}}",
        *([_SHRUNK_TO_THE_LINE] if wide else []),
        rf"\begin{{tabular}}{{{''.join(alignment[0] for alignment in alignments(table))}}}",
        r"\toprule",
        " & ".join(map(header_text, table.headers)) + r" \\",
        r"\midrule",
        *(" & ".join(entries) + r" \\" for entries in _texts(table, entry_text)),
        r"\bottomrule",
        r"\end{tabular}" + ("}" if wide else ""),
        *([r"\par\smallskip\raggedright", *notes] if notes else []),
        rf"\end{{{environment}}}",
    ]
    return "\n".join(lines) + "\n"


# Names
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
        names = [slug(f"{name} {word}") if len(alike[name]) > 1 else name for name, word in zip(names, words, strict=True)]
    return names
