"""Named recipes: the text that a draft is trained on, who writes it at which temperatures, and the labels.

Four temperatures are separate everywhere: KD data T (here, of the text), KD loss T (in the loss), draft T and decode T (both
only where alpha or gamma is measured). Soft labels have loss T = 1 unless another one is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from distill.text.table import Shares
from distill.training.losses import Loss

HIGHEST = 2  # KD data T


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe, as it stands in every record of what was made with it."""

    name: str
    temperatures: Shares  # of the text; empty only for `reference`, whose text no model wrote
    labels: Literal["hard", "soft"] = "hard"  # the text's own tokens, or the target's distributions
    loss: Loss = field(default_factory=Loss)  # soft labels only
    fresh: bool = False  # each text is used once, and the target runs in the step; otherwise epochs over fixed text
    on_policy: float = 0.0  # lambda: share of fresh texts that the draft writes

    def __post_init__(self) -> None:
        if not self.temperatures and self.name != "reference":
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


def _up_to(highest: float) -> tuple[float, ...]:
    """Return 0, 0.1 .. and `highest`, which need not be a multiple of 0.1."""
    return (*(step / 10 for step in range(10 * HIGHEST + 1) if step / 10 < highest), highest)


def _equal(*temperatures: float) -> Shares:
    return tuple((temperature, 1.0) for temperature in temperatures)


AT_TEMPERATURE: Mapping[str, Callable[[float], Recipe]] = {
    # A draft that others start from: soft labels at loss T 1 on text of T = 0, 0.1 .. up to the given one.
    "base": lambda t: Recipe("base", _equal(*_up_to(t)), "soft", Loss("forward_kl", 1.0)),
    # SeqKD: the target's text at one T, its tokens as labels. Source: Kim and Rush 2016, arXiv 1606.07947
    "offline": lambda t: Recipe("offline", _equal(t)),
    # The fixed text of `offline` with the labels of `online`: the target's distributions.
    "soft": lambda t: Recipe("soft", _equal(t), "soft"),
    # Text that the draft writes as it learns, with the target's distributions as labels (lambda 1).
    "online": lambda t: Recipe("online", _equal(t), "soft", fresh=True, on_policy=1.0),
    # `offline` at the decode T itself: one draft for each decode T.
    "matched": lambda t: Recipe("matched", _equal(t)),
    # `offline` on equal shares of T = 0, 0.1 .. up to the given one: one draft for all decode T.
    "mixture": lambda t: Recipe("mixture", _equal(*_up_to(t))),
    # `offline` on T = 0.1 .. up to the given one, in shares proportional to T: hotter text repeats itself less.
    "weighted": lambda t: Recipe("weighted", tuple((value, value) for value in _up_to(t) if value > 0)),
}
# `offline` on equal shares of three T, for decoding at high T. Source: Ouyang et al. 2024, arXiv 2410.10141
COMPOSED = Recipe("composed", _equal(0.7, 0.8, 0.9))
# The answers that stand beside the prompts, by people or other models. The target's text is not used.
REFERENCE = Recipe("reference", ())
FIXED = {each.name: each for each in (COMPOSED, REFERENCE)}  # without a KD data T to choose
RECIPES = (*AT_TEMPERATURE, *FIXED)
MIXED = ("base", "mixture", "weighted", "composed")  # recipes whose temperatures can have other shares


def recipe(name: str, data_temperature: float | None = None) -> Recipe:
    """Return the named recipe for one KD data T; `composed` has fixed ones, `reference` has none.

    Raises:  ValueError: no such recipe, or a temperature that is missing, invalid or not expected
    """
    if name not in RECIPES:
        raise ValueError(f"expected a recipe of {', '.join(RECIPES)}, got {name!r}")
    if name in FIXED:
        if data_temperature is not None:
            raise ValueError(f"recipe {name} has no KD data temperature to choose; expected none, got {data_temperature}")
        return FIXED[name]
    if data_temperature is None or not 0 <= data_temperature <= HIGHEST:
        raise ValueError(f"recipe {name}: expected a KD data temperature in 0..{HIGHEST}, got {data_temperature}")
    return AT_TEMPERATURE[name](data_temperature)


def with_shares(recipe: Recipe, temperatures: Shares) -> Recipe:
    """Return the recipe with other temperatures or shares of them. Raise ValueError if it has only one temperature."""
    if recipe.name not in MIXED:
        raise ValueError(f"expected a recipe that mixes temperatures ({', '.join(MIXED)}), got {recipe.name}")
    return replace(recipe, temperatures=temperatures)
