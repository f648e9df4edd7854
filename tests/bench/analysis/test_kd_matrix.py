"""Alpha of a KD matrix: intervals that cover other seeds and other prompts, changes, and the best KD temperatures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.analysis.kd_matrix import alphas, best_kd_temperatures, changes, estimate
from bench.records.kd_matrix import START, Matrix, MatrixCell, MeasuredDraft

T = (0.0, 0.5, 1.0)  # decode temperatures


def cell_of(alpha: float, temperature: float = 1.0) -> MatrixCell:
    """Twenty prompts that all accept alike."""
    tested = tuple(float(10 + prompt) for prompt in range(20))
    nothing = (0,) * 20
    return MatrixCell(
        "instructions", temperature, nothing, nothing, tested, tuple(alpha * each for each in tested), nothing, nothing
    )


def line(arm: str, kd_temperature: float | None, seed: int | None, *alpha: float, on_policy: float = 0.0) -> MeasuredDraft:
    cells = tuple(map(cell_of, alpha, T[-len(alpha) :]))
    return MeasuredDraft(f"{arm}-{kd_temperature}-{seed}", arm, kd_temperature, on_policy, seed, {}, {}, cells)


MATRIX = Matrix(
    {},
    (
        line(START, None, None, 0.6, 0.55, 0.5),
        *(line("offline", 0.0, seed, 0.65 + seed / 100, 0.6, 0.5) for seed in (0, 1)),
        *(line("offline", 1.0, seed, 0.6, 0.6, 0.55 + seed / 100) for seed in (0, 1)),
        *(line("online", 0.5, seed, 0.5, 0.5, 0.5, on_policy=0.5) for seed in (0, 1)),
    ),
)


def test_matched_is_the_offline_draft_of_each_decode_temperature() -> None:
    values = alphas(MATRIX)
    assert list(values) == [
        *((START, 0.0, None), ("offline", 0.0, 0.0), ("offline", 0.0, 1.0)),
        *(("online", 0.5, 0.5), ("matched", 0.0, None)),
    ]
    matched = values[("matched", 0.0, None)]
    assert matched == [values[("offline", 0.0, 0.0)][0], None, values[("offline", 0.0, 1.0)][2]]
    assert [value.estimate for value in values[("offline", 0.0, 0.0)] if value] == pytest.approx([0.655, 0.6, 0.5])


def test_changes_are_against_the_start_on_the_same_texts() -> None:
    alpha, change = alphas(MATRIX), changes(MATRIX)
    assert set(alpha) - set(change) == {(START, 0.0, None)}
    for kind, row in change.items():
        for place, value in enumerate(row):
            if value is not None:
                expected = alpha[kind][place].estimate - alpha[(START, 0.0, None)][place].estimate
                assert value.estimate == pytest.approx(expected)


def test_the_best_kd_temperature_stands_with_those_that_may_be_as_good() -> None:
    clear = [line("offline", kd, seed, 0.5 + 0.1 * kd + 0.001 * seed) for kd in (0.0, 0.1, 1.0) for seed in (0, 1, 2)]
    ((at, others),) = best_kd_temperatures(Matrix({}, tuple(clear)))["offline", 0.0]
    assert (at, others) == (1.0, [])
    alone = [each for each in clear if each.seed == 0]
    assert best_kd_temperatures(Matrix({}, tuple(alone)))["offline", 0.0] == [(1.0, [0.0, 0.1])]
    assert set(best_kd_temperatures(MATRIX)) == {("offline", 0.0), ("online", 0.5)}


def test_intervals_cover_other_seeds_and_other_prompts() -> None:
    generator = np.random.default_rng(0)
    num_runs, num_seeds, num_prompts = 2000, 3, 40
    for seed_spread, prompt_spread in ((0.02, 0.02), (0.002, 0.1), (0.03, 0.005)):
        held = {0.5: 0, 0.0: 0}
        for _ in range(num_runs):
            tested = generator.integers(20, 60, num_prompts)
            shared = generator.normal(0, prompt_spread, num_prompts)
            cells = []
            for shift in generator.normal(0, seed_spread, num_seeds):
                accepted = tested * (0.5 + shift + shared)
                cells.append(MatrixCell("instructions", 0.5, (), (), tuple(tested), tuple(accepted), (), ()))
            # The start shares the prompts and knows no seeds: what is left of the difference is the seeds' own.
            start = MatrixCell("instructions", 0.5, (), (), tuple(tested), tuple(tested * (0.5 + shared)), (), ())
            for found, truth in ((estimate(cells), 0.5), (estimate(cells, [start]), 0.0)):
                assert found.half_width is not None
                held[truth] += abs(found.estimate - truth) <= found.half_width
        for count in held.values():
            assert 0.935 < count / num_runs < 0.99, (
                seed_spread,
                prompt_spread,
            )  # chance of so many runs, and a bit wide


def test_a_single_seed_gives_no_interval() -> None:
    cell = MatrixCell("instructions", 0.5, (4, 4), (2.0, 3.0), (4.0, 4.0), (2.0, 3.0), (4, 4), (2.0, 2.0))
    found = estimate([cell])
    assert (found.estimate, found.half_width) == (0.625, math.inf)
