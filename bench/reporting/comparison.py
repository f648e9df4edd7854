"""A comparison as text: for the terminal, and as markdown to paste in a pull request."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bench.analysis.comparison import ALPHA_MARGIN, FAILURES, POWER, WORSE, CellComparison, Comparison, Outcome, Side
from bench.analysis.rows import identity, scalar_text
from bench.reporting import captions, tables
from bench.reporting.captions import commit_text
from bench.reporting.formats import markdown_text, pipe_table, terminal
from bench.reporting.numbers import decimals, interval_text
from bench.reporting.table import MISSING, Entry, Facts, Table
from bench.reporting.tables import Row
from bench.statistics.effects import LEVEL
from bench.statistics.intervals import RatioInterval

_SHORT = {"temperature": "T", "num_draft_tokens": "k"}
_HEADERS = ("number", "BASE", "HEAD", "HEAD / BASE", "sees", "verdict")


def headline(comparison: Comparison) -> str:
    """What decides the exit status, in one line."""
    statuses = Counter(cell.status for cell in comparison.cells)
    outcomes = [outcome for cell in comparison.cells for outcome in cell.outcomes]
    verdicts = Counter((outcome.number.name, outcome.verdict) for outcome in outcomes)
    worse = [f"{name} {verdict} in {_cells(n)}" for (name, verdict), n in verdicts.items() if verdict in WORSE]
    worse += [f"{_cells(n)} {status}" for status, n in sorted(statuses.items()) if status in FAILURES]
    totals = Counter(outcome.verdict for outcome in outcomes)
    told = [f"{_cells(statuses['COMPARED'])} compared"]
    told += [f"{_cells(n)} {status}" for status, n in sorted(statuses.items()) if status in ("BASE INVALID", "NEW")]
    told += [f"{count} {verdict}" for verdict, count in sorted(totals.items()) if verdict not in WORSE]
    return f"{'REGRESSION: ' + ', '.join(worse) if worse else 'No regression'}; {', '.join(told)}"


def terminal_text(comparison: Comparison) -> str:
    """For the terminal: the tables, what they rest on, and the headline last."""
    blocks = []
    for table in suite_tables(comparison):
        blocks += [table.title, terminal(table)]
    return "\n\n".join([*blocks, headline(comparison)])


def markdown(comparison: Comparison) -> str:
    """For GitHub: the headline, the tables, and what they rest on."""
    blocks = [f"### specheat: {markdown_text(comparison.base.label)} → {markdown_text(comparison.head.label)}"]
    blocks.append(f"**{markdown_text(headline(comparison))}**")
    for table in suite_tables(comparison):
        blocks += [f"#### {markdown_text(table.title)}", pipe_table(table)]
        blocks.append("\n".join(f"{n}. {markdown_text(note)}" for n, note in enumerate(table.notes, start=1)))
        blocks.append("\n".join(f"- **{name}**: {markdown_text(text)}" for name, text in table.facts.items()))
    return "\n\n".join(filter(None, blocks)) + "\n"


def suite_tables(comparison: Comparison) -> tuple[Table, ...]:
    """One a suite; what all have in common stands below the last."""
    suites = dict.fromkeys(cell.row.record.cell.suite for cell in comparison.cells)
    made = [
        _table(suite, [cell for cell in comparison.cells if cell.row.record.cell.suite == suite]) for suite in suites
    ]
    return (*made[:-1], replace(made[-1], facts=made[-1].facts | _facts(comparison)))


def _table(suite: str, cells: Sequence[CellComparison]) -> Table:
    rows = [cell.row for cell in cells]
    varying, constant = tables.split_identity(rows)
    notes: dict[str, int] = {}
    body = []
    for cell in cells:
        of_row = identity(cell.row)
        texts = [scalar_text(name, of_row.get(name)) for name in varying]
        for line in _lines(cell, notes):
            body.append((*map(Entry, texts), *line))
            texts = [""] * len(texts)  # once a cell
    headers = (*(_SHORT.get(name, name) for name in varying), *_HEADERS)
    every = ", ".join(f"{name} {scalar_text(name, value)}" for name, value in constant.items())
    return Table(suite, headers, tuple(body), tuple(notes), {"every cell": every}, {})


def _lines(cell: CellComparison, notes: dict[str, int]) -> Iterator[tuple[Entry, ...]]:
    """The entries of a cell behind its identity; footnotes are added to `notes`."""

    def noted(text: str, reason: str, *, bold: bool) -> Entry:
        reason = " ".join(reason.split())  # error messages may have several lines
        return Entry(text, bold=bold, note=notes.setdefault(reason, len(notes) + 1) if reason else None)

    if not cell.outcomes:
        verdict = noted(cell.status, cell.reason, bold=cell.status in FAILURES)
        yield *(Entry(MISSING),) * (len(_HEADERS) - 1), verdict
    for outcome in cell.outcomes:
        verdict = noted(outcome.verdict, outcome.reason, bold=outcome.verdict in WORSE)
        values = (_value_text(outcome, rows) for rows in _rows_of_sides(cell))
        yield (
            *map(Entry, (outcome.number.name, *values, _effect_text(outcome), _minimum_text(outcome))),
            verdict,
        )


def _rows_of_sides(cell: CellComparison) -> tuple[list[Row], list[Row]]:
    """Of BASE and of HEAD, a row a launch."""
    launches = ((cell.base, cell.head), *cell.relaunched)
    base, head = ([launch[side] for launch in launches] for side in (0, 1))
    return [row for row in base if row is not None], [row for row in head if row is not None]


def _value_text(outcome: Outcome, rows: Sequence[Row]) -> str:
    """Mean over launches, to the digits that the first one's interval leaves meaningful."""
    values = [value for row in rows if (value := outcome.number.of_cell(row.record)) is not None]
    if not values:
        return MISSING
    scale = 1000.0 if outcome.number.unit == "ms/token" else 1.0
    mean = sum(value.estimate for value in values) / len(values)
    return f"{mean * scale:.{decimals(values[0], scale=scale)}f}"


