"""Tables that only one suite has: their numbers against closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.analysis import metrics
from bench.analysis.metrics import round_costs
from bench.analysis.rows import Row, newest_rows
from bench.records.runs import CellRecord
from bench.reporting.suite_page import suite_tables
from bench.reporting.suites.deployment import payback_tokens
from bench.reporting.suites.out_of_range import repeated_share
from bench.reporting.table import MISSING, Table
from tests.support.record_builder import PAIR, make_cell, make_record, make_run


def further_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Return the tables that only the suite of these rows has."""
    own = (": mechanism", ": side by side")
    return tuple(table for table in suite_tables({}, rows) if ": " in table.title and not table.title.endswith(own))


def table_of(suite: str, *records: CellRecord, **changes: object) -> Table:
    run = make_run(records, suite=suite, **changes)
    (table,) = further_tables(newest_rows({"m/s/a.json": run}))
    return table


def column(table: Table, header: str) -> list[str]:
    return [row[table.headers.index(header)].text for row in table.body]


def test_a_slow_down_is_split_without_a_rest_into_fewer_tokens_and_dearer_rounds() -> None:
    cold, hot = (make_record(make_cell(temperature=t), alpha=alpha, gamma=1.2) for t, alpha in ((0.0, 0.8), (1.0, 0.4)))
    table = table_of("cost_of_temperature", hot, cold)
    assert column(table, "temperature") == ["0", "1"]
    whole, fewer, dearer = (
        [float(text) for text in column(table, header)]
        for header in ("slower than\ncoldest", "of it: fewer\ntokens a round", "of it:\ndearer rounds")
    )
    assert (whole[0], fewer[0], dearer[0]) == (0, 0, 0)
    assert whole[1] == pytest.approx(fewer[1] + dearer[1], abs=0.11)  # each is rounded to a tenth
    efficiencies = [metrics.block_efficiency(record) for record in (cold, hot)]
    assert efficiencies[0] is not None
    assert efficiencies[1] is not None
    assert fewer[1] == pytest.approx(100 * math.log(efficiencies[0].estimate / efficiencies[1].estimate), abs=0.06)


def test_the_cost_of_a_round_is_that_of_its_phases() -> None:
    costs = round_costs(make_record())
    assert costs is not None
    assert set(costs) == {"draft", "verify", "accept", "other"}
    assert costs["verify"] / costs["draft"] == pytest.approx(3.5)
    without = make_record()
    without = replace(without, pairs=tuple(replace(pair, replay=None) for pair in without.pairs))
    assert round_costs(without) is None
    assert further_tables(newest_rows({"a": make_run((without,), suite="cost_of_temperature")})) == ()


def test_each_group_of_cells_has_a_table_that_says_which_it_is() -> None:
    few, many = (make_record(make_cell(num_prompts=number)) for number in (8, 12))
    runs = {name: make_run((record,), suite="cost_of_temperature") for name, record in (("a", few), ("b", many))}
    found = further_tables(newest_rows(runs))
    assert sorted(table.facts["every cell"].split("num_prompts ")[1].split(",")[0] for table in found) == ["12", "8"]


def test_forwards_stand_beside_their_linear_layers_alone() -> None:
    record = make_record(gamma=1.2)
    assert further_tables(newest_rows({"a": make_run((record,), suite="floor")})) == ()
    pairs = tuple(
        replace(
            pair,
            forwards=tuple(
                replace(one, ar_floor_s=one.ar_s / 2, draft_floor_s=one.draft_s / 4, verify_floor_s=one.verify_s)
                for one in pair.forwards
            ),
        )
        for pair in record.pairs
    )
    table = table_of("floor", replace(record, pairs=pairs))
    for name, expected in (("ar", "2.00"), ("draft", "4.00"), ("verify", "1.00")):
        assert column(table, f"{name} forward\n/ floor") == [expected]
    arm = metrics.seconds_per_token(record, "ar")
    assert arm is not None
    expected = arm.estimate / (record.pairs[0].forwards[0].ar_s / 2)
    assert column(table, "AR token\n/ floor") == [f"{expected:.2f}"]


