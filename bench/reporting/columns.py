"""The columns of tables: each has a short stable name, a header, and a function that makes the text of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.analysis import metrics
from bench.analysis.quantities import gamma_without_luck
from bench.analysis.rows import Row, identity, scalar_text, split_identity
from bench.analysis.verdict import UNCERTIFIED
from bench.records.decoding import PhaseSeconds
from bench.records.runs import CellRecord
from bench.reporting.numbers import decimals, interval_text, milliseconds_text, number_text, percent_text, point_text
from bench.reporting.table import MISSING

T = TypeVar("T")
SHORT_NAMES = {"T": "temperature", "k": "num_draft_tokens"}


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    header: str
    text: Callable[[Row], str]
    speculative: bool = False  # shows how fast speculation was, so that INVALID rows leave it out
    narrow: str = ""  # a shorter header, for the terminal


def identity_columns(rows: Sequence[Row]) -> list[Column]:
    """Return a column for the temperature and for every other name of cell identity in which the rows differ."""
    return [identity_column(name) for name in split_identity(rows)[0]]


def identity_column(name: str) -> Column:
    short = next((short for short, full in SHORT_NAMES.items() if full == name), name)
    return Column(name, name, lambda row: scalar_text(name, identity(row).get(name)), narrow=short)


# Texts of a row
def shown(form: Callable[[T], str], metric: Callable[..., T], *arguments: str) -> Callable[[Row], str]:
    """Return the text of a row: a metric of its cell and of further arguments, in a form of `bench.reporting.numbers`."""
    return lambda row: form(metric(row.record, *arguments))


def _gamma(row: Row) -> str:
    return interval_text(metrics.gamma(row.record)) + (" LOSSY" if row.lossy else "")


def _like_gamma(metric: Callable[[CellRecord], float | None]) -> Callable[[Row], str]:
    """Return the text of a number that stands beside the measured gamma, with as many digits."""
    return lambda row: number_text(metric(row.record), decimals(metrics.gamma(row.record)))


def measured_over_predicted(record: CellRecord) -> float | None:
    measured, predicted = metrics.gamma(record), metrics.predicted_gamma(record)
    return None if measured is None or predicted is None else measured.estimate / predicted


def _after_end(row: Row) -> str:
    """Return the share of tokens after the end, of each arm; a dash where the record does not name the end tokens."""
    ids = frozenset(map(int, filter(None, str(row.run.prompt_format.get("end_token_ids", "")).split(","))))
    shares = [metrics.share_after_end_token(row.record, arm, end_token_ids=ids) for arm in ("ar", "sd")]
    return ", ".join(percent_text(share) for share in shares if ids and share is not None) or MISSING


def _acceptance_z(row: Row) -> str:
    agreement = metrics.acceptance_agreement(row.record)
    return number_text(agreement.z if agreement else None, 1)


def _phase(name: str) -> Callable[[Row], str]:
    return lambda row: percent_text((metrics.phase_shares(row.record) or {}).get(name))


def certificate_text(certificate: str) -> str:
    return "none yet" if certificate == UNCERTIFIED else certificate


# Columns
GAMMA = Column("gamma", "gamma", _gamma, True)
ALPHA = Column("alpha", "alpha\ncounted", shown(interval_text, metrics.counted_alpha))
CERTIFICATE = Column("certificate", "certificate", lambda row: certificate_text(row.verdict.certificate))
VERDICT = Column("verdict", "verdict", lambda row: row.verdict.label)
AR_MS = Column("ar_ms", "AR\nms/token", shown(milliseconds_text, metrics.seconds_per_token, "ar"), narrow="AR ms\n/token")
SD_MS = Column("sd_ms", "SD\nms/token", shown(milliseconds_text, metrics.seconds_per_token, "sd"), True, "SD ms\n/token")
MAIN = (
    ALPHA,
    Column("alpha_replayed", "replays:\ncounted", shown(point_text, metrics.replayed_alpha)),
    Column("alpha_expected", "replays:\nexpected", shown(point_text, metrics.expected_alpha)),
    Column("draft_utilisation", "draft\nutilisation", shown(point_text, metrics.draft_utilisation)),
    Column("block_efficiency", "block\nefficiency", shown(point_text, metrics.block_efficiency)),
    AR_MS,
    SD_MS,
    GAMMA,
    Column("gamma_e2e", "gamma_e2e", shown(point_text, metrics.gamma_e2e), True),
    Column("gamma_predicted", "predicted\ngamma", _like_gamma(metrics.predicted_gamma), True),
    Column("measured_over_predicted", "measured /\npredicted", _like_gamma(measured_over_predicted), True),
    Column("aa_floor", "A/A\nfloor", lambda row: percent_text(metrics.aa_floor(row.run))),
    CERTIFICATE,
    VERDICT,
)
AFTER_END = Column("after_end", "AR, SD tokens\nafter the end", _after_end)  # for texts of fixed length
MECHANISM = (
    Column("c", "c", lambda row: number_text(metrics.cost_ratio(row.record), 3)),
    Column("gamma_iid", "predicted gamma,\ni.i.d. alpha", _like_gamma(metrics.iid_predicted_gamma), True),
    Column("gamma_geometric", "gamma, geometric\nmean of prompts", shown(interval_text, metrics.gamma_geometric), True),
    Column("gamma_without_luck", "gamma without\nluck", shown(interval_text, gamma_without_luck), True),
    Column("acceptance_z", "z of\nacceptance", _acceptance_z),
    Column("certificate_cost", "certificate /\ndecoding seconds", shown(percent_text, metrics.certificate_cost)),
    *(Column(f"{name}_share", f"{name}\nshare", _phase(name)) for name in PhaseSeconds.__slots__),
)
