"""The end of a session: a table that fits, and a sentence that says what it shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.analysis.rows import Row
from bench.analysis.verdict import Label, Verdict
from bench.records.runs import RunRecord
from bench.reporting.closing import sentence, texts_of
from tests.support.record_builder import make_cell, make_record, make_run

TEMPERATURES = (0.0, 0.5, 1.0)


def grid(**changes: object) -> RunRecord:
    return make_run([make_record(make_cell(temperature=t, **changes), gamma=1.4 - 0.4 * t) for t in TEMPERATURES])


def text_of(run: RunRecord) -> str:
    ((_, text),) = texts_of({"runs/record.json": run})
    return text


def row(temperature: float, label: Label, gamma: float, certificate: str = "LOSSLESS", **changes: object) -> Row:
    record = make_record(make_cell(temperature=temperature, **changes), gamma=gamma, noise=1e-6)
    return Row(record, make_run([record]), "record.json", Verdict(label != "INVALID", label, (), certificate))


def test_the_table_fits_into_100_characters_and_has_at_most_nine_columns() -> None:
    cells = [
        make_cell(rule=rule, num_draft_tokens=k, temperature=t, top_k=top_k, top_p=top_p)
        for rule in ("one_hot", "rejection")
        for k, top_k, top_p, t in ((2, 0, 1.0, 0.0), (4, 50, 0.9, 1.0))
    ]
    for run in (grid(), make_run(map(make_record, cells))):
        lines = text_of(run).splitlines()
        assert max(map(len, lines)) <= 100
        numbers = next(line for line in lines if " [" in line)  # a row: alpha and gamma have two parts
        assert len(numbers.replace(" [", "[").replace(", ", ",").replace("none yet", "none_yet").split()) <= 9


def test_the_table_names_the_floor_the_prompts_and_the_reason_for_what_is_undecided() -> None:
    text = text_of(grid())
    for word in ("AR / SD seconds per token", "over 12 prompts", "A/A floor: 1.", "1 is inside the interval", "none yet"):
        assert word in text


def test_the_sentence_for_a_grid_over_temperature() -> None:
    rows = [row(0.0, "FASTER", 1.14), row(1.0, "FASTER", 1.09)]
    assert sentence(rows) == "Speculation is 1.14 x faster at T = 0 and 1.09 x at T = 1; output is lossless."
    rows = [row(0.0, "FASTER", 1.5), row(0.5, "SAME", 1.0), row(1.0, "SLOWER", 0.8), row(1.5, "INCONCLUSIVE", 1.02)]
    assert sentence(rows) == (
        "Speculation is 1.50 x faster at T = 0, 1.25 x slower at T = 1, as fast as plain decoding at T = 0.5, "
        "undecided at T = 1.5; output is lossless."
    )


def test_the_sentence_never_tells_the_gamma_of_an_invalid_cell() -> None:
    rows = [row(0.0, "INVALID", 1.9, "LOSSY"), row(1.0, "FASTER", 1.2)]
    text = sentence(rows)
    assert "1.90" not in text
    assert "not measured validly at T = 0" in text
    assert text.endswith("output is LOSSY in 1 of 2 cells and LOSSLESS in 1 of 2 cells.")


def test_several_engines_have_a_part_each_and_other_differences_are_counted() -> None:
    rows = [row(1.0, "FASTER", 1.2, backend="a"), row(1.0, "SLOWER", 0.8, backend="b")]
    assert sentence(rows).startswith("Speculation, by engine: a: 1.20 x faster at T = 1; b: 1.25 x slower at T = 1; ")
    rows = [row(1.0, "FASTER", 1.2, num_draft_tokens=k) for k in (1, 2)] + [row(1.0, "INCONCLUSIVE", 1.0, num_draft_tokens=3)]
    assert sentence(rows).startswith("Speculation is FASTER in 2 and INCONCLUSIVE in 1 of 3 cells; ")


@pytest.mark.parametrize(
    ("certificate", "words"),
    [("uncertified", "not certified in 1 of 1 cells"), ("LOSSY-DECLARED", "lossy by design in 1 of 1 cells")],
)
def test_output_without_a_certificate_is_not_called_lossless(certificate: str, words: str) -> None:
    assert sentence([row(0.0, "FASTER", 1.2, certificate)]).endswith(f"; output is {words}.")


def test_a_run_of_the_baseline_alone_shows_it() -> None:
    ((_, text),) = texts_of({"runs/record.json": replace(make_run([]), cells=())})
    assert "AR" in text
