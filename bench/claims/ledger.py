"""TODO: purpose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bench.analysis.quantities import Finding
from bench.analysis.rows import Row, newest_rows
from bench.claims.claim import Claim, LedgerRow, LineRecord, Records, Ruling
from bench.options.settings import DEFAULT_PAIR
from bench.records.command_line import shell_text
from bench.records.files import line_header, record_files
from bench.statistics.effects import LEVEL, holm


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


# Records
def ledgers(results: Path, machine: str, *, pair: str | None = None) -> dict[str, tuple[LedgerRow, ...]]:
    """The ledger of each pair measured on a machine, or of one pair, if it was measured there.

    Raises:  ValueError: no such folder or machine, or a broken record
    """
    from bench.claims import decoding, distillation

    claims = (*decoding.claims(), *distillation.claims())
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
    from bench.records.files import load_run

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
    command = shell_text(header["command"])
    named = re.search(r"--pair[ =](\S+)", command)
    pair = header.get("model_pair") or (named[1] if named else DEFAULT_PAIR)
    return str(pair["name"] if isinstance(pair, dict) else pair), command
