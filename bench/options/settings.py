"""The settings of a run: the options that every suite shares, and the presets.

An option has one name everywhere: on the command line (--num-draft-tokens), here (num_draft_tokens), in records and in tables.
An option that is not given takes the preset's value, or the default here. A suite may have other defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

DEFAULT_PAIR = "smollm2"
INFLATED = " inflated "  # in names, between a model and the shape to which it was inflated
RUNS = Path("runs")  # the user's own records; published ones are in results


@dataclass(frozen=True, slots=True)
class Preset:
    """How much is measured."""

    temperatures: tuple[float, ...]
    num_prompts: int
    repeats: int
    max_new_tokens: int


# Chosen by what they decide on the embedded pair and two cores. smoke: nothing, it runs everything once; quick: in the
# temperature grid the gamma of a cell to 5 %, and its certificate; paper: trends over T, and claims. Elsewhere `--plan` tells.
PRESETS: Mapping[str, Preset] = {
    "smoke": Preset(temperatures=(0.0, 1.0), num_prompts=3, repeats=1, max_new_tokens=16),
    "quick": Preset(temperatures=(0.0, 0.5, 1.0), num_prompts=8, repeats=1, max_new_tokens=24),
    "paper": Preset(temperatures=tuple(step / 10 for step in range(11)), num_prompts=48, repeats=2, max_new_tokens=128),
}


@dataclass(frozen=True, slots=True)
class Stopping:
    """What ends a cell before its last pair."""

    precision: float | None = None  # half-width of gamma's interval, as a share of gamma
    budget_s: float | None = None
    least_prompts: int = 10  # before precision counts: an early look would let lucky pairs decide


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one run, validated."""

    preset: str
    temperatures: tuple[float, ...]
    repeats: int
    max_new_tokens: int
    backends: tuple[str, ...] = ("reference",)
    backend_options: tuple[tuple[str, str], ...] = ()  # the key may start with the name of the backend: see options_of
    pair: str | None = None
    target: str | None = None
    drafts: tuple[str | None, ...] = (None,)  # None: the pair's own
    inflations: tuple[str | None, ...] = (None,)  # larger shapes to which the target is inflated; None: not inflated
    pairs_file: Path | None = None
    device: str = "cpu"
    dtype: str | None = None
    rules: tuple[str, ...] = ("rejection",)
    draft_temperatures: tuple[float | None, ...] = (None,)  # None: the decode temperature
    num_draft_tokens: tuple[int, ...] = (2,)
    concurrency: tuple[int, ...] = (1, 4, 16)
    top_k: int = 0
    top_p: float = 1.0
    prompts: tuple[str, ...] = ("instructions",)
    num_prompts: int | None = None  # None: the preset's, or all there are if fewer
    max_prompt_tokens: int | None = None
    end_token: str = "natural"
    instrument_every: int = 4  # one in so many pairs is replayed with instruments and has bare forwards timed; 0: none
    timing: str = "interleaved"  # interleaved where the engine can, or whole: one arm after the other
    baseline_prompts: int | None = None  # of the baseline, at most; None: all
    pairs_only: bool = False  # neither a baseline nor a certificate
    stopping: Stopping = Stopping()
    chat_template: str = "default"
    system_prompt: str | None = None
    seed: int = 0
    results: Path = RUNS
    resume: bool = False
    plan: bool = False
    pilot: bool = False  # the plan measures for a minute first
    page: bool = True  # the session ends with the page of all results
    shared_machine: bool = False  # measure beside another run
    given: frozenset[str] = frozenset()  # fields whose value the command line decided
    by_suite: frozenset[str] = field(default=frozenset(), compare=False)  # fields for which the suite has a default

    def with_defaults(self, defaults: Mapping[str, Mapping[str, Any]]) -> Settings:
        """Apply a suite's defaults (preset -> field -> value) to options that were not given on the command line.

        Drafts among the defaults belong to the default pair's target, so they are used with that one only.
        """
        is_default_pair = self.target is None and self.pair in (None, DEFAULT_PAIR)
        decided = self.given if is_default_pair else self.given | {"drafts"}
        wanted = defaults.get(self.preset, {})
        used = {name: value for name, value in wanted.items() if name not in decided}
        return replace(self, **used, by_suite=frozenset(wanted))

    def with_pair_defaults(self, defaults: Mapping[str, Any]) -> Settings:
        """Apply a pair's defaults (field -> value) where neither the command line nor a suite has decided.

        Options of a backend are decided one by one: an option of the pair gives way to one with the same key.
        """
        wanted = {name: value for name, value in defaults.items() if name not in self.given | self.by_suite}
        if "backend_options" in defaults and "backend_options" not in self.by_suite:
            keys = {key.rpartition(":")[2] for key, _ in self.backend_options}
            ours = tuple(each for each in defaults["backend_options"] if each[0].rpartition(":")[2] not in keys)
            wanted["backend_options"] = (*ours, *self.backend_options)
        return replace(self, **wanted)

    @property
    def interleaves(self) -> bool:
        return self.timing == "interleaved"

    def options_of(self, backend: str) -> tuple[tuple[str, str], ...]:
        """Return the options for all backends and for this one."""
        found = ((key.removeprefix(f"{backend}:"), value) for key, value in self.backend_options)
        return tuple((key, value) for key, value in found if ":" not in key)
