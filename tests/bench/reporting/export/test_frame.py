"""The tidy frame: a row a timed pair, unknown counts missing, and gamma from it the one that the tables print."""

from __future__ import annotations

import doctest
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.analysis import metrics
from bench.commands import main
from bench.records.decoding import Round
from bench.records.journal import CellEnd, Journal, Triple
from bench.records.runs import CellRecord, RunRecord
from bench.reporting.export.frame import frame_of
from tests.support.record_builder import PREFILL_S, failed_record, make_cell, make_record, make_run

ROOT = Path(__file__).parents[4]
FILE = "example-cpu-2c/temperature_grid/20261120T100000Z-abcdef0123-reference.json"


def written(folder: Path, run: RunRecord, *, backend: str = "reference") -> Path:
    """A record where a run would have put it."""
    journal = Journal.start(folder, replace(run, cells=(), baseline=()), backend=backend)
    for triple in run.baseline:
        journal.append(Triple(triple))
    for record in run.cells:
        journal.append(CellEnd(record))
    return journal.finish()


def without_rounds(record: CellRecord) -> CellRecord:
    """As an engine that tells neither its rounds nor when the first token came."""
    pairs = tuple(
        replace(
            pair,
            ar=replace(pair.ar, first_token_s=None),
            sd=replace(pair.sd, first_token_s=None, rounds=None),
            replay=None,
        )
        for pair in record.pairs
    )
    return replace(record, pairs=pairs)


def gamma(rows: pd.DataFrame) -> float:
    spent = rows[["ar_decode_s", "ar_decode_tokens", "sd_decode_s", "sd_decode_tokens"]].sum()
    return (spent["ar_decode_s"] / spent["ar_decode_tokens"]) / (spent["sd_decode_s"] / spent["sd_decode_tokens"])


GRID = make_run([make_record(make_cell(temperature=t, repeats=2)) for t in (0.0, 0.5)])


def test_a_row_is_a_timed_pair_and_says_what_it_is() -> None:
    rows = frame_of({FILE: GRID})
    pairs = [(record, pair) for record in GRID.cells for pair in record.pairs]
    assert len(rows) == len(pairs) == 48
    for (_, row), (record, pair) in zip(rows.iterrows(), pairs, strict=True):
        counts = metrics.count_rounds(pair.sd.rounds or ())
        assert (row.suite, row.backend, row.temperature) == ("temperature_grid", "reference", record.cell.temperature)
        assert (row.prompt, row["repeat"], row.order) == (pair.prompt_index, pair.repeat, pair.order)
        assert (row.ar_s, row.ar_first_token_s, row.ar_tokens) == (pair.ar.seconds, PREFILL_S, len(pair.ar.token_ids))
        assert (row.sd_s, row.sd_first_token_s, row.sd_tokens) == (pair.sd.seconds, PREFILL_S, len(pair.sd.token_ids))
        assert (row.drafted, row.tested, row.accepted) == (counts.drafted, counts.tested, counts.accepted)
        assert (row.emitted, row["rounds"]) == (counts.emitted, counts.rounds)
    (first,) = rows.drop_duplicates("file").itertuples()
    assert (first.machine, first.commit, first.dirty, first.file) == ("example-2c", "abcdef0123", False, FILE)
    assert (first.created, first.target_hash, first.draft_hash) == (
        GRID.created,
        "aaaaaaaa11112222",
        "bbbbbbbb33334444",
    )


def test_gamma_and_alpha_of_the_frame_are_those_of_the_metrics() -> None:
    rows = frame_of({FILE: GRID})
    for record in GRID.cells:
        own = rows[rows["temperature"] == record.cell.temperature]
        measured, alpha = metrics.gamma(record), metrics.counted_alpha(record)
        assert measured is not None
        assert alpha is not None
        assert gamma(own) == pytest.approx(measured.estimate, rel=1e-12)  # rounding of sums
        assert own["accepted"].sum() / own["tested"].sum() == alpha.estimate


def test_tokens_that_came_with_the_first_are_no_decoding() -> None:
    record = make_record(noise=0)
    pairs = tuple(  # as engines that draft before their prefill: rounds emit the whole text
        replace(pair, sd=replace(pair.sd, rounds=(Round(4, 0, 1), *(pair.sd.rounds or ())))) for pair in record.pairs
    )
    longer = replace(record, pairs=pairs)
    one_token = replace(pairs[0], sd=replace(pairs[0].sd, token_ids=(1,), rounds=()))
    rows = frame_of({FILE: make_run([replace(longer, pairs=(one_token, *pairs[1:]))])})
    assert rows["sd_decode_tokens"].tolist() == [0, *(len(pair.sd.token_ids) - 1 for pair in pairs[1:])]
    assert rows["sd_decode_s"][0] == 0
    assert rows["sd_s"][0] == one_token.sd.seconds  # of the whole call, all the same


def test_what_an_engine_does_not_tell_is_missing_and_not_zero() -> None:
    rows = frame_of({FILE: make_run([make_record(), without_rounds(make_record(make_cell(backend="other")))])})
    told, untold = rows[rows["backend"] == "reference"], rows[rows["backend"] == "other"]
    unknown = ["drafted", "tested", "accepted", "emitted", "rounds", "ar_first_token_s", "sd_first_token_s"]
    unknown += ["ar_decode_s", "ar_decode_tokens", "sd_decode_s", "sd_decode_tokens"]
    assert told[unknown].notna().all(axis=None)
    assert untold[unknown].isna().all(axis=None)
    assert untold["sd_tokens"].notna().all()
    assert str(rows["rounds"].dtype) == "Int64"


