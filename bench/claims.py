"""The ledger: for each claim about temperature an effect, its interval and a verdict, on one pair and one machine.

A claim says on which side of a threshold an effect lies. Claims and thresholds are fixed in code, before any record is looked
at. The test is two-sided at the threshold, p values are corrected by Holm's method over all claims of the ledger that could
be tested, and only then the side decides between SUPPORTED and REFUTED. The claims themselves are found by entry points
(group `specheat.claims`): `bench.cell_claims`, and those of packages with records in a form of their own.
"""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.cell_command import as_typed
from bench.rendering import MISSING, Entry, Page, Table, markdown_records, markdown_text, pipe_table
from bench.settings import DEFAULT_PAIR
from bench.statistics import RatioInterval
from bench.store import line_header, record_files
from bench.tables import Row, interval_text, newest_rows

Ruling = Literal["SUPPORTED", "REFUTED", "INCONCLUSIVE", "NOT MEASURED"]

LEVEL = 0.05  # chance of any false verdict in a ledger, at most
NORMAL = 1e9  # degrees of freedom from which t is as good as normal
SMALLEST_P = 1e-12
_STATEMENT_COLUMNS = 46


@dataclass(frozen=True, slots=True)
class Effect:
    """An estimate, its standard error, and the degrees of freedom of its t; inf: normal.

    Independent parts of an error, such as over seeds and over prompts, keep the t of each: half-widths of the parts add up as
    squares, at every confidence, and the p value is the level whose interval just reaches the threshold.
    """

    estimate: float
    standard_error: float  # inf: too little was measured to know
    freedom: float
    further: tuple[tuple[float, float], ...] = ()  # standard error and degrees of freedom of each further part

    @property
    def parts(self) -> tuple[tuple[float, float], ...]:
        return ((self.standard_error, self.freedom), *self.further)

    @property
    def testable(self) -> bool:
        """Whether there is a spread to test against; counts that are all equal have none."""
        return math.isfinite(self.estimate) and 0 < math.hypot(*(error for error, _ in self.parts)) < math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """At 95 %, of this effect alone."""
        half_width = self.half_width(0.05)
        return self.estimate - half_width, self.estimate + half_width

    def p_value(self, threshold: float) -> float:
        """Two-sided, were the effect just the threshold; never below SMALLEST_P."""
        from scipy.optimize import brentq

        distance = abs(self.estimate - threshold)
        if distance >= self.half_width(SMALLEST_P):
            return SMALLEST_P
        if distance <= self.half_width(1.0):  # 0 but for rounding
            return 1.0
        return math.exp(brentq(lambda log_p: self.half_width(math.exp(log_p)) - distance, math.log(SMALLEST_P), 0.0))

    def minus(self, other: Effect) -> Effect:
        """The difference to an effect of independent data."""
        return Effect(self.estimate - other.estimate, *self.parts[0], (*self.further, *other.parts))

    def half_width(self, level: float) -> float:
        """Of the interval that leaves `level` out on both sides together."""
        from scipy.special import stdtrit

        return math.hypot(*(stdtrit(min(freedom, NORMAL), level / 2) * error for error, freedom in self.parts))


@dataclass(frozen=True, slots=True)
class LineRecord:
    """A record of JSON lines, in a form of its own."""

    path: Path
    file: str  # below the folder of results
    command: str


@dataclass(frozen=True, slots=True)
class Records:
    """What was measured of one pair on one machine, by suite."""

    rows: Mapping[str, tuple[Row, ...]]  # the newest of each cell that is VALID
    lines: Mapping[str, tuple[LineRecord, ...]]  # oldest first


@dataclass(frozen=True, slots=True)
class Finding:
    """An effect and where it comes from."""

    effect: Effect
    detail: str  # what was compared with what
    files: tuple[str, ...]  # below the folder of results
    commands: tuple[str, ...]  # that made them


@dataclass(frozen=True, slots=True)
class Rule:
    """On which side of a threshold an effect must lie."""

    # Points are hundredths of alpha; of a ratio, effect and threshold are logarithms.
    unit: Literal["points", "ratio", "log odds"]
    side: Literal["<", ">"]
    threshold: float

    def holds(self, estimate: float) -> bool:
        return (estimate > self.threshold) == (self.side == ">")


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence that may be wrong, and the rule that decides it."""

    name: str
    statement: str
    source: Literal["paper", "contested"]  # paper: Ouyang et al. 2024, arXiv 2410.10141
    measured: str
    rule: Rule
    command: str  # that measures it
    find: Callable[[Records], Finding | None]  # None: no record has what it needs


@dataclass(frozen=True, slots=True)
class LedgerRow:
    claim: Claim
    finding: Finding | None
    p: float | None  # None: not tested
    p_holm: float | None
    verdict: Ruling


# Verdicts


def judge(claims: Sequence[Claim], findings: Sequence[Finding | None]) -> tuple[LedgerRow, ...]:
    """The ledger of these findings, one a claim."""
    p_values = {
        claim.name: finding.effect.p_value(claim.rule.threshold)
        for claim, finding in zip(claims, findings, strict=True)
        if finding is not None and finding.effect.testable
    }
    corrected = dict(zip(p_values, holm(tuple(p_values.values())), strict=True))
    return tuple(
        LedgerRow(
            *(claim, finding, p_values.get(claim.name), corrected.get(claim.name)),
            _ruling(claim, finding, corrected.get(claim.name)),
        )
        for claim, finding in zip(claims, findings, strict=True)
    )


def _ruling(claim: Claim, finding: Finding | None, p_holm: float | None) -> Ruling:
    if finding is None:
        return "NOT MEASURED"
    if p_holm is None or p_holm > LEVEL:
        return "INCONCLUSIVE"
    return "SUPPORTED" if claim.rule.holds(finding.effect.estimate) else "REFUTED"


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Corrected so that the chance of any at or below a level by chance is that level, whatever depends on what.

    Source:  Holm 1979, A simple sequentially rejective multiple test procedure
    """
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    scaled = (min(1.0, (len(p_values) - rank) * p_values[place]) for rank, place in enumerate(ascending))
    corrected = dict(zip(ascending, itertools.accumulate(scaled, max), strict=True))
    return tuple(corrected[place] for place in range(len(p_values)))