def _effect_text(outcome: Outcome) -> str:
    if outcome.effect is None:
        return MISSING
    estimate, (low, high) = outcome.effect.estimate, outcome.effect.interval
    if outcome.number.unit == "points":
        points = RatioInterval(100 * estimate, 100 * low, 100 * high, 0, 0.95)
        return f"{interval_text(points)} points"
    return interval_text(RatioInterval(_exp(estimate), _exp(low), _exp(high), 0, 0.95))


def _minimum_text(outcome: Outcome) -> str:
    if outcome.minimum is None:
        return MISSING
    if outcome.number.unit == "points":
        return f"{100 * outcome.minimum:.1f} points"
    change = _exp(outcome.minimum) - 1
    return f"{change:.1%}" if change <= 1 else "over 100%"


def _exp(value: float) -> float:
    return math.exp(min(value, _MAX_LOG))


_MAX_LOG = 700.0  # of a float


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


# What the tables rest on
def _facts(comparison: Comparison) -> Facts:
    runs = "measured in turns, so that what the machine does cancels"
    if launches := len(comparison.base.relaunched):
        runs += f"; {1 + launches} launches of each side, whose spread is in the intervals"
    if not comparison.interleaved:
        runs = (
            "of their own: seconds drift with the machine, so that their intervals hold, besides the prompts, the spread of "
            "HEAD / BASE of AR over several runs a side, and of one are not judged; gamma has AR beside it in each run"
        )
    rows = {
        "BASE": [cell.base for cell in comparison.cells if cell.base is not None],
        "HEAD": [cell.head for cell in comparison.cells if cell.head is not None],
    }
    machines = dict.fromkeys(captions.machine_text(row.run.environment) for of_side in rows.values() for row in of_side)
    sides = {"BASE": comparison.base, "HEAD": comparison.head}
    return {
        "gamma": captions.FORMULA.removeprefix("gamma = "),
        "HEAD / BASE": "alpha: HEAD - BASE. 95 % of each alone, over prompts, which are left out of both sides at once",
        "verdict": f"at {LEVEL:g} for a difference, two-sided, and for SAME, two one-sided tests within "
        f"{comparison.margin:.1%} or {100 * ALPHA_MARGIN:g} points of alpha; each family corrected by Holm's method over "
        f"{comparison.num_tests} numbers",
        "sees": f"the smallest difference that would be seen with a probability of {POWER:.0%}",
        "runs": runs,
        "machine": "; ".join(machines),
        "versions": _versions({name: _environments(of_side) for name, of_side in rows.items()}),
        **{name: f"{side.label}: {_commits(side, rows[name])}" for name, side in sides.items()},
    }


def _environments(rows: Sequence[Row]) -> tuple[Mapping[str, object], ...]:
    return tuple({row.file: row.run.environment for row in rows}.values())


def _versions(environments: Mapping[str, Sequence[Mapping[str, object]]]) -> str:
    """Of each library; of both sides where they differ, which is a thing to compare and no reason to refuse."""
    found = []
    for library in captions.VERSIONS:
        of_side = {
            name: ", ".join(dict.fromkeys(str(env[library]) for env in of_side if library in env)) or "none"
            for name, of_side in environments.items()
        }
        versions = dict.fromkeys(text for name, text in of_side.items() if environments[name])
        if len(versions) > 1:
            found.append(f"{library} {', '.join(f'{text} ({name})' for name, text in of_side.items())}")
        elif versions and "none" not in versions:
            found.append(f"{library} {next(iter(versions))}")
    return "; ".join(found) or "unknown"


def _commits(side: Side, rows: Sequence[Row]) -> str:
    """Commits, a plus marking uncommitted changes, and files."""
    commits = dict.fromkeys(f"commit {commit_text(row.run)}" for row in rows)
    return ", ".join(itertools.chain(commits, sorted({row.file for row in rows})))
