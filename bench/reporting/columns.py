"""The columns of tables: each a short stable name, a header, and the text of a row.

Digits end where the 95 % interval makes them meaningless: two figures of its half-width where that starts with a 1, else one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.analysis import metrics
from bench.analysis.rows import Row, identity, scalar_text
from bench.analysis.verdict import UNCERTIFIED
from bench.records.decoding import PhaseSeconds
from bench.records.runs import CellRecord
from bench.reporting.numbers import decimals, interval_text, number_text, percent_text, point_text
from bench.reporting.table import MISSING
from bench.statistics.intervals import RatioInterval

SHORT_NAMES = {"T": "temperature", "k": "num_draft_tokens"}


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    header: str
    text: Callable[[Row], str]
    speculative: bool = False  # says how fast speculation was, so INVALID rows leave it out
    narrow: str | None = None  # header in the terminal; None: not shown there


def certificate_text(certificate: str) -> str:
    return "none yet" if certificate == UNCERTIFIED else certificate


# Texts of a row
def _interval_of(metric: Callable[[CellRecord], RatioInterval | None]) -> Callable[[Row], str]:
    return lambda row: interval_text(metric(row.record))


def _point_of(metric: Callable[[CellRecord], RatioInterval | None]) -> Callable[[Row], str]:
    return lambda row: point_text(metric(row.record))


def _gamma(row: Row) -> str:
    return interval_text(metrics.gamma(row.record)) + (" LOSSY" if row.lossy else "")


def _milliseconds(arm: metrics.ArmName) -> Callable[[Row], str]:
    return lambda row: point_text(metrics.seconds_per_token(row.record, arm), scale=1000)


def _like_gamma(metric: Callable[[CellRecord], float | None]) -> Callable[[Row], str]:
    """To the digits of the measured gamma, beside which it stands."""
    return lambda row: number_text(metric(row.record), decimals(metrics.gamma(row.record)))


def _measured_over_predicted(record: CellRecord) -> float | None:
    measured, predicted = metrics.gamma(record), metrics.predicted_gamma(record)
    return None if measured is None or predicted is None else measured.estimate / predicted


def _after_end(row: Row) -> str:
    """Share of each arm's tokens; a dash where the record does not say which tokens end a text."""
    ids = frozenset(map(int, filter(None, str(row.run.prompt_format.get("end_token_ids", "")).split(","))))
    shares = [metrics.share_after_end_token(row.record, arm, end_token_ids=ids) for arm in ("ar", "sd")]
    known = [percent_text(share) for share in shares if ids and share is not None]
    return ", ".join(known) or MISSING


def _agreement_z(row: Row) -> str:
    agreement = metrics.acceptance_agreement(row.record)
    return number_text(agreement.z if agreement else None, 1)


def _phase(name: str) -> Callable[[Row], str]:
    return lambda row: percent_text((metrics.phase_shares(row.record) or {}).get(name))


def tokens_per_second(arm: metrics.ArmName) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        seconds = metrics.seconds_per_token(row.record, arm)
        return MISSING if seconds is None else f"{1 / seconds.estimate:.1f}"

    return text


def first_token(arm: metrics.ArmName) -> Callable[[Row], str]:
    return lambda row: point_text(metrics.first_token_seconds(row.record, arm), scale=1000)


def peak_memory(row: Row) -> str:
    peak = row.record.peak_memory_bytes
    return MISSING if peak is None else f"{peak / 2**20:,.0f}"


# Columns
GAMMA = Column("gamma", "gamma", _gamma, True, "gamma")
ALPHA = Column("alpha", "alpha\ncounted", _interval_of(metrics.counted_alpha), narrow="alpha\ncounted")
CERTIFICATE = Column("certificate", "certificate", lambda row: certificate_text(row.verdict.certificate))
VERDICT = Column("verdict", "verdict", lambda row: row.verdict.label, narrow="verdict")
MAIN = (
    ALPHA,
    Column("alpha_expected", "alpha\nexpected", _point_of(metrics.expected_alpha), narrow="alpha\nexpect."),
    Column("draft_utilisation", "draft\nutilisation", _point_of(metrics.draft_utilisation), narrow="draft\nutil."),
    Column("block_efficiency", "block\nefficiency", _point_of(metrics.block_efficiency), narrow="block\neff."),
    Column("ar_ms", "AR\nms/token", _milliseconds("ar"), narrow="AR ms\n/token"),
    Column("sd_ms", "SD\nms/token", _milliseconds("sd"), True, "SD ms\n/token"),
    GAMMA,
    Column("gamma_e2e", "gamma_e2e", _point_of(metrics.gamma_e2e), True, "gamma\n_e2e"),
    Column("gamma_predicted", "predicted\ngamma", _like_gamma(metrics.predicted_gamma), True, "pred.\ngamma"),
    Column(
        "measured_over_predicted", "measured /\npredicted", _like_gamma(_measured_over_predicted), True, "meas.\n/pred."
    ),
    Column("aa_floor", "A/A\nfloor", lambda row: percent_text(metrics.aa_floor(row.run))),
    CERTIFICATE,
    VERDICT,
)
AFTER_END = Column("after_end", "AR, SD tokens\nafter the end", _after_end)  # of texts of fixed length
MECHANISM = (
    Column("c", "c", lambda row: number_text(metrics.cost_ratio(row.record), 3)),
    Column("gamma_iid", "predicted gamma,\ni.i.d. alpha", _like_gamma(metrics.iid_predicted_gamma), True),
    Column("gamma_geometric", "gamma, geometric\nmean of prompts", _interval_of(metrics.gamma_geometric), True),
    Column("acceptance_z", "z of\nacceptance", _agreement_z),
    Column(
        "certificate_cost",
        "certificate /\ndecoding seconds",
        lambda row: percent_text(metrics.certificate_cost(row.record)),
    ),
    *(Column(f"{name}_share", f"{name}\nshare", _phase(name)) for name in PhaseSeconds.__slots__),
)


def identity_column(name: str) -> Column:
    """One of the names of `rows.identity`."""
    short = next((short for short, full in SHORT_NAMES.items() if full == name), name)
    return Column(name, name, lambda row: scalar_text(name, identity(row).get(name)), narrow=short)
