"""The ledger: for each claim about temperature an effect, its interval and a verdict, on one pair and one machine.

A claim says on which side of a threshold an effect lies. Claims and thresholds are fixed in code, before any record is looked
at. The test is two-sided at the threshold, p values are corrected by Holm's method over all claims of the ledger that could
be tested, and only then the side decides between SUPPORTED and REFUTED. The claims themselves are found by entry points
(group `specheat.claims`): `bench.claims.decoding`, and those of packages with records in a form of their own.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from bench.analysis.quantities import Finding
from bench.claims.claim import Claim, LedgerRow, Rule
from bench.reporting.formats import markdown, markdown_text
from bench.reporting.numbers import interval_text
from bench.reporting.table import MISSING, Entry, Table
from bench.statistics.effects import LEVEL

_STATEMENT_COLUMNS = 46


# Tables
def table(pair: str, rows: Sequence[LedgerRow], *, narrow: bool = False) -> Table:
    """A ledger; narrow: for the terminal, without sources and records."""
    findings = [row.finding for row in rows if row.finding is not None]
    files = list(dict.fromkeys(file for finding in findings for file in finding.files))
    notes = list(dict.fromkeys(_how_to(row.claim) for row in rows if row.finding is None))
    columns = [
        ("claim", [Entry(_statement(row.claim, narrow)) for row in rows]),
        ("source", [Entry(row.claim.source) for row in rows]),
        ("holds if", [Entry(_rule_text(row.claim.rule)) for row in rows]),
        ("effect [95 %]", [Entry(_effect_text(row)) for row in rows]),
        ("p", [Entry(_p_text(row.p)) for row in rows]),
        ("p, Holm", [Entry(_p_text(row.p_holm)) for row in rows]),
        (
            "verdict",
            [Entry(row.verdict, note=None if row.finding else notes.index(_how_to(row.claim)) + 1) for row in rows],
        ),
        ("records", [Entry(_records_text(row.finding, files)) for row in rows]),
    ]
    if narrow:
        columns = [column for column in columns if column[0] not in ("source", "records")]
    headers, entries = zip(*columns, strict=True)
    records = dict.fromkeys(files, "")
    return Table(f"pair {pair}", headers, tuple(zip(*entries, strict=True)), tuple(notes), dict(_FACTS), records)


def page(ledgers: Mapping[str, Sequence[LedgerRow]], *, results: str) -> str:
    """Return the ledgers as markdown, a section for each pair.

    Args:    results: path to the folder of results from where the text will lie
    """
    blocks = []
    for name, rows in ledgers.items():
        ledger = table(name, rows)
        details = "\n".join(map(_detail, rows))
        blocks += [
            f"## {ledger.title}",
            markdown(ledger, results),
            f"What was measured, and the commands for it:\n\n{details}",
        ]
    return "\n\n".join(blocks)


_FACTS = {
    "holds if": "the effect lies on this side of the threshold, which is fixed in code; points are hundredths of alpha",
    "effect": "from counts and seconds of the newest record of each cell (of KD matrices the newest that can be tested), "
    "INVALID cells left out, paired by prompt",
    "p": f"two-sided at the threshold; Holm: corrected over all claims of the ledger that could be tested, against {LEVEL:g}",
    "verdict": "SUPPORTED or REFUTED by the side on which the effect lies; INCONCLUSIVE where the corrected p is higher, or "
    "where there are too few prompts or seeds to test",
    "paper": "Ouyang et al. 2024, arXiv 2410.10141",
}


def _statement(claim: Claim, narrow: bool) -> str:
    text = f"{claim.name}: {claim.statement}"
    return textwrap.fill(text, _STATEMENT_COLUMNS) if narrow else text


def _how_to(claim: Claim) -> str:
    return f"run {claim.command}"


def _records_text(finding: Finding | None, files: list[str]) -> str:
    return MISSING if finding is None else ", ".join(f"R{files.index(file) + 1}" for file in finding.files)


def _detail(row: LedgerRow) -> str:
    claim, finding = row.claim, row.finding
    compared = "" if finding is None else f" ({markdown_text(finding.detail)})"
    commands = (claim.command,) if finding is None else finding.commands
    again = ", ".join(f"`{command}`" for command in commands)
    return f"- **{claim.name}**: {markdown_text(claim.measured)}{compared}. {again}"


def _rule_text(rule: Rule) -> str:
    return f"{rule.unit} {rule.side} {_scaled(rule, rule.threshold):.3g}"


def _effect_text(row: LedgerRow) -> str:
    if row.finding is None or not math.isfinite(row.finding.effect.estimate):
        return MISSING
    effect, rule = row.finding.effect, row.claim.rule
    estimate = _scaled(rule, effect.estimate)
    if not effect.testable:
        return f"{estimate:.2f}"
    return interval_text(effect.interval.transformed(lambda value: _scaled(rule, value)))


def _scaled(rule: Rule, value: float) -> float:
    if rule.unit == "ratio":
        return math.exp(min(value, _MAX_LOG))
    return 100 * value if rule.unit == "points" else value


_MAX_LOG = 700.0  # of a float


def _p_text(p: float | None) -> str:
    if p is None:
        return MISSING
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