def test_a_rule_that_judges_rounds_jointly_has_no_tested_positions() -> None:
    rows = frame_of({FILE: make_run([make_record(make_cell(rule="block"))])})
    assert rows["tested"].isna().all()
    assert rows["accepted"].notna().all()


def test_types_do_not_depend_on_the_values() -> None:
    whole, broken = make_record(make_cell(temperature=1.0)), without_rounds(make_record(make_cell(temperature=0.7)))
    types = [frame_of({FILE: make_run(cells)}).dtypes for cells in ([whole], [broken], [])]
    assert types[0].equals(types[1])
    assert types[0].equals(types[2])


def test_invalid_cells_are_there_with_their_verdict_and_reasons() -> None:
    rows = frame_of({FILE: make_run([make_record(), make_record(make_cell(temperature=0.5), warmup_settled=False)])})
    invalid = rows[rows["verdict"] == "INVALID"]
    assert set(invalid["temperature"]) == {0.5}
    assert set(invalid["reasons"]) == {"warm-up never settled"}
    assert set(rows["verdict"]) == {"FASTER", "INVALID"}


def test_what_a_suite_varies_besides_has_a_column_of_its_own() -> None:
    cells = [make_cell(concurrency=load) for load in (1, 4)]
    cells.append(make_cell(schedule=((0, 1.0), (24, 0.25)), options=(("mixed", 0.5),)))
    cells.append(make_cell(options=(("mixed", "half"),)))
    rows = frame_of({FILE: make_run([make_record(cell) for cell in cells])})
    assert rows["concurrency"].dropna().unique().tolist() == [1, 4]
    assert str(rows["concurrency"].dtype) == "Int64"
    assert rows["schedule"].dropna().unique().tolist() == ["1@0,0.25@24"]
    assert rows["option_mixed"].dropna().unique().tolist() == ["0.5", "half"]


def test_a_folder_and_a_record_are_read_alike_and_the_oldest_comes_first(tmp_path: Path) -> None:
    newer = written(tmp_path, replace(GRID, created="2026-11-21T10:00:00+00:00"))
    written(tmp_path, GRID)
    rows = bench.frame(tmp_path)
    assert rows["created"].is_monotonic_increasing
    assert newer.relative_to(tmp_path).as_posix() == rows["file"].iloc[-1]
    alone = bench.frame(str(newer))
    assert alone["file"].unique().tolist() == [newer.name]
    pd.testing.assert_frame_equal(
        alone.drop(columns="file"), rows[48:].reset_index(drop=True).drop(columns="file"), check_exact=True
    )


def test_importing_the_package_loads_no_pandas_and_the_function_stays_one() -> None:
    code = (
        "import sys, bench; assert 'pandas' not in sys.modules and 'numpy' not in sys.modules;"
        "import bench.commands.frame; from bench.reporting.export import frame; assert bench.frame is frame.frame;"
        "assert not hasattr(bench, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# The command
def test_csv_and_parquet_hold_the_same_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "results", GRID)
    csv, parquet = tmp_path / "pairs.csv", tmp_path / "pairs.parquet"
    assert main.main(["frame", str(tmp_path / "results"), "--csv", str(csv), "--parquet", str(parquet)]) == 0
    rows = bench.frame(tmp_path / "results")
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), rows)
    again = pd.read_csv(csv, dtype=rows.dtypes.to_dict(), keep_default_na=False, na_values={"group": [""], "schedule": [""]})
    pd.testing.assert_frame_equal(again, rows)
    assert capsys.readouterr().out == ""
    assert main.main(["frame", str(tmp_path / "results"), "--csv", "-"]) == 0
    assert pd.read_csv(io.StringIO(capsys.readouterr().out)).shape == rows.shape


def test_without_a_file_the_command_counts_rows_by_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unsettled = make_record(make_cell(temperature=0.5), warmup_settled=False)
    written(tmp_path, make_run([make_record(), unsettled, failed_record(make_cell(temperature=0.0))]))
    written(tmp_path, make_run([make_record(make_cell(suite="other"))], suite="other"))
    assert main.main(["frame", str(tmp_path)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [
        "temperature_grid",
        "1",
        "3",
        "1",
        "24",
        "12",
    ] in shown  # records, cells, failed, rows, rows of INVALID cells
    assert ["other", "1", "1", "0", "12", "0"] in shown
    assert main.main(["frame", str(tmp_path), "--suite", "other"]) == 0
    assert "temperature_grid" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere, which does not exist"),
        ((".", "--suite", "nothing"), "expected records of nothing in ., found temperature_grid"),
        (("empty",), "found none"),
        (("broken.json",), "broken.json: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] == ".":
        written(tmp_path, GRID)
    (tmp_path / "empty").mkdir()
    if arguments[0] == "broken.json":
        (tmp_path / "broken.json").write_text('{"schema": 1,\n')
    assert main.main(["frame", *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not shown.out


def test_a_missing_pyarrow_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise ImportError("Unable to find a usable engine; tried using: 'pyarrow', 'fastparquet'.")

    written(tmp_path, GRID)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", unavailable)
    assert main.main(["frame", str(tmp_path), "--parquet", str(tmp_path / "x.parquet")]) == 2
    assert capsys.readouterr().err == "specheat: error: parquet needs pyarrow: pip install pyarrow\n"


def test_the_example_in_the_documents_runs_as_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    outcome = doctest.testfile(
        str(ROOT / "docs" / "results.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert outcome.attempted >= 5
    assert outcome.failed == 0
