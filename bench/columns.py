"""The columns of tables: each a short stable name, a header, and the text of a row.

Digits end where the 95 % interval makes them meaningless: two figures of its half-width where that starts with a 1, else one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench import metrics
from bench.metrics import UNCERTIFIED
from bench.records import Cell, CellRecord, PhaseSeconds
from bench.rendering import MISSING
from bench.rows import Row, identity, scalar_text
from bench.statistics import RatioInterval

SHORT_NAMES = {"T": "temperature", "k": "num_draft_tokens"}
_REFERENCE = "reference"  # the backend that others are held against
_SHARED_OPTIONS = {"concurrency", "draft_length", "schedule"}  # others are a backend's own
_MAX_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    header: str
    text: Callable[[Row], str]
    speculative: bool = False  # says how fast speculation was, so INVALID rows leave it out
    narrow: str | None = None  # header in the terminal; None: not shown there


# Numbers


def decimals(interval: RatioInterval | None, *, scale: float = 1.0) -> int:
    """Digits behind the point that an interval leaves meaningful."""
    half_width = scale * (interval.high - interval.low) / 2 if interval is not None else 0.0
    if not 0 < half_width < math.inf:
        return 2
    return min(max(0, -math.floor(math.log10(half_width / 2))), _MAX_DECIMALS)


def interval_text(interval: RatioInterval | None) -> str:
    """1.083 in 1.05 to 1.12 is "1.08 [1.05, 1.12]"."""
    if interval is None:
        return MISSING
    low, estimate, high = (
        "∞" if math.isinf(value) else f"{value:.{decimals(interval)}f}"
        for value in (interval.low, interval.estimate, interval.high)
    )
    return f"{estimate} [{low}, {high}]"


def point_text(interval: RatioInterval | None, *, scale: float = 1.0) -> str:
    """The estimate alone, to the digits of its interval."""
    return MISSING if interval is None else f"{interval.estimate * scale:.{decimals(interval, scale=scale)}f}"


def percent_text(share: float | None) -> str:
    return MISSING if share is None else f"{share:.1%}"


def certificate_text(certificate: str) -> str:
    return "none yet" if certificate == UNCERTIFIED else certificate


def _number_text(value: float | None, num_decimals: int) -> str:
    return MISSING if value is None else f"{value:.{num_decimals}f}"


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
    return lambda row: _number_text(metric(row.record), decimals(metrics.gamma(row.record)))


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
    return _number_text(agreement.z if agreement else None, 1)


def _phase(name: str) -> Callable[[Row], str]:
    return lambda row: percent_text((metrics.phase_shares(row.record) or {}).get(name))


def _tokens_per_second(arm: metrics.ArmName) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        seconds = metrics.seconds_per_token(row.record, arm)
        return MISSING if seconds is None else f"{1 / seconds.estimate:.1f}"

    return text


def _first_token(arm: metrics.ArmName) -> Callable[[Row], str]:
    return lambda row: point_text(metrics.first_token_seconds(row.record, arm), scale=1000)


def _peak_memory(row: Row) -> str:
    peak = row.record.peak_memory_bytes
    return MISSING if peak is None else f"{peak / 2**20:,.0f}"


# Columns


GAMMA = Column("gamma", "gamma", _gamma, True, "gamma")
ALPHA = Column("alpha", "alpha\ncounted", _interval_of(metrics.counted_alpha), narrow="alpha\ncounted")
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
    Column("certificate", "certificate", lambda row: certificate_text(row.verdict.certificate)),
    VERDICT,
)
AFTER_END = Column("after_end", "AR, SD tokens\nafter the end", _after_end)  # of texts of fixed length
MECHANISM = (
    Column("c", "c", lambda row: _number_text(metrics.cost_ratio(row.record), 3)),
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


def beside_reference(rows: Sequence[Row]) -> tuple[Column, ...]:
    """How fast each backend is in tokens per second, and how it stands against the reference on the same prompts."""
    ours = (row.record for row in rows if row.record.cell.backend == _REFERENCE)
    # Of several, such as with and without a compiled forward, the one as it comes.
    fewest_last = sorted(ours, key=lambda record: len(record.cell.options), reverse=True)
    reference = {_without_backend(record.cell): record for record in fewest_last}

    def against(metric: Callable[[CellRecord, CellRecord], RatioInterval | None], row: Row) -> RatioInterval | None:
        other = reference.get(_without_backend(row.record.cell))
        return None if other is None else metric(row.record, other)

    def relative(metric: Callable[[CellRecord, CellRecord], RatioInterval | None]) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            is_reference = reference.get(_without_backend(row.record.cell)) is row.record
            return "1" if is_reference else interval_text(against(metric, row))

        return text

    def agreement(row: Row) -> str:
        ratio = against(metrics.alpha_against, row)
        if ratio is None or reference[_without_backend(row.record.cell)] is row.record:
            return MISSING
        if ratio.low <= 1 <= ratio.high:
            return "same"
        reason = row.run.backend_settings.get("gap_acceptance")
        return f"differs: {reason}" if reason else "differs"

    return (
        Column("ar_tokens_per_s", "AR\ntokens/s", _tokens_per_second("ar"), narrow="AR\ntok/s"),
        Column("sd_tokens_per_s", "SD\ntokens/s", _tokens_per_second("sd"), True, "SD\ntok/s"),
        Column("sd_over_reference", "SD tokens/s /\nreference's", relative(metrics.speed_against), True, "/ ref."),
        GAMMA,
        Column("ar_first_token_ms", "first token\nAR ms", _first_token("ar")),
        Column("sd_first_token_ms", "first token\nSD ms", _first_token("sd"), True, "first\nms"),
        Column("peak_mib", "peak\nMiB", _peak_memory, narrow="peak\nMiB"),
        ALPHA,
        Column("alpha_over_reference", "alpha /\nreference's", relative(metrics.alpha_against)),
        Column("alpha_agrees", "alpha against\nthe reference", agreement),
        Column(
            "certificate",
            "certificate",
            lambda row: certificate_text(row.verdict.certificate),
            narrow="certificate",
        ),
        VERDICT,
    )


def _without_backend(cell: Cell) -> Cell:
    return replace(cell, backend="", options=tuple(o for o in cell.options if o[0] in _SHARED_OPTIONS))


# By name


def identity_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """What cells may differ in, by name."""
    return tuple(dict.fromkeys(name for row in rows for name in identity(row)))


def columns_by_name(rows: Sequence[Row]) -> Mapping[str, Column]:
    """Every column that there is for these rows."""
    of_identity = {name: identity_column(name) for name in identity_names(rows)}
    return {
        **of_identity,
        **{column.name: column for column in (*MAIN, AFTER_END, *MECHANISM, *beside_reference(rows))},
    }


def full_name(name: str, known: Sequence[str], *, what: str) -> str:
    """A name as it is stored, T and k written out.

    Raises:  ValueError: it is none of those known
    """
    full = SHORT_NAMES.get(name, name)
    if full not in known:
        raise ValueError(f"expected {what} among {', '.join((*SHORT_NAMES, *known))}, got {name!r}")
    return full
