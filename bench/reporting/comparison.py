"""A comparison in words: for the terminal, and as markdown to paste in a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.analysis.comparison import ALPHA_MARGIN, FAILURES, POWER, WORSE, CellComparison, Comparison, Outcome
from bench.analysis.rows import Row, split_identity
from bench.reporting.captions import FORMULA, VERSIONS, commit_text, listing, machine_text
from bench.reporting.columns import identity_columns
from bench.reporting.formats import markdown_sections, markdown_text, terminal_page
from bench.reporting.numbers import decimals, exp, interval_text
from bench.reporting.table import MISSING, Entry, Facts, Line, Notes, Table, table_of
from bench.statistics.effects import LEVEL

_HEADERS = ("number", "BASE", "HEAD", "HEAD / BASE", "sees", "verdict")


def headline(comparison: Comparison) -> str:
    """Return in one line what decides the exit status."""
    outcomes = [outcome for cell in comparison.cells for outcome in cell.outcomes]
    statuses = sorted(Counter(cell.status for cell in comparison.cells).items())
    verdicts = Counter((outcome.number.name, outcome.verdict) for outcome in outcomes)
    totals = Counter(outcome.verdict for outcome in outcomes)
    worse = [f"{name} {verdict} in {_cells(n)}" for (name, verdict), n in verdicts.items() if verdict in WORSE]
    worse += [f"{_cells(n)} {status}" for status, n in statuses if status in FAILURES]
    others = [f"{_cells(dict(statuses).get('COMPARED', 0))} compared"]
    others += [f"{_cells(n)} {status}" for status, n in statuses if status in ("BASE INVALID", "NEW")]
    others += [f"{count} {verdict}" for verdict, count in sorted(totals.items()) if verdict not in WORSE]
    return f"{'REGRESSION: ' + ', '.join(worse) if worse else 'No regression'}; {', '.join(others)}"


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def terminal_text(comparison: Comparison) -> str:
    """Return the comparison for the terminal: the tables with their facts, and the headline last."""
    return f"{terminal_page(suite_tables(comparison))}\n{headline(comparison)}"


def markdown(comparison: Comparison) -> str:
    """Return the comparison for GitHub: the headline, then the tables with their facts."""
    title = f"### specheat: {markdown_text(comparison.base.label)} → {markdown_text(comparison.head.label)}"
    tables = markdown_sections(suite_tables(comparison), heading="####")
    return f"{title}\n\n**{markdown_text(headline(comparison))}**\n\n{tables}\n"


def suite_tables(comparison: Comparison) -> tuple[Table, ...]:
    """Return one table for each suite. The last one has the facts that all share."""
    suites: dict[str, list[CellComparison]] = {}
    for cell in comparison.cells:
        suites.setdefault(cell.row.record.cell.suite, []).append(cell)
    *made, last = (_table(suite, cells) for suite, cells in suites.items())
    return (*made, replace(last, facts=last.facts | _facts(comparison)))


def _table(suite: str, cells: Sequence[CellComparison]) -> Table:
    rows = [cell.row for cell in cells]
    columns, notes = identity_columns(rows), Notes()
    lines: list[Line] = []
    for cell in cells:
        texts = [column.text(cell.row) for column in columns]
        for line in _lines(cell, notes):
            lines.append((*texts, *line))
            texts = [""] * len(texts)  # a cell is named on its first line only
    headers = (*(column.narrow or column.header for column in columns), *_HEADERS)
    return table_of(suite, headers, lines, {"every cell": listing(split_identity(rows)[1])}, notes)


def _lines(cell: CellComparison, notes: Notes) -> Iterator[tuple[str | Entry, ...]]:
    """Yield what follows the identity of a cell: one line for each number."""
    if not cell.outcomes:
        verdict = Entry(cell.status, bold=cell.status in FAILURES, note=notes.number(cell.reason))
        yield *(MISSING,) * (len(_HEADERS) - 1), verdict
    # Of BASE and of HEAD the rows of all launches; a relaunch may lack the cell.
    sides = [[row for row in launches if row] for launches in zip((cell.base, cell.head), *cell.relaunched, strict=True)]
    for outcome in cell.outcomes:
        verdict = Entry(outcome.verdict, bold=outcome.verdict in WORSE, note=notes.number(outcome.reason))
        values = (_value_text(outcome, rows) for rows in sides)
        yield outcome.number.name, *values, _effect_text(outcome), _minimum_text(outcome), verdict


def _value_text(outcome: Outcome, rows: Sequence[Row]) -> str:
    """Return the mean over launches, to the digits that the interval of the first one leaves meaningful."""
    values = [value for row in rows if (value := outcome.number.of_cell(row.record)) is not None]
    if not values:
        return MISSING
    scale = 1000.0 if outcome.number.unit == "ms/token" else 1.0
    mean = sum(value.estimate for value in values) / len(values)
    return f"{mean * scale:.{decimals(values[0], scale=scale)}f}"


def _effect_text(outcome: Outcome) -> str:
    if outcome.effect is None:
        return MISSING
    if outcome.number.unit == "points":
        return f"{interval_text(outcome.effect.interval.transformed(lambda alpha: 100 * alpha))} points"
    return interval_text(outcome.effect.interval.transformed(exp))


def _minimum_text(outcome: Outcome) -> str:
    if outcome.minimum is None:
        return MISSING
    if outcome.number.unit == "points":
        return f"{100 * outcome.minimum:.1f} points"
    change = exp(outcome.minimum) - 1
    return f"{change:.1%}" if change <= 1 else "over 100%"


# What the tables rest on
def _facts(comparison: Comparison) -> Facts:
    runs = "measured in turns, so that drifts of the machine cancel"
    if launches := len(comparison.base.relaunched):
        runs += f"; {1 + launches} launches of each side, whose spread is in the intervals"
    if not comparison.interleaved:
        runs = (
            "separate, so that seconds drift with the machine in between: their intervals include, besides the prompts, the "
            "spread of HEAD / BASE of AR over several runs of each side, and those of one run are not judged; gamma has AR "
            "beside it in each run"
        )
    sides = {"BASE": comparison.base, "HEAD": comparison.head}
    rows = {
        "BASE": [cell.base for cell in comparison.cells if cell.base is not None],
        "HEAD": [cell.head for cell in comparison.cells if cell.head is not None],
    }
    machines = dict.fromkeys(machine_text(row.run.environment) for of_side in rows.values() for row in of_side)
    return {
        "gamma": FORMULA.removeprefix("gamma = "),
        "HEAD / BASE": "alpha: HEAD - BASE. 95 % of each alone, over prompts, which are left out of both sides at once",
        "verdict": f"at {LEVEL:g} for a difference, two-sided, and for SAME, two one-sided tests within "
        f"{comparison.margin:.1%} or {100 * ALPHA_MARGIN:g} points of alpha; each family corrected by Holm's method over "
        f"{comparison.num_tests} numbers",
        "sees": f"the smallest difference that would be seen with a probability of {POWER:.0%}",
        "runs": runs,
        "machine": "; ".join(machines),
        "versions": "; ".join(filter(None, (_version(library, rows) for library in VERSIONS))) or "unknown",
        **{name: f"{side.label}: {_commits(rows[name])}" for name, side in sides.items()},
    }


def _version(library: str, rows: dict[str, list[Row]]) -> str:
    """Return the versions of a library, by side where the sides differ: that is a thing to compare, no reason to refuse."""
    of_sides = {
        name: ", ".join(dict.fromkeys(str(env[library]) for row in of_side if library in (env := row.run.environment)))
        for name, of_side in rows.items()
        if of_side
    }
    if len(set(of_sides.values())) > 1:
        by_side = ", ".join(f"{versions or 'none'} ({name})" for name, versions in of_sides.items())
        return f"{library} {by_side}"
    return f"{library} {versions}" if (versions := next(iter(of_sides.values()), "")) else ""


def _commits(rows: Sequence[Row]) -> str:
    """Return commits and files; + marks uncommitted changes."""
    commits = dict.fromkeys(f"commit {commit_text(row.run)}" for row in rows)
    return ", ".join((*commits, *sorted({row.file for row in rows})))
