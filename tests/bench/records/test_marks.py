"""A mark of a record is in the caption of every table and figure that uses it, and of no other; the record stays unedited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.records.marks import FILE, Marks, load_marks
from bench.reporting.derived import derived_files
from tests.bench.records.test_merge import PLAN, matrix

SENTENCE = "Its third seed is from elsewhere."


def pages(results: Path) -> dict[str, str]:
    return {path.relative_to(results).as_posix(): content.decode() for path, content in derived_files(results)}


def test_tables_and_figures_of_a_marked_record_show_its_sentence_and_others_do_not(tmp_path: Path) -> None:
    results = tmp_path / "results"
    folder = results / "amd-epyc-2c" / "kd_matrix" / "records"
    marked = matrix(folder / "20261120T120000Z-aaaaaaaaaa.jsonl", 0)
    matrix(folder / "20261121T120000Z-aaaaaaaaaa.jsonl", 1, plan=PLAN | {"domains": ["a"], "decode_temperatures": [0.5]})
    plain, before = pages(results), marked.read_bytes()
    (results / FILE).write_text(f"{json.dumps(marked.relative_to(results).as_posix())} = {json.dumps(SENTENCE)}\n")
    found = pages(results)
    assert marked.read_bytes() == before
    sections = found["amd-epyc-2c/kd_matrix/README.md"].split("\n## ")
    told = [SENTENCE in section for section in sections]
    assert any(told)
    assert not all(told[1:])
    figures = [name for name in found if name.endswith(".svg") and "kd_matrix" in name]
    assert sum(found[name] != plain[name] for name in figures) == 1
    assert found["amd-epyc-2c/claims/README.md"].count(SENTENCE) <= 1


def test_a_mark_of_no_record_is_refused(tmp_path: Path) -> None:
    assert load_marks(tmp_path) == Marks()
    (tmp_path / FILE).write_text('"nowhere.jsonl" = "text"\n')
    with pytest.raises(ValueError, match=r"marks\.toml: expected .* got 'nowhere\.jsonl'"):
        load_marks(tmp_path)
