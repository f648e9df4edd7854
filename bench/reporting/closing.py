"""What a session prints at its end: for each suite one short table and a sentence. All other numbers are on the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.analysis import metrics
from bench.analysis.rows import Row, newest_rows, scalar_text, split_identity
from bench.analysis.verdict import UNCERTIFIED
from bench.records.files import Runs
from bench.reporting.captions import caption_facts, crossings, title
from bench.reporting.columns import ALPHA, AR_MS, CERTIFICATE, GAMMA, SD_MS, VERDICT, Column, identity_columns, shown
from bench.reporting.formats import TERMINAL_COLUMNS, terminal
from bench.reporting.numbers import percent_text, point_text
from bench.reporting.suites.baseline_strength import baseline_table
from bench.reporting.tables import rows_table

MOST_NAMES = 3  # columns of what differs between rows; with six numbers there are nine columns
JUDGED = (GAMMA, CERTIFICATE, VERDICT)
WORDS = {"FASTER": "{} x faster", "SLOWER": "{} x slower", "SAME": "as fast as plain decoding", "INCONCLUSIVE": "undecided"}


def texts_of(runs: Runs) -> Iterator[tuple[str, str]]:
    """Yield a title and a text for the runs of one suite."""
    rows = newest_rows(runs)
    if rows:
        yield title(rows[0].run), f"{_table(rows)}\n\n{textwrap.fill(sentence(rows), TERMINAL_COLUMNS)}"
    for run in runs.values():
        if not run.cells:
            baseline = terminal(replace(baseline_table({"": run}), facts={})) if run.baseline else "nothing was measured"
            yield title(run), baseline


def _table(rows: Sequence[Row]) -> str:
    names = identity_columns(rows)
    if len(names) > MOST_NAMES:
        names = [*names[: MOST_NAMES - 1], _joined(names[MOST_NAMES - 1 :])]
    # Beside several names there is no room for a second interval.
    alpha = replace(ALPHA, text=shown(point_text, metrics.counted_alpha)) if len(names) > 1 else ALPHA
    floors = dict.fromkeys(percent_text(metrics.aa_floor(row.run)) for row in rows)
    prompts = dict.fromkeys(row.record.cell.num_prompts for row in rows)
    facts = {
        "gamma": f"AR / SD seconds per token, with its 95 % interval over {' or '.join(map(str, prompts))} prompts",
        "A/A floor": ", ".join(floors),
        "ended early": "; ".join(dict.fromkeys(filter(None, (caption_facts(row.run).get("ended early") for row in rows)))),
        **crossings(rows),
    }
    columns = [_narrow(each) for each in (*names, AR_MS, SD_MS, alpha, *JUDGED)]
    return terminal(rows_table(title(rows[0].run), rows, columns, facts, mark_best=False))


def _narrow(column: Column) -> Column:
    return replace(column, header=column.narrow) if column.narrow else column


def _joined(columns: Sequence[Column]) -> Column:
    header = ",\n".join(column.narrow or column.header for column in columns)
    return Column("further", header, lambda row: ", ".join(column.text(row) for column in columns))


# The sentence
def sentence(rows: Sequence[Row]) -> str:
    """Return what the rows show, such as "Speculation is 1.14 x faster at T = 0 and 1.09 x at T = 1; output is lossless."."""
    names, _ = split_identity(rows)
    if set(names) <= {"temperature"}:
        speed = f"Speculation is {_over_temperature(rows)}"
    elif set(names) == {"temperature", "backend"}:
        backends = dict.fromkeys(row.record.cell.backend for row in rows)
        parts = (f"{name}: {_over_temperature([row for row in rows if row.record.cell.backend == name])}" for name in backends)
        speed = f"Speculation, by engine: {'; '.join(parts)}"
    else:
        speed = f"Speculation is {_counts(rows)}"
    return f"{speed}; {_output(rows)}."


def _over_temperature(rows: Sequence[Row]) -> str:
    parts: list[str] = []
    for label in (*WORDS, "INVALID"):
        of_label = [row for row in rows if row.verdict.label == label]
        if label in ("FASTER", "SLOWER"):
            times = [f"{_times(row)} x at T = {_temperature(row)}" for row in of_label]
            if times:
                times[0] = times[0].replace(" x ", f" x {label.lower()} ")
                parts.append(_listed(times))
        elif of_label:
            word = WORDS.get(label, "not measured validly")
            parts.append(f"{word} at T = {_listed([_temperature(row) for row in of_label])}")
    return ", ".join(parts)


def _times(row: Row) -> str:
    gamma = metrics.gamma(row.record)
    assert gamma is not None  # FASTER and SLOWER have one
    return f"{max(gamma.estimate, 1 / gamma.estimate):.2f}"


def _temperature(row: Row) -> str:
    return scalar_text("temperature", row.record.cell.temperature)


def _counts(rows: Sequence[Row]) -> str:
    labels: list[str] = [row.verdict.label for row in rows]
    counts = [(label, labels.count(label)) for label in (*WORDS, "INVALID")]
    return f"{_listed([f'{label} in {count}' for label, count in counts if count])} of {len(rows)} cells"


def _output(rows: Sequence[Row]) -> str:
    found = dict.fromkeys(row.verdict.certificate for row in rows)
    if list(found) == ["LOSSLESS"]:
        return "output is lossless"
    words = {
        "LOSSY-DECLARED": "lossy by design",
        UNCERTIFIED: "not certified",
        "INCONCLUSIVE": "not certified for want of tokens",
    }
    labels = [row.verdict.certificate for row in rows]
    return f"output is {_listed([f'{words.get(each, each)} in {labels.count(each)} of {len(rows)} cells' for each in found])}"


def _listed(words: Sequence[str]) -> str:
    """Return words in a row: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
