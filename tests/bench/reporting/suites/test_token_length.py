"""The page of the suite `token_length`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.analysis.token_length import COVARIATES, LENGTH_BINS, MODELS
from bench.records.token_length import LengthRecord
from bench.reporting.suites.token_length import derived
from bench.reporting.table import MISSING
from tests.support.simulated_lengths import simulated, stored


def test_the_page_says_what_acceptance_is_conditional_on_and_is_the_same_the_second_time(tmp_path: Path) -> None:
    path = stored(simulated(13), tmp_path)
    unfinished = path.with_name("20261124T100000Z-abcdef0123-reference.partial.jsonl")
    page = derived([path, unfinished])
    assert page == derived([path])
    assert page.figures[page.tables[0].figures[0]].startswith(b"<?xml")
    facts = page.tables[0].facts
    assert "conditional on the token that was emitted" in facts["accepted"]
    assert "special tokens left out: 12" in facts["positions"]
    assert {*LENGTH_BINS, *MODELS, *COVARIATES, "change"} <= {line[0].text for table in page.tables for line in table.body}
    assert sum(table.headers.count("all T") for table in page.tables) == 5
    with pytest.raises(ValueError, match="finished record"):
        derived([unfinished])


def test_a_record_of_one_temperature_and_one_prompt_has_a_page_without_intervals(tmp_path: Path) -> None:
    record = simulated(14, num_prompts=1)
    header = replace(record.header, temperatures=(1.0,), num_draft_tokens=1)
    text = record.texts[1]
    only = LengthRecord(header, (replace(text, slots=(1,) * len(text.slots)),))
    page = derived([stored(only, tmp_path)])
    assert not any("all T" in table.headers for table in page.tables)
    slots = [line for line in page.tables[-1].body if line[0].text == "slot"]
    assert [entry.text for line in slots for entry in line] == ["slot", MISSING]  # it does not vary
