"""Named recipes: the text that a draft is trained on, who writes it at which temperatures, and the labels.

Four temperatures are separate everywhere: KD data T (here, of the text), KD loss T (in the loss), draft T and decode T (both
only where alpha or gamma is measured). The paper's "KD temperature" is data T = loss T; `soft` and `online` follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from distill.training.losses import Loss

HIGHEST = 2  # KD data T
COMPOSED = (0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe, as it stands in every record of what was made with it."""

    name: str
    temperatures: tuple[tuple[float, float], ...]  # (KD data T, weight)
    labels: Literal["hard", "soft"] = "hard"  # the text's own tokens, or the target's distributions
    loss: Loss = field(default_factory=Loss)  # soft labels only
    fresh: bool = False  # each text is used once, and the target runs in the step; otherwise epochs over fixed text
    on_policy: float = 0.0  # lambda: share of fresh texts that the draft writes

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise ValueError(f"recipe {self.name}: expected at least one KD data temperature, got none")
        for temperature, weight in self.temperatures:
            if not 0 <= temperature <= HIGHEST:
                raise ValueError(f"expected KD data temperatures in 0..{HIGHEST}, got {temperature}")
            if not 0 < weight < math.inf:
                raise ValueError(f"expected weights of KD data temperatures > 0, got {weight}")
        if not 0 <= self.on_policy <= 1:
            raise ValueError(f"expected an on-policy fraction in 0..1, got {self.on_policy}")
        if self.on_policy and not self.fresh:
            raise ValueError("expected fresh text where a share of it is on-policy, got fixed text")
        if self.on_policy and self.labels == "hard":
            raise ValueError("expected soft labels where the draft writes the text: its own tokens teach it nothing")
        if self.labels not in ("hard", "soft"):
            raise ValueError(f"expected hard or soft labels, got {self.labels!r}")


def offline(data_temperature: float) -> Recipe:
    """Return SeqKD: the target's text at one T, its tokens as labels. Source: Kim and Rush 2016, arXiv 1606.07947."""
    return Recipe("offline", ((data_temperature, 1.0),))


def soft(data_temperature: float) -> Recipe:
    """Return the fixed text of `offline` with the labels of `online`: the target's distributions."""
    return Recipe("soft", ((data_temperature, 1.0),), "soft", Loss("forward_kl", data_temperature))


def online(data_temperature: float) -> Recipe:
    """Return training on text that the draft writes as it learns, with the target's distributions as labels (lambda 1)."""
    loss = Loss("forward_kl", data_temperature)
    return Recipe("online", ((data_temperature, 1.0),), "soft", loss, fresh=True, on_policy=1.0)


def matched(data_temperature: float) -> Recipe:
    """Return `offline` at the decode T itself: one draft for each decode T."""
    return Recipe("matched", ((data_temperature, 1.0),))


def mixture(data_temperature: float) -> Recipe:
    """Return `offline` on equal shares of 0, 0.1 .. up to the given T: one draft for all decode T."""
    return Recipe("mixture", tuple((value, 1.0) for value in _up_to(data_temperature)))


def composed() -> Recipe:
    """Return `offline` on equal shares of T = 0.7, 0.8 and 0.9, for decoding at high T.

    Source:  Ouyang et al. 2024, arXiv 2410.10141
    """
    return Recipe("composed", tuple((value, 1.0) for value in COMPOSED))


def weighted(data_temperature: float) -> Recipe:
    """Return `offline` on T = 0.1 .. up to the given T, in shares proportional to T: hotter text repeats itself less."""
    return Recipe("weighted", tuple((value, value) for value in _up_to(data_temperature) if value > 0))


def base(data_temperature: float) -> Recipe:
    """Return the recipe of a draft that others start from: soft labels at loss T 1 on text of 0, 0.1 .. up to the given T."""
    return Recipe("base", tuple((value, 1.0) for value in _up_to(data_temperature)), "soft", Loss("forward_kl", 1.0))


AT_TEMPERATURE: Mapping[str, Callable[[float], Recipe]] = {
    function.__name__: function for function in (base, offline, soft, online, matched, mixture, weighted)
}
RECIPES = (*AT_TEMPERATURE, "composed")
MIXED = ("base", "mixture", "weighted", "composed")  # recipes whose temperatures can have other shares


def recipe(name: str, data_temperature: float | None = None) -> Recipe:
    """Return the named recipe for one KD data T; `composed` has fixed ones.

    Raises:  ValueError: no such recipe, or a temperature that is missing, invalid or not expected
    """
    if name not in RECIPES:
        raise ValueError(f"expected a recipe of {', '.join(RECIPES)}, got {name!r}")
    if name == "composed":
        if data_temperature is not None:
            raise ValueError(f"recipe composed mixes its own temperatures; expected none, got {data_temperature}")
        return composed()
    if data_temperature is None or not 0 <= data_temperature <= HIGHEST:
        raise ValueError(f"recipe {name}: expected a KD data temperature in 0..{HIGHEST}, got {data_temperature}")
    return AT_TEMPERATURE[name](data_temperature)


def with_shares(recipe: Recipe, temperatures: tuple[tuple[float, float], ...]) -> Recipe:
    """Return the recipe with other temperatures or shares of them.

    Raises:  ValueError: it is a recipe of one temperature
    """
    if recipe.name not in MIXED:
        raise ValueError(f"expected a recipe that mixes temperatures ({', '.join(MIXED)}), got {recipe.name}")
    return replace(recipe, temperatures=temperatures)


def _up_to(highest: float) -> tuple[float, ...]:
    """Return 0, 0.1 .. and `highest`, which need not be a multiple of 0.1."""
    return (*(step / 10 for step in range(10 * HIGHEST + 1) if step / 10 < highest), highest)
