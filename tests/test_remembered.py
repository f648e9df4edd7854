"""What was computed from an object is not computed again, and never given for another."""

from __future__ import annotations

from bench.analysis.remembered import MOST, remembered


def test_an_object_is_computed_once_and_an_equal_one_for_itself() -> None:
    calls = []

    @remembered
    def length(given: list[int]) -> int:
        calls.append(given)
        return len(given)

    first, equal = [1, 2], [1, 2]
    assert [length(first), length(first), length(equal), length(equal)] == [2, 2, 2, 2]
    assert len(calls) == 2


def test_many_short_lived_objects_are_never_mistaken_for_each_other() -> None:
    double = remembered(lambda given: [2 * given[0]])
    for number in range(10 * MOST):
        assert double([number]) == [2 * number]
