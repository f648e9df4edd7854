"""The ledger: the claims that the records of a pair on a machine support or refute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.analysis.quantities import Finding
from bench.analysis.rows import Row, newest_rows
from bench.claims.claim import Claim, LedgerRow, LineRecord, Records, Ruling, load_claims
from bench.records.command_line import shell_text
from bench.records.files import line_header, load_run, pair_name, records_by_suite
from bench.statistics.effects import LEVEL, holm


# Verdicts
def judge(claims: Sequence[Claim], findings: Sequence[Finding | None]) -> tuple[LedgerRow, ...]:
    """Return the ledger of these findings, one for each claim."""
    pairs = list(zip(claims, findings, strict=True))
    p_values = {
        claim.name: finding.effect.p_value(claim.rule.threshold)
        for claim, finding in pairs
        if finding is not None and finding.effect.testable
    }
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    numbers = ((p_values.get(claim.name), corrected.get(claim.name)) for claim, _ in pairs)
    return tuple(
        LedgerRow(claim, finding, p, p_holm, _ruling(claim, finding, p_holm))
        for (claim, finding), (p, p_holm) in zip(pairs, numbers, strict=True)
    )


def _ruling(claim: Claim, finding: Finding | None, p_holm: float | None) -> Ruling:
    if finding is None:
        return "NOT MEASURED"
    if p_holm is None or p_holm > LEVEL:
        return "INCONCLUSIVE"
    return "SUPPORTED" if claim.rule.holds(finding.effect.estimate) else "REFUTED"


def claims() -> tuple[Claim, ...]:
    """Return all claims, in the order of the ledger."""
    from bench.claims import decoding, distillation

    return load_claims(decoding.FIND | distillation.FIND)


# Records
def ledgers(
    results: Path, machine: str, *, pair: str | None = None, rows: Mapping[str, Sequence[Row]] | None = None
) -> dict[str, tuple[LedgerRow, ...]]:
    """Return the ledger of each pair measured on a machine, or of one pair, if it was measured there.

    Args:    rows: the newest rows of each suite on the machine; read from the records if None
    Raises:  ValueError: no such folder or machine, or a broken record
    """
    found = claims()
    return {
        name: judge(found, [claim.find(records) for claim in found])
        for name, records in sorted(load(results, machine, rows=rows).items())
        if pair in (None, name)
    }


def machines(results: Path) -> tuple[str, ...]:
    """Return the machines with records, which are the names of their folders.

    Raises:  ValueError: no such folder, or no records
    """
    found = tuple(sorted({machine for machine, _ in records_by_suite(results, ".json*")}))
    if not found:
        raise ValueError(f"expected records in {results}, found none")
    return found


def load(results: Path, machine: str, *, rows: Mapping[str, Sequence[Row]] | None = None) -> dict[str, Records]:
    """Return the records of each pair.

    Args:    rows: the newest rows of each suite on the machine; read from the records if None
    Raises:  ValueError: no such machine, or a broken record
    """
    if machine not in machines(results):
        raise ValueError(f"expected a machine of {', '.join(machines(results))}, got {machine!r}")
    valid: dict[str, dict[str, tuple[Row, ...]]] = {}
    for suite, of_suite in (_rows(results, machine) if rows is None else rows).items():
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


def _rows(results: Path, machine: str) -> dict[str, tuple[Row, ...]]:
    return {
        suite: newest_rows({path.relative_to(results).as_posix(): load_run(path) for path in paths})
        for (name, suite), paths in records_by_suite(results).items()
        if name == machine
    }
