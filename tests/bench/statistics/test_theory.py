"""Formulas of bench.statistics.theory: closed form, direct sum and simulation must agree."""

import itertools
import math

import numpy as np
import pytest

from bench.statistics.theory import SlotTotals, expected_block_efficiency, predicted_gamma, propagate_slots


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8])
def test_expected_block_efficiency_agrees_by_three_routes(alpha: float, k: int) -> None:
    efficiency = expected_block_efficiency(alpha, k)
    assert efficiency == pytest.approx((1 - alpha ** (k + 1)) / (1 - alpha), rel=1e-12)

    lengths = range(k)
    by_length = sum((n + 1) * alpha**n * (1 - alpha) for n in lengths) + (k + 1) * alpha**k
    assert efficiency == pytest.approx(by_length, rel=1e-12)

    passed = np.random.default_rng(0).random((20_000, k)) < alpha
    emitted = 1 + np.cumprod(passed, axis=1).sum(axis=1)
    # 4.5 standard errors: false-alarm rate 7e-6 were the seed not fixed
    assert abs(emitted.mean() - efficiency) <= 4.5 * emitted.std() / np.sqrt(len(emitted))


def test_expected_block_efficiency_is_exact_at_and_near_alpha_one() -> None:
    assert expected_block_efficiency(1.0, 4) == 5
    assert expected_block_efficiency(1 - 1e-15, 4) == pytest.approx(5, rel=1e-13)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="expected alpha in"):
        expected_block_efficiency(alpha, 3)


def test_predicted_gamma_of_a_free_draft_and_a_free_verification_is_the_block_efficiency() -> None:
    assert predicted_gamma(2.5, ar_s=0.03, draft_s=0.0, verify_s=0.03, num_draft_tokens=4) == pytest.approx(2.5)