def test_retuning_k_gives_back_a_share_of_what_heat_takes() -> None:
    def measured(temperature: float, k: int, gamma: float, **options: str) -> CellRecord:
        cell = make_cell(temperature=temperature, num_draft_tokens=k, **options)
        return make_record(cell, gamma=gamma)

    constant = [measured(0.0, 4, 1.6), measured(0.0, 1, 1.2), measured(1.0, 4, 1.0), measured(1.0, 1, 1.3)]
    table = table_of("draft_length", *constant, measured(1.0, 4, 1.1, draft_length="adaptive"))
    assert column(table, "best k") == ["4", "1"]
    assert column(table, "k best at\ncoldest T") == ["4", "4"]
    cold, _, hot, tuned = (ratio.estimate for record in constant if (ratio := metrics.gamma(record)))
    (lost,) = column(table, "lost since\ncoldest T")[1:]
    (given_back,) = column(table, "of it given back\nby best k")[1:]
    assert float(lost) == pytest.approx(100 * math.log(cold / hot), abs=0.06)
    assert float(given_back.rstrip("%")) == pytest.approx(100 * math.log(tuned / hot) / math.log(cold / hot), abs=0.6)
    none, adapted = column(table, "gamma of\nadaptive k")
    assert none == MISSING
    assert float(adapted.split()[0]) == pytest.approx(1.1, abs=0.05)


def test_rows_of_other_options_are_retuned_apart() -> None:
    def measured(k: int, gamma: float, size: int) -> CellRecord:
        cell = make_cell(temperature=0.0, num_draft_tokens=k, options=(("draft_vocabulary", size),))
        return make_record(cell, gamma=gamma)

    table = table_of("draft_length", measured(1, 1.1, 10), measured(4, 1.6, 10), measured(1, 1.3, 20), measured(4, 0.9, 20))
    assert column(table, "draft_vocabulary") == ["10", "20"]
    assert column(table, "best k") == ["4", "1"]


@pytest.mark.parametrize(
    ("token_ids", "share"),
    [((1, 2, 3, 4, 5), 0.0), ((1, 1, 1, 1, 1, 1), 2 / 3), ((1, 2, 3, 4) * 3, 5 / 9), ((1, 2, 3, 4), None)],
)
def test_a_repeat_is_a_gram_that_stood_in_the_text_before(token_ids: tuple[int, ...], share: float | None) -> None:
    assert repeated_share(token_ids) == (share if share is None else pytest.approx(share))


def test_texts_beyond_the_range_are_told_apart_from_loops_and_word_salad() -> None:
    loop = make_record(make_cell(temperature=0.0))
    loop = replace(loop, pairs=tuple(replace(pair, sd=replace(pair.sd, token_ids=(7,) * 40)) for pair in loop.pairs))
    salad = make_record(make_cell(temperature=2.0))
    salad = replace(
        salad,
        pairs=tuple(
            replace(pair, sd=replace(pair.sd, token_ids=tuple(range(40)), finish_reason="length")) for pair in salad.pairs
        ),
    )
    table = table_of("out_of_range", loop, salad)
    assert column(table, "SD repeated\n4-grams") == ["97.3%", "0.0%"]
    assert column(table, "SD distinct\ntokens") == ["2.5%", "100.0%"]
    assert column(table, "SD ended by\nitself") == ["100%", "0%"]


def test_training_has_paid_for_itself_when_the_seconds_saved_exceed_its_own() -> None:
    card = {"recipe": "base", "text_by_target_s": 100.0, "text_by_draft_s": 0.0, "trained_s": 50.0}
    for gamma, expected in ((1.25, 150 / (0.035 * 0.2)), (0.8, math.inf)):
        run = make_run((make_record(gamma=gamma, noise=0.0),), suite="deployment", drafts={PAIR.draft: card})
        (row,) = newest_rows({"a": run})
        found = payback_tokens(row)
        assert found is not None
        # Prefill is part of whole calls and the same in both arms, so the saving per token is a little off.
        assert found == pytest.approx(expected, rel=0.25)
    table = table_of("deployment", make_record(gamma=0.8), drafts={PAIR.draft: card})
    assert column(table, "tokens to\npay it back") == ["never"]
    assert column(table, "KD\nseconds") == ["150"]
    assert column(table_of("deployment", make_record()), "tokens to\npay it back") == ["–"]


def test_suites_without_findings_have_no_further_table() -> None:
    assert further_tables(newest_rows({"a": make_run((make_record(),))})) == ()
    assert further_tables(()) == ()