# Records


def ledgers(results: Path, machine: str, *, pair: str | None = None) -> dict[str, tuple[LedgerRow, ...]]:
    """The ledger of each pair measured on a machine, or of one pair, if it was measured there.

    Raises:  ValueError: no such folder or machine, or a broken record
    """
    from bench.registry import claim_makers

    claims: tuple[Claim, ...] = tuple(claim for make in claim_makers().values() for claim in make())
    return {
        name: judge(claims, [claim.find(records) for claim in claims])
        for name, records in sorted(load(results, machine).items())
        if pair in (None, name)
    }


def machines(results: Path) -> tuple[str, ...]:
    """Those with records, by the names of their folders.

    Raises:  ValueError: no such folder, or no records
    """
    if not results.is_dir():
        raise ValueError(f"expected a folder of results, got {results}")
    found = tuple(sorted({path.parts[-3] for path in record_files(results, "*/*/*.json*")}))
    if not found:
        raise ValueError(f"expected records in {results}, found none")
    return found


def load(results: Path, machine: str) -> dict[str, Records]:
    """The records of each pair.

    Raises:  ValueError: no such machine, or a broken record
    """
    from bench.store import load_run

    if machine not in machines(results):
        raise ValueError(f"expected a machine of {', '.join(machines(results))}, got {machine!r}")
    rows: dict[str, dict[str, tuple[Row, ...]]] = {}
    lines: dict[str, dict[str, tuple[LineRecord, ...]]] = {}
    for folder in sorted(path for path in (results / machine).iterdir() if path.is_dir()):
        runs = {path.relative_to(results).as_posix(): load_run(path) for path in record_files(folder, "*.json")}
        valid = [row for row in newest_rows(runs) if row.verdict.valid]
        for name in {row.record.cell.pair for row in valid}:
            rows.setdefault(name, {})[folder.name] = tuple(row for row in valid if row.record.cell.pair == name)
        for path in record_files(folder, "*.jsonl"):  # oldest first
            name, command = _pair_and_command(path)
            record = LineRecord(path, path.relative_to(results).as_posix(), command)
            of_pair = lines.setdefault(name, {})
            of_pair[folder.name] = (*of_pair.get(folder.name, ()), record)
    return {name: Records(rows.get(name, {}), lines.get(name, {})) for name in {*rows, *lines}}


def _pair_and_command(path: Path) -> tuple[str, str]:
    """Of a record of JSON lines."""
    header = line_header(path)
    command = str(header["command"])
    named = re.search(r"--pair[ =](\S+)", command)
    pair = header.get("model_pair") or (named[1] if named else DEFAULT_PAIR)
    return str(pair["name"] if isinstance(pair, dict) else pair), command


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


def derived(results: Path, machine: str) -> Page:
    """The ledgers of a machine, for `specheat tables`."""
    return page(ledgers(results, machine))


def page(ledgers: Mapping[str, Sequence[LedgerRow]]) -> Page:
    """A section for each pair."""
    blocks = []
    for name, rows in ledgers.items():
        ledger = table(name, rows)
        blocks += [
            f"## {ledger.title}",
            pipe_table(ledger),
            "\n".join(f"{number}. {markdown_text(note)}" for number, note in enumerate(ledger.notes, start=1)),
            "\n".join(f"- **{fact}**: {markdown_text(text)}" for fact, text in ledger.facts.items()),
            "\n".join(["What was measured, and what measures it again:", "", *map(_detail, rows)]),
            "\n".join(markdown_records(ledger.records, "..")),
        ]
    return Page("\n\n".join(filter(None, blocks)), {})


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
    again = ", ".join(f"`{as_typed(command)}`" for command in commands)
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
    low, high = (_scaled(rule, end) for end in effect.interval)
    return interval_text(RatioInterval(estimate, low, high, 0, 0.95))


def _scaled(rule: Rule, value: float) -> float:
    if rule.unit == "ratio":
        return math.exp(min(value, _MAX_LOG))
    return 100 * value if rule.unit == "points" else value


_MAX_LOG = 700.0  # of a float


def _p_text(p: float | None) -> str:
    if p is None:
        return MISSING
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
