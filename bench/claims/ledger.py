"""The ledger: the claims that the records of a pair on a machine support or refute."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from bench.analysis.quantities import Finding
from bench.analysis.rows import Row, all_rows
from bench.claims.claim import Claim, LedgerRow, LineRecord, Records, Rule, Ruling, Source
from bench.records.command_line import shell_text
from bench.records.files import line_header, load_run, pair_name, records_by_suite
from bench.statistics.effects import LEVEL, holm


# Verdicts
def claims() -> tuple[Claim, ...]:
    """Return all claims of claims.toml, in the order of the ledger."""
    from bench.claims import decoding, distillation

    found, functions = [], decoding.FIND | distillation.FIND
    in_unit = {"points": lambda points: points / 100, "ratio": math.log, "log odds": float}
    for name, entry in tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8")).items():
        unit, side, number = entry.pop("supported_if").rsplit(maxsplit=2)  # "ratio > 1.12", "points within 1"
        margin = in_unit[unit](float(entry.pop("margin").rpartition(" ")[2])) if "margin" in entry else None
        rule = Rule(unit, side, in_unit[unit](float(number)))
        found.append(Claim(name, rule=rule, find=functions[name], margin=margin, **entry))
    return tuple(found)


def judge(claims: Sequence[Claim], findings: Sequence[Finding | None]) -> tuple[LedgerRow, ...]:
    """Return the ledger of these findings, one for each claim.

    The claims of one source are a family, whose p values are corrected together: those of the paper are confirmatory,
    contested ones are exploratory. The tests that an effect lies within a margin are corrected among themselves. So in a family
    the chance of any false SUPPORTED or REFUTED is at most LEVEL, and so is that of any false EQUIVALENT.
    """
    pairs = list(zip(claims, findings, strict=True))
    differs: dict[str, tuple[float, float]] = {}  # p of each claim, and corrected
    equals: dict[str, tuple[float, float]] = {}
    for source in get_args(Source):
        family = [
            (claim, finding.effect)
            for claim, finding in pairs
            if claim.source == source and finding is not None and finding.effect.testable
        ]
        differs |= _corrected({claim.name: effect.p_value(claim.rule.border(effect.estimate)) for claim, effect in family})
        margins = [(claim.name, effect, claim.margin) for claim, effect in family if claim.margin is not None]
        equals |= _corrected({name: effect.equivalence_p(margin) for name, effect, margin in margins})
    ledger = []
    for claim, finding in pairs:
        p, p_holm = differs.get(claim.name, (None, None))  # None: not tested
        ruling: Ruling = "INCONCLUSIVE"
        if finding is None:
            ruling = "NOT MEASURED"
        elif claim.name in equals and equals[claim.name][1] <= LEVEL:
            ruling, (p, p_holm) = "EQUIVALENT", equals[claim.name]
        elif p_holm is not None and p_holm <= LEVEL:
            ruling = "SUPPORTED" if claim.rule.holds(finding.effect.estimate) else "REFUTED"
        ledger.append(LedgerRow(claim, finding, p, p_holm, ruling))
    return tuple(ledger)


def _corrected(p_values: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    return {name: (p, p_holm) for (name, p), p_holm in zip(p_values.items(), holm(list(p_values.values())), strict=True)}


# Records
def ledgers(
    results: Path, machine: str, *, pair: str | None = None, rows: Mapping[str, Sequence[Row]] | None = None
) -> dict[str, tuple[LedgerRow, ...]]:
    """Return the ledger of each pair measured on a machine, or of one pair, if it was measured there.

    Args:    rows: every row of each suite on the machine; read from the records if None
    Raises:  ValueError: no such folder or machine, or a broken record
    """
    found = claims()
    return {
        name: judge(found, [claim.find(records) for claim in found])
        for name, records in sorted(load(results, machine, rows=rows).items())
        if pair in (None, name)
    }


def machines(results: Path) -> tuple[str, ...]:
    """Return the machines with records, which are the names of their folders. Raise ValueError if there are none."""
    found = tuple(sorted({machine for machine, _ in records_by_suite(results, ".json*")}))
    if not found:
        raise ValueError(f"expected records in {results}, found none")
    return found


def load(results: Path, machine: str, *, rows: Mapping[str, Sequence[Row]] | None = None) -> dict[str, Records]:
    """Return the records of each pair; `rows` as in `ledgers`. Raise ValueError for another machine or a broken record."""
    if machine not in machines(results):
        raise ValueError(f"expected a machine of {', '.join(machines(results))}, got {machine!r}")
    if rows is None:
        rows = {
            suite: all_rows({path.relative_to(results).as_posix(): load_run(path) for path in paths})
            for (name, suite), paths in records_by_suite(results).items()
            if name == machine
        }
    valid: dict[str, dict[str, tuple[Row, ...]]] = {}
    for suite, of_suite in rows.items():
        for row in of_suite:
            if row.verdict.valid:
                of_pair = valid.setdefault(row.record.cell.pair, {})
                of_pair[suite] = (*of_pair.get(suite, ()), row)
    lines: dict[str, dict[str, tuple[LineRecord, ...]]] = {}
    for (name, suite), paths in records_by_suite(results, ".jsonl").items():
        for path in paths if name == machine else ():
            header = line_header(path)
            record = LineRecord(path, path.relative_to(results).as_posix(), shell_text(header["command"]))
            of_lines = lines.setdefault(pair_name(header), {})
            of_lines[suite] = (*of_lines.get(suite, ()), record)
    return {name: Records(valid.get(name, {}), lines.get(name, {})) for name in {*valid, *lines}}
