"""The ledger as tables: for each claim about temperature an effect, its interval and a verdict, on one pair and one machine.

Claims and thresholds are fixed in code (`bench.claims`). The test is two-sided at the threshold. Holm's method corrects the p
values over all claims of a part that could be tested. Only then the side on which the effect lies decides between SUPPORTED
and REFUTED.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.claims.claim import Claim, LedgerRow, Rule
from bench.records.marks import NO_MARKS, Marks
from bench.reporting.formats import markdown_sections, markdown_text
from bench.reporting.numbers import exp, interval_text
from bench.reporting.table import MISSING, Entry, Notes, Table, table_of, with_mark
from bench.statistics.effects import LEVEL

_STATEMENT_COLUMNS = 46  # width of the first column in the terminal
_HEADERS = ("claim", "holds if", "effect [95 %]", "p", "p, Holm", "verdict", "records")
_PARTS = {"paper": "confirmatory claims, of the paper", "contested": "exploratory claims, contested"}
_FACTS = {
    "paper": "Ouyang et al. 2024, arXiv 2410.10141",
    "holds if": "the effect lies on this side of the threshold, or within this margin, fixed in code; points are hundredths",
    "effect": "from counts and seconds of one run, chosen by a fixed rule, without INVALID cells, paired by prompt",
    "p": f"two-sided at the threshold or the nearer margin; Holm: corrected over the tested claims of a part, to {LEVEL:g}",
    "verdict": "EQUIVALENT if the effect surely lies within the margin in brackets, to both sides of 0; else SUPPORTED or "
    "REFUTED by the side on which it lies; INCONCLUSIVE if the corrected p is higher, or if there are too few prompts to test",
}


def tables(pair: str, rows: Sequence[LedgerRow], *, narrow: bool = False, marks: Marks = NO_MARKS) -> tuple[Table, ...]:
    """Return the parts of the ledger of a pair, with the facts at the last; narrow: for the terminal, without records."""
    parts = {source: [row for row in rows if row.claim.source == source] for source in _PARTS}
    made = [_table(f"pair {pair}: {_PARTS[source]}", of_part, narrow, marks) for source, of_part in parts.items() if of_part]
    return *made[:-1], replace(made[-1], facts=made[-1].facts | _FACTS)


def _table(title: str, rows: Sequence[LedgerRow], narrow: bool, marks: Marks) -> Table:
    files = list(dict.fromkeys(file for row in rows if row.finding is not None for file in row.finding.files))
    notes = Notes()
    shown = [place for place, header in enumerate(_HEADERS) if not (narrow and header == "records")]
    lines = []
    for row in rows:
        claim, finding = row.claim, row.finding
        statement = f"{claim.name}: {claim.statement}"
        note = "" if finding else f"run {claim.command}"
        entries = (
            textwrap.fill(statement, _STATEMENT_COLUMNS) if narrow else statement,
            _rule_text(claim),
            _effect_text(row),
            _p_text(row.p),
            _p_text(row.p_holm),
            Entry(row.verdict, note=notes.number(note)),
            ", ".join(f"R{files.index(file) + 1}" for file in finding.files) if finding else MISSING,
        )
        lines.append([entries[place] for place in shown])
    headers = [_HEADERS[place] for place in shown]
    ledger = table_of(title, headers, lines, {}, notes, dict.fromkeys(files, ""))
    marked = [f"R{number}: {marks.of([file])}" for number, file in enumerate(files, start=1) if marks.of([file])]
    return with_mark(ledger, " ".join(marked))


def page(ledgers: Mapping[str, Sequence[LedgerRow]], *, results: str, marks: Marks = NO_MARKS) -> str:
    """Return the ledgers as markdown, two sections for each pair.

    Args:    results: path to the folder of results from where the text will lie
    """
    blocks = []
    for name, rows in ledgers.items():
        details = "\n".join(_detail(row) for row in rows)
        measured = f"What was measured, and the commands for it:\n\n{details}"
        blocks += [markdown_sections(tables(name, rows, marks=marks), results), measured]
    return "\n\n".join(blocks)


def _detail(row: LedgerRow) -> str:
    claim, finding = row.claim, row.finding
    compared = f" ({markdown_text(finding.detail)})" if finding else ""
    commands = ", ".join(f"`{command}`" for command in (finding.commands if finding else (claim.command,)))
    return f"- **{claim.name}**: {markdown_text(claim.measured)}{compared}. {commands}"


def _rule_text(claim: Claim) -> str:
    rule = claim.rule
    margin = "" if claim.margin is None else f" ({_scaled(rule, claim.margin):.3g})"
    return f"{rule.unit} {rule.side} {_scaled(rule, rule.threshold):.3g}{margin}"


def _effect_text(row: LedgerRow) -> str:
    if row.finding is None or not math.isfinite(row.finding.effect.estimate):
        return MISSING
    effect, rule = row.finding.effect, row.claim.rule
    if not effect.testable:
        return f"{_scaled(rule, effect.estimate):.2f}"
    return interval_text(effect.interval.transformed(lambda value: _scaled(rule, value)))


def _scaled(rule: Rule, value: float) -> float:
    """Return an effect in the unit of its rule; effects on ratios are logarithms."""
    if rule.unit == "ratio":
        return exp(value)
    return 100 * value if rule.unit == "points" else value


def _p_text(p: float | None) -> str:
    if p is None:
        return MISSING
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
