"""Warping and sampling, against twins written from the definitions in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.acceptance.warping import sample, warp

derandomised = settings(derandomize=True, deadline=None, max_examples=200)

# A coarse grid of logits, so that ties at the boundary of a truncation are the rule and not the exception.
logit_rows = st.lists(st.integers(-6, 6).map(lambda level: level / 2), min_size=1, max_size=12)
LARGEST_UNIFORM = 1 - 2.0**-53


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def naive_warp(logits: list[float], *, temperature: float, top_k: int, top_p: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    kept = order[: top_k or None]
    mass = sum(weights[token] for token in kept)
    nucleus, covered = [], 0.0
    for token in kept:
        if covered >= top_p * mass * (1 - 1e-12):
            break
        nucleus.append(token)
        covered += weights[token]
    return [weights[token] / covered if token in nucleus else 0.0 for token in range(len(logits))]


@derandomised
@given(
    logit_rows,
    st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    st.integers(0, 14),
    st.sampled_from([0.05, 0.31, 0.77, 0.95, 1.0]),
)
def test_warping_agrees_with_its_definition(logits, temperature, top_k, top_p):
    probs = warp(row(*logits), temperature=temperature, top_k=top_k, top_p=top_p)[0]
    expected = naive_warp(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    # float32 rounding of a dozen terms
    assert probs.tolist() == pytest.approx(expected, abs=1e-6)
    assert [p > 0 for p in probs.tolist()] == [p > 0 for p in expected]


@derandomised
@given(logit_rows)
def test_zero_temperature_puts_all_mass_on_the_lowest_of_the_likeliest_tokens(logits):
    probs = warp(row(*logits), temperature=0, top_k=3, top_p=0.5)[0].tolist()
    assert probs == [float(token == logits.index(max(logits))) for token in range(len(logits))]


@pytest.mark.parametrize("tiny", [1e-3, 1e-20, 1e-38, 1e-45, 5e-324])
def test_a_tiny_temperature_is_greedy_and_never_overflows(tiny):
    assert warp(row(-1e4, 300.0, 200.0, -math.inf), temperature=tiny).tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("huge", [1e8, 1e38])
def test_a_huge_temperature_is_uniform_over_the_tokens_that_are_allowed_at_all(huge):
    probs = warp(row(-5.0, 3.0, 2.0, 9.0, -math.inf), temperature=huge)[0].tolist()
    assert probs == pytest.approx([0.25, 0.25, 0.25, 0.25, 0], abs=1e-6)


def test_temperature_is_applied_once():
    probs = warp(row(math.log(4), 0.0), temperature=2)[0].tolist()
    assert probs == pytest.approx([2 / 3, 1 / 3])


def test_top_p_is_measured_on_what_top_k_left_and_after_the_temperature():
    logits = row(*(math.log(p) for p in (0.36, 0.34, 0.2, 0.1)))
    # Of the two kept by top-k the first holds 0.514; of all four it would hold 0.36.
    assert warp(logits, temperature=1, top_k=2, top_p=0.5)[0].tolist() == [1, 0, 0, 0]
    assert warp(logits, temperature=1, top_p=0.5)[0].count_nonzero() == 2
    assert warp(logits, temperature=0.1, top_p=0.5)[0].count_nonzero() == 1


def test_ties_at_the_boundary_of_a_truncation_go_to_the_lowest_token_ids():
    tied = torch.zeros(1, 1000)
    assert warp(tied, temperature=1, top_k=3)[0].nonzero().flatten().tolist() == [0, 1, 2]
    assert warp(tied, temperature=1, top_p=0.0025)[0].nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": 7}, {"top_k": 8}, {"top_p": 1.0}])
def test_a_truncation_that_keeps_everything_changes_nothing(options):
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(warp(logits, temperature=0.7, **options), warp(logits, temperature=0.7))


def test_rows_are_warped_independently_and_the_logits_are_left_alone():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    for options in ({}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.6}):
        together = warp(logits, temperature=0.7, **options)
        apart = torch.cat([warp(one, temperature=0.7, **options) for one in logits.split(1)])
        assert torch.equal(together, apart)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_probabilities_are_computed_in_float32_whatever_the_logits_are(dtype):
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(3)).to(dtype)
    probs = warp(logits, temperature=0.7)
    assert probs.dtype == torch.float32
    assert torch.equal(probs, warp(logits.float(), temperature=0.7))


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (LARGEST_UNIFORM, 4), (1.0, 4)]
)
def test_a_token_owns_its_interval_of_the_cumulative_distribution(uniform, token):
    probs = row(0, 0.25, 0, 0.5, 0.25, 0)
    assert sample(probs, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


@derandomised
@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-9, 0.3, 1.0]), min_size=1, max_size=9).filter(lambda w: max(w) > 0.1),
    st.one_of(st.floats(0, LARGEST_UNIFORM), st.sampled_from([0.0, LARGEST_UNIFORM, 1.0])),
)
def test_a_token_of_probability_zero_is_never_drawn(weights, uniform):
    probs = row(*weights) / sum(weights)
    token = sample(probs, torch.tensor([uniform], dtype=torch.float64))
    assert probs[0, token].item() > 0


def test_each_row_of_a_batch_uses_its_own_uniform_and_its_own_total():
    probs = torch.cat([row(0.5, 0.5), row(0.25, 0.25), row(0.0, 1.0)])
    assert sample(probs, torch.tensor([0.4, 0.6, 0.0])).tolist() == [0, 1, 1]


def test_over_a_real_vocabulary_the_intervals_are_as_long_as_the_probabilities():
    vocab_size = 49_152
    probs = warp(torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(4)) * 3, temperature=1.0)
    exact = probs[0].double() / probs[0].double().sum()
    edges = exact.cumsum(0)
    # The edges are good to 1e-15 in float64 and the integer units to 5e-11 in all; 1e-9 inside an interval is inside.
    inside = (exact > 4e-9).nonzero().flatten()[::97]
    for shift in (-1e-9, exact[inside] * -1 + 1e-9):
        drawn = sample(probs.expand(len(inside), -1), edges[inside] + shift)
        assert torch.equal(drawn, inside)


def test_the_frequencies_of_drawn_tokens_follow_the_probabilities():
    probs = row(0.5, 0.0, 0.3, 0.15, 0.05)
    num_draws = 200_000
    uniforms = torch.rand(num_draws, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    counts = torch.bincount(sample(probs.expand(num_draws, -1), uniforms), minlength=5)
    expected = probs[0].double() * num_draws
    seen = expected > 0
    # 99.99 % quantile of chi-square with 3 degrees of freedom: a false alarm in 1 of 10,000 seeds, and the seed is fixed.
    assert ((counts - expected)[seen] ** 2 / expected[seen]).sum() < 21.1
    assert counts[1] == 0


def test_nothing_waits_for_the_device():
    # Meta tensors have no values: any step that needed one on the host would raise.
    logits = torch.empty(3, 11, device="meta")
    uniforms = torch.empty(3, dtype=torch.float64, device="meta")
    for options in ({"temperature": 0}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 4, "top_p": 0.5}):
        assert sample(warp(logits, **options), uniforms).shape == (3,)
