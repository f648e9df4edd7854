"""The tables and heat maps of a KD matrix."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from bench.analysis.kd_matrix import alphas
from bench.records.kd_matrix import START, Matrix, MatrixCell, MeasuredDraft
from bench.reporting.formats import markdown, terminal_page
from bench.reporting.suites.kd_matrix import derived, heat_maps, tables
from bench.reporting.table import MISSING, Table

DOMAINS = ("instructions:held_out", "word_problems:held_out")
PLAN = {
    "arms": ["offline", "online@0.5", "composed"],
    "domains": list(DOMAINS),
    "decode_temperatures": [0.0, 0.5, 1.0],
    "job": {"start": "a draft", "trained": "adapters", "plan": {"num_tokens": 52_000}},
}


def cell_of(alpha: float, temperature: float, domain: str, **changes: object) -> MatrixCell:
    """Twenty prompts that accept alike, but for a little."""
    tested = tuple(float(10 + prompt) for prompt in range(20))
    accepted = tuple(each * (alpha + 0.002 * (prompt % 2 - 0.5)) for prompt, each in enumerate(tested))
    counts = (20,) * 20
    cell = MatrixCell(domain, temperature, counts, tuple(20 * alpha for _ in tested), tested, accepted, counts, tested)
    return replace(cell, **changes)  # type: ignore[arg-type]


def drafts(arm: str, kd_temperature: float | None, gain: float, *, on_policy: float = 0.0) -> list[MeasuredDraft]:
    """Two seeds that accept so much more than the start."""
    cost = {"text_by_target": 50_000, "text_by_draft": 0, "trained": 52_000}, {"trained": 1800.0}
    return [
        MeasuredDraft(f"{arm}-{kd_temperature}-{seed}", arm, kd_temperature, on_policy, seed, *cost, cells(gain + 0.002 * seed))
        for seed in (0, 1)
    ]


def cells(gain: float = 0.0) -> tuple[MatrixCell, ...]:
    return tuple(cell_of(0.6 - 0.1 * t + gain, t, domain) for domain in DOMAINS for t in (0.0, 0.5, 1.0))


START_LINE = MeasuredDraft("start", START, None, 0.0, None, {}, {}, cells())
MATRIX = Matrix(
    PLAN,
    (
        START_LINE,
        *(*drafts("offline", 0.0, 0.05), *drafts("offline", 1.0, 0.02)),
        *(*drafts("online", 0.5, -0.03, on_policy=0.5), *drafts("composed", None, 0.0)),
    ),
    "smollm2",
)


def titled(found: Iterable[Table], title: str) -> Table:
    return next(table for table in found if table.title.startswith(title))


def texts(table: Table) -> list[list[str]]:
    return [[entry.text for entry in line] for line in table.body]


def test_alpha_has_a_row_for_each_kind_and_the_matched_draft_beside_it() -> None:
    table = titled(tables(MATRIX), "alpha on instructions:held_out")
    assert table.headers == ("draft", "KD T", "T = 0", "T = 0.5", "T = 1")
    lines = texts(table)
    assert [line[:2] for line in lines] == [
        *([START, ""], ["offline", "0"], ["offline", "1"]),
        *(["online, lambda 0.5", "0.5"], ["composed", ""], ["matched", ""]),
    ]
    assert lines[-1][2:] == [lines[1][2], MISSING, lines[2][4]]
    values = alphas(MATRIX.on(DOMAINS[0]))
    for place in range(3):
        best = max(row[place].estimate for row in values.values() if row[place])
        bold = [line[2 + place].text for line in table.body if line[2 + place].bold]
        assert all(text.startswith(f"{best:.3f} ± ") for text in bold)
        assert bold
    assert table.facts["drafts"] == "8 drafts, 2 seeds"
    assert table.facts["texts"] == "20 held-out prompts of instructions:held_out"
    assert "52,000 answer tokens as adapters of the start" in table.facts["training"]
    assert "took 4.0 hours" in table.facts["training"]


def test_changes_are_in_points_and_bold_where_the_interval_does_not_hold_0() -> None:
    table = titled(tables(MATRIX), "change of alpha on word_problems:held_out")
    offline, composed = table.body[0], table.body[3]
    assert offline[2].text.startswith("+5.1 ± ")
    assert offline[2].bold
    assert composed[2].text.startswith("+0.1 ± ")
    assert not composed[2].bold


def test_regrets_are_sorted_and_best_temperatures_stand_with_those_not_surely_below() -> None:
    found = tables(MATRIX)
    assert texts(titled(found, "regret on instructions"))[:2] == [
        ["offline", "0", "0.0", "0.0"],
        ["offline", "1", "3.0", "3.0"],
    ]
    best = texts(titled(found, "best KD T on instructions"))
    assert best == [["offline", "0", "0", "0"], ["online, lambda 0.5", "0.5", "0.5", "0.5"]]


def test_a_single_seed_has_no_interval_and_the_start_alone_only_its_alpha() -> None:
    single = replace(MATRIX, measured=tuple(line for line in MATRIX.measured if line.seed in (None, 0)))
    found = tables(single)
    assert texts(titled(found, "alpha"))[1][2] == "0.650"
    assert titled(found, "alpha").facts["drafts"] == "4 drafts, 1 seed"
    assert texts(titled(found, "change"))[0][2] == "+5.0"
    assert [table.title for table in tables(replace(MATRIX, measured=(START_LINE,)))] == [
        f"alpha on {each}" for each in DOMAINS
    ]


def test_the_cost_is_that_of_all_domains() -> None:
    (table,) = (table for table in tables(MATRIX) if table.title == "what a draft cost")
    assert texts(table)[0] == ["offline", "0", MISSING, "50,000", "0", "52,000", "1,800", MISSING]
    assert [line[0] for line in texts(table)] == ["offline", "offline", "online, lambda 0.5", "composed"]


def test_arms_in_the_seconds_of_others_are_said_to_differ_in_tokens() -> None:
    plan = PLAN | {"arms": ["offline", "online", "offline=online"]}
    assert "as many as these are worth" in titled(tables(replace(MATRIX, plan=plan)), "alpha").facts["training"]
    assert "as many as these are worth" not in titled(tables(MATRIX), "alpha").facts["training"]


def test_a_record_with_frozen_texts_splits_the_change_of_alpha() -> None:
    assert not [table for table in tables(MATRIX) if table.title.startswith("why")]
    rescaled = tuple(replace(cell, rescaled=tuple(20 * 0.58 for _ in cell.tested)) for cell in START_LINE.cells)
    found = tables(replace(MATRIX, measured=(replace(START_LINE, cells=rescaled), *MATRIX.measured[1:])))
    hottest = texts(titled(found, "why alpha changes"))[-1]
    assert hottest[:2] == ["1", "0.500 ± 0.000"]
    assert (hottest[2].split()[0], hottest[3].split()[0]) == ("-2.0", "-8.0")


def test_heat_maps_are_the_same_each_time_and_absent_without_an_arm_of_one_temperature() -> None:
    image = heat_maps(MATRIX.on(DOMAINS[0]))
    assert image is not None
    assert image == heat_maps(MATRIX.on(DOMAINS[0]))
    mixtures = replace(MATRIX, measured=tuple(line for line in MATRIX.measured if line.arm in (START, "composed")))
    assert heat_maps(mixtures.on(DOMAINS[0])) is None
    assert "composed" in terminal_page(tables(mixtures))


def write(path: Path, plan: dict[str, object], measured: Iterable[MeasuredDraft]) -> Path:
    lines = ({"plan": plan, "command": ["specheat"]}, *map(asdict, measured))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_records_made_alike_are_one_matrix_and_others_are_told_apart(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", PLAN, MATRIX.measured[:3])
    second = write(tmp_path / "b.jsonl", PLAN, (START_LINE, *MATRIX.measured[3:]))
    page = derived([first, second])
    assert titled(page.tables, "alpha").facts["drafts"] == "8 drafts, 2 seeds"
    assert len(page.figures) == len(DOMAINS)
    assert [table.title for table in page.tables] == [table.title for table in tables(MATRIX)]

    other = json.loads(json.dumps(PLAN))
    other["job"]["plan"]["num_tokens"] = 26_000
    page = derived([write(first, other, MATRIX.measured[:3]), second])
    alpha = [table for table in page.tables if table.title.startswith("alpha on instructions")]
    assert [table.title for table in alpha] == [
        f"alpha on instructions:held_out, num_tokens {num_tokens}" for num_tokens in (52000, 26000)
    ]
    assert [table.facts["drafts"] for table in alpha] == ["6 drafts, 2 seeds", "2 drafts, 2 seeds"]
    assert len(page.figures) == 2 * len(DOMAINS)
    assert {name for table in page.tables for name in table.figures} == set(page.figures)


def test_every_format_states_what_bold_means() -> None:
    found = tables(MATRIX)
    for text in (terminal_page(found), *(markdown(table, "..") for table in found if table.title.startswith("change"))):
        assert "one cell in twenty is bold by chance" in text
