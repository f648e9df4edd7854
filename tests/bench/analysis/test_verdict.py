"""What a gamma shows, given its interval, the A/A floor and the strength of the baseline."""

import math

import pytest

from bench.analysis.verdict import Label, is_weak, judged_gamma
from bench.statistics.intervals import Interval
from tests.studies.error_rates import baseline_and_floor, equality


def interval(estimate: float, error: float, *, num_prompts: int = 12, t: float = 2.2) -> Interval:
    """Return an interval whose logarithm has this standard error; t is that of 11 degrees of freedom at 95 %."""
    low, high = (estimate * math.exp(sign * t * error) for sign in (-1, 1))
    return Interval(estimate, low, high, num_prompts, parts=((error, 11.0),))


@pytest.mark.parametrize(
    ("gamma", "floor", "expected", "reason"),
    [
        (interval(1.3, 0.03), 0.02, "FASTER", None),
        (interval(0.8, 0.03), 0.02, "SLOWER", None),
        (interval(1.01, 0.004), 0.001, "SAME", None),  # surely above 1, and surely within 2 % of it
        (interval(1.01, 0.02), 0.02, "INCONCLUSIVE", "1 is inside the interval"),
        (interval(1.025, 0.004), 0.028, "INCONCLUSIVE", "the interval reaches into the A/A floor of 2.8%"),
        (interval(1.05, 0.02), 0.02, "INCONCLUSIVE", "the interval reaches into the A/A floor of 2.0%"),
        (interval(1.0, 0.001), 0.042, "INCONCLUSIVE", "A/A floor 4.2%, above 3%: run specheat doctor"),
        (interval(1.3, 0.03), math.inf, "INCONCLUSIVE", "A/A floor inf%"),
        (interval(1.3, 0.03), None, "INCONCLUSIVE", "no A/A floor was measured"),
        (interval(1.3, 0.03, num_prompts=5), 0.02, "INCONCLUSIVE", "5 prompts, at least 6"),
        (Interval(1.0, 0.0, math.inf, 12), 0.02, "INCONCLUSIVE", "1 is inside the interval"),
    ],
)
def test_what_a_gamma_shows(gamma: Interval, floor: float | None, expected: Label, reason: str | None) -> None:
    label, reasons = judged_gamma(gamma, floor=floor, native=None)
    assert label == expected
    assert len(reasons) == (reason is not None)
    assert reason is None or reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("native", "weak", "label"),
    [
        (interval(1.08, 0.01), True, None),  # surely more than 3 % slower
        (interval(1.04, 0.01), False, "INCONCLUSIVE"),
        (interval(1.00, 0.03), False, "INCONCLUSIVE"),  # a noisy run does not excuse a weak baseline
        (interval(1.00, 0.01), False, "FASTER"),
        (interval(0.70, 0.01), False, "FASTER"),
    ],
)
def test_the_interval_of_the_baseline_is_tested(native: Interval, weak: bool, label: Label | None) -> None:
    assert is_weak(native) is weak
    if label is not None:
        found, reasons = judged_gamma(interval(1.3, 0.03), floor=0.02, native=native)
        assert found == label
        assert all(reason.startswith("the baseline may be up to") for reason in reasons)


def test_neither_a_weak_baseline_nor_a_biased_floor_is_taken_for_a_result() -> None:
    # A bound of 1 % of 300 runs; the rates with 4,000 runs are in docs/validation.md.
    rates = list(baseline_and_floor.rows(300))
    assert all(rate.after <= 0.01 for rate in rates if rate.nominal == "rare")
    biased = [rate for rate in rates if "second arms" in rate.what]
    assert max(rate.after for rate in biased) <= 0.13  # 7 % are expected: 4 standard errors
    assert max(rate.before or 0.0 for rate in rates) > 0.5


def test_a_gamma_at_the_margin_is_seldom_the_same() -> None:
    # 5 % are allowed; 9 % is 3.2 standard errors above it.
    rates = list(equality.rows(300))
    assert all(rate.after <= 0.09 for rate in rates if rate.nominal == "5 %")
