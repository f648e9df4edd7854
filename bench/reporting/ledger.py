"""The ledger as tables: for each claim about temperature an effect, its interval and a verdict, on one pair and one machine.

Claims and thresholds are fixed in code (`bench.claims`), before any record is looked at. The test is two-sided at the
threshold. Holm's method corrects the p values over all claims of the ledger that could be tested. Only then the side on which
the effect lies decides between SUPPORTED and REFUTED.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from bench.claims.claim import LedgerRow, Rule
from bench.records.marks import NO_MARKS, Marks
from bench.reporting.formats import markdown, markdown_text
from bench.reporting.numbers import exp, interval_text
from bench.reporting.table import MISSING, Entry, Notes, Table, table_of, with_mark
from bench.statistics.effects import LEVEL

_STATEMENT_COLUMNS = 46  # width of the first column in the terminal
_HEADERS = ("claim", "source", "holds if", "effect [95 %]", "p", "p, Holm", "verdict", "records")
_FACTS = {
    "holds if": "the effect lies on this side of the threshold, which is fixed in code; points are hundredths of alpha",
    "effect": "from counts and seconds of the newest record of each cell (of KD matrices the newest that can be tested), "
    "without INVALID cells, paired by prompt",
    "p": f"two-sided at the threshold; Holm: corrected over all claims of the ledger that could be tested, against {LEVEL:g}",
    "verdict": "SUPPORTED or REFUTED by the side on which the effect lies; INCONCLUSIVE if the corrected p is higher, or if "
    "there are too few prompts or seeds to test",
    "paper": "Ouyang et al. 2024, arXiv 2410.10141",
}


def table(pair: str, rows: Sequence[LedgerRow], *, narrow: bool = False, marks: Marks = NO_MARKS) -> Table:
    """Return the ledger of a pair; narrow: for the terminal, without sources and records."""
    files = list(dict.fromkeys(file for row in rows if row.finding is not None for file in row.finding.files))
    notes = Notes()
    shown = [place for place, header in enumerate(_HEADERS) if not (narrow and header in ("source", "records"))]
    lines = []
    for row in rows:
        claim, finding = row.claim, row.finding
        statement = f"{claim.name}: {claim.statement}"
        entries = (
            textwrap.fill(statement, _STATEMENT_COLUMNS) if narrow else statement,
            claim.source,
            f"{claim.rule.unit} {claim.rule.side} {_scaled(claim.rule, claim.rule.threshold):.3g}",
            _effect_text(row),
            _p_text(row.p),
            _p_text(row.p_holm),
            Entry(row.verdict, note=None if finding else notes.number(f"run {claim.command}")),
            ", ".join(f"R{files.index(file) + 1}" for file in finding.files) if finding else MISSING,
        )
        lines.append([entries[place] for place in shown])
    headers = [_HEADERS[place] for place in shown]
    ledger = table_of(f"pair {pair}", headers, lines, _FACTS, notes, dict.fromkeys(files, ""))
    marked = [f"R{number}: {marks.of([file])}" for number, file in enumerate(files, start=1) if marks.of([file])]
    return with_mark(ledger, " ".join(marked))


def page(ledgers: Mapping[str, Sequence[LedgerRow]], *, results: str, marks: Marks = NO_MARKS) -> str:
    """Return the ledgers as markdown, a section for each pair.

    Args:    results: path to the folder of results from where the text will lie
    """
    blocks = []
    for name, rows in ledgers.items():
        ledger = table(name, rows, marks=marks)
        details = "\n".join(map(_detail, rows))
        measured = f"What was measured, and the commands for it:\n\n{details}"
        blocks += [f"## {ledger.title}", markdown(ledger, results), measured]
    return "\n\n".join(blocks)


def _detail(row: LedgerRow) -> str:
    claim, finding = row.claim, row.finding
    compared = f" ({markdown_text(finding.detail)})" if finding else ""
    commands = ", ".join(f"`{command}`" for command in (finding.commands if finding else (claim.command,)))
    return f"- **{claim.name}**: {markdown_text(claim.measured)}{compared}. {commands}"


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
