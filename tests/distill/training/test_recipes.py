"""Recipes by name: what they mix, what they refuse, and that they are frozen and printed whole."""

from __future__ import annotations

import dataclasses
import math

import pytest

from distill.training.losses import Loss
from distill.training.recipes import AT_TEMPERATURE, FIXED, MIXED, RECIPES, Recipe, recipe, with_shares


def made(name: str) -> Recipe:
    return recipe(name, None if name in FIXED else 0.7)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_frozen_named_and_printed_with_all_that_it_fixes(name: str) -> None:
    found = made(name)
    assert found.name == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.on_policy = 0.5  # type: ignore[misc]
    for field in dataclasses.fields(found):
        assert f"{field.name}={getattr(found, field.name)!r}" in repr(found)
    assert f"on_policy={found.on_policy}" in repr(found)


@pytest.mark.parametrize("name", ["offline", "soft", "online", "matched"])
def test_one_temperature_is_the_texts(name: str) -> None:
    assert made(name).temperatures == ((0.7, 1.0),)


def test_the_loss_of_soft_labels_is_at_temperature_1_whatever_the_texts() -> None:
    assert recipe("online", 0.3).loss.temperature == recipe("soft", 0.0).loss.temperature == 1.0


def test_reference_answers_have_no_temperature() -> None:
    found = recipe("reference")
    assert (found.temperatures, found.labels) == ((), "hard")


def test_the_corners_differ_in_one_thing_at_a_time() -> None:
    offline, soft, online = made("offline"), made("soft"), made("online")
    assert (offline.labels, offline.fresh, offline.on_policy) == ("hard", False, 0.0)
    assert dataclasses.replace(soft, name="offline", labels="hard", loss=offline.loss) == offline
    assert dataclasses.replace(online, name="soft", fresh=False, on_policy=0.0) == soft


def test_mixtures_reach_up_to_the_temperature_and_their_shares_are_as_named() -> None:
    up_to = (0.0, 0.1, 0.2, 0.25)
    assert recipe("mixture", 0.25).temperatures == tuple((value, 1.0) for value in up_to)
    assert recipe("base", 0.25).temperatures == recipe("mixture", 0.25).temperatures
    assert recipe("weighted", 0.25).temperatures == tuple((value, value) for value in up_to[1:])
    assert recipe("composed").temperatures == ((0.7, 1.0), (0.8, 1.0), (0.9, 1.0))
    assert len(recipe("mixture", 2).temperatures) == 21
    assert recipe("base", 1).loss == Loss("forward_kl", 1.0)


@pytest.mark.parametrize("name", RECIPES)
def test_shares_can_be_changed_where_temperatures_are_mixed(name: str) -> None:
    shares = ((0.7, 1.0), (0.9, 2.0))
    if name in MIXED:
        assert with_shares(made(name), shares) == dataclasses.replace(made(name), temperatures=shares)
    else:
        with pytest.raises(ValueError, match="expected a recipe that mixes"):
            with_shares(made(name), shares)


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"expected a recipe of base, .*composed, reference, got 'hot'"):
        recipe("hot", 0.5)


@pytest.mark.parametrize("name", AT_TEMPERATURE)
@pytest.mark.parametrize("temperature", [None, -0.1, 2.1, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(name: str, temperature: float | None) -> None:
    with pytest.raises(ValueError, match=r"expected a KD data temperature in 0\.\.2, got"):
        recipe(name, temperature)


def test_composed_takes_no_temperature_and_weighted_needs_one_above_0() -> None:
    with pytest.raises(ValueError, match="has no KD data temperature to choose"):
        recipe("composed", 0.9)
    with pytest.raises(ValueError, match="at least one KD data temperature"):
        recipe("weighted", 0.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"on_policy": 1.5, "fresh": True, "labels": "soft"}, "on-policy fraction in 0..1"),
        ({"on_policy": math.nan, "fresh": True, "labels": "soft"}, "on-policy fraction in 0..1"),
        ({"on_policy": 0.5, "labels": "soft"}, "expected fresh text"),
        ({"on_policy": 0.5, "fresh": True}, "expected soft labels"),
        ({"labels": "warm"}, "expected hard or soft"),
        ({"temperatures": ((0.5, 0.0),)}, "weights"),
        ({"temperatures": ((0.5, math.inf),)}, "weights"),
        ({"temperatures": ((2.5, 1.0),)}, "KD data temperatures in 0..2"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe(**({"name": "own", "temperatures": ((0.5, 1.0),)} | changed))