def test_predicted_gamma_is_leviathans_speed_up_when_verification_costs_one_target_forward() -> None:
    alpha, num_draft_tokens, ar_s, draft_s = 0.7, 4, 0.035, 0.007
    efficiency = expected_block_efficiency(alpha, num_draft_tokens)
    c = draft_s / ar_s
    theorem = (1 - alpha ** (num_draft_tokens + 1)) / ((1 - alpha) * (num_draft_tokens * c + 1))
    measured = predicted_gamma(efficiency, ar_s=ar_s, draft_s=draft_s, verify_s=ar_s, num_draft_tokens=num_draft_tokens)
    assert measured == pytest.approx(theorem, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_constant_acceptance_gives_alpha_exactly_and_block_efficiency_in_the_long_run(k: int) -> None:
    totals = propagate_slots([0.6] * 4000, k)
    assert totals.alpha == pytest.approx(0.6, rel=1e-12)
    # the last round is cut by the text's end: at most one round in about 1,000
    assert totals.block_efficiency == pytest.approx(expected_block_efficiency(0.6, k), rel=2e-3)


def test_certain_acceptance_fills_every_round_and_certain_rejection_none() -> None:
    assert propagate_slots([1.0] * 12, 3) == SlotTotals(tested=9.0, accepted=9.0, emitted=12, rounds=3.0)
    assert propagate_slots([0.0] * 12, 3) == SlotTotals(tested=12.0, accepted=0.0, emitted=12, rounds=12.0)


def test_slots_of_a_short_text_equal_the_sum_over_all_outcomes() -> None:
    """Worked by hand, k = 1: token 1 is tested; token 2 is tested iff token 1 was rejected."""
    a_1, a_2 = 0.25, 0.5
    totals = propagate_slots([a_1, a_2], 1)
    assert totals.tested == pytest.approx(1 + (1 - a_1))
    assert totals.accepted == pytest.approx(a_1 + (1 - a_1) * a_2)
    assert totals.rounds == pytest.approx(1 + (1 - a_1))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_counts_with_beta_keep_the_mean_over_texts_and_propagating_beta_would_not(k: int) -> None:
    """All 81 texts of four tokens, each weighed by its probability: contexts that follow accepted tokens are easier here."""
    target_VV = np.array([[0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    draft_VV = np.array([[0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9]])
    means = np.zeros((3, 3))  # of tested, accepted, rounds: as sampled, with beta, and with beta propagated as well
    for text in itertools.product(range(3), repeat=4):
        steps = list(itertools.pairwise((2, *text)))
        weight = math.prod(target_VV[step] for step in steps)
        sampled = [min(1.0, draft_VV[step] / target_VV[step]) for step in steps]
        beta = [float(np.minimum(target_VV[token], draft_VV[token]).sum()) for token, _ in steps]
        for place, totals in enumerate(
            (propagate_slots(sampled, k), propagate_slots(sampled, k, beta), propagate_slots(beta, k, beta))
        ):
            means[place] += weight * np.array((totals.tested, totals.accepted, totals.rounds))
    assert means[1] == pytest.approx(means[0], rel=1e-12)
    assert np.abs(means[2] - means[0]).max() > 0.01


def test_totals_of_texts_add_up() -> None:
    first, second = propagate_slots([0.2, 0.9], 2), propagate_slots([0.5], 2)
    total = first + second
    assert total.emitted == 3
    assert total.alpha == pytest.approx((first.accepted + second.accepted) / (first.tested + second.tested))


@pytest.mark.parametrize("k", [1, 3])
def test_propagated_slots_agree_with_a_speculative_decoder_that_never_saw_them(k: int) -> None:
    """Two Markov chains over 4 tokens: alpha over target text, propagated, against counts of the rejection rule itself."""
    rng = np.random.default_rng(7)
    target_probs_VV, draft_probs_VV = rng.dirichlet(np.ones(4), size=(2, 4))
    length, num_texts = 16, 1500

    analytic = SlotTotals(0, 0, 0, 0)
    counted = np.zeros((num_texts, 4))  # tested, accepted, emitted, rounds
    for text in range(num_texts):
        token, acceptance = 0, []
        for _ in range(length):
            following = _draw(target_probs_VV[token], rng)
            acceptance.append(min(1.0, draft_probs_VV[token, following] / target_probs_VV[token, following]))
            token = following
        analytic += propagate_slots(acceptance, k)
        counted[text] = _decode(target_probs_VV, draft_probs_VV, length, k, rng)

    for numerator, denominator, expected in ((1, 0, analytic.alpha), (2, 3, analytic.block_efficiency)):
        ratio = counted[:, numerator].sum() / counted[:, denominator].sum()
        spread = (counted[:, numerator] - ratio * counted[:, denominator]).std() / counted[:, denominator].mean()
        # both sides are samples of about the same spread; 5 standard errors: false-alarm rate under 1e-6
        assert abs(ratio - expected) <= 5 * np.sqrt(2) * spread / np.sqrt(num_texts)


def _decode(
    target_probs_VV: np.ndarray,
    draft_probs_VV: np.ndarray,
    length: int,
    num_draft_tokens: int,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Leviathan's rejection rule from its definition, on Markov chains."""
    token = tested = accepted = emitted = rounds = 0
    while emitted < length:
        rounds += 1
        for _ in range(num_draft_tokens):
            draft = _draw(draft_probs_VV[token], rng)
            tested += 1
            emitted += 1
            if rng.random() < target_probs_VV[token, draft] / draft_probs_VV[token, draft]:
                accepted += 1
                token = draft
                if emitted == length:
                    break
                continue
            residual = np.maximum(target_probs_VV[token] - draft_probs_VV[token], 0)
            token = _draw(residual / residual.sum(), rng)
            break
        else:
            token = _draw(target_probs_VV[token], rng)
            emitted += 1
    return tested, accepted, emitted, rounds


def _draw(probs_V: np.ndarray, rng: np.random.Generator) -> int:
    return min(int(np.searchsorted(np.cumsum(probs_V), rng.random())), len(probs_V) - 1)


def test_a_round_needs_a_draft_token() -> None:
    with pytest.raises(ValueError, match="num_draft_tokens >= 1"):
        propagate_slots([0.5], 0)
