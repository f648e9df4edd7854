"""What a run was asked to do: the options every suite shares, the presets behind them, and their validation.

An option has one name everywhere: on the command line (--num-draft-tokens), here (num_draft_tokens), in the records and
in the tables. An option that is not given takes the preset's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DEFAULT_PAIR = "smollm2"
DRAFT_TOKENS = "2"
PROMPTS = "instructions"
INFLATED = " inflated "  # in names, between a model and the shape to which it was inflated
INSTRUMENT_EVERY = 4


@dataclass(frozen=True, slots=True)
class Preset:
    """How much of everything."""

    temperatures: tuple[float, ...]
    num_prompts: int
    repeats: int
    max_new_tokens: int


PRESETS: Mapping[str, Preset] = {
    "smoke": Preset(temperatures=(0.0, 1.0), num_prompts=3, repeats=1, max_new_tokens=16),
    "quick": Preset(temperatures=(0.0, 0.25, 0.5, 0.75, 1.0), num_prompts=12, repeats=1, max_new_tokens=36),
    "paper": Preset(
        temperatures=tuple(round(0.1 * step, 1) for step in range(11)), num_prompts=48, repeats=2, max_new_tokens=128
    ),
}

SuiteDefaults = Mapping[str, Mapping[str, Any]]  # preset -> field of Settings -> value


@dataclass(frozen=True, slots=True)
class Stopping:
    """What ends a cell before its last pair."""

    precision: float | None = None  # half-width of gamma's interval, as a share of gamma
    budget_s: float | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of one run, validated."""

    preset: str
    backends: tuple[str, ...]
    backend_options: tuple[tuple[str, str], ...]  # those for one of several with its name in front: see options_of
    pair: str | None
    target: str | None
    drafts: tuple[str | None, ...]  # None: the pair's own
    inflations: tuple[str | None, ...]  # of the target, to the compute of a larger model; None: as it is
    pairs_file: Path | None
    device: str
    dtype: str | None
    rules: tuple[str, ...]
    temperatures: tuple[float, ...]
    draft_temperatures: tuple[float | None, ...]  # None: the decode temperature
    num_draft_tokens: tuple[int, ...]
    concurrency: tuple[int, ...]
    top_k: int
    top_p: float
    prompts: tuple[str, ...]
    num_prompts: int | None  # None: the preset's, or all there are if fewer
    repeats: int
    max_new_tokens: int
    max_prompt_tokens: int | None
    end_token: str
    instrument_every: int  # pairs, of which one is replayed with instruments and has bare forwards timed; 0: of none
    pairs_only: bool  # neither a baseline nor a certificate
    stopping: Stopping  # what ends a cell before its last pair
    chat_template: str
    system_prompt: str | None
    seed: int
    results: Path
    resume: bool
    plan: bool
    given: frozenset[str] = frozenset()  # fields whose value the command line decided

    def with_defaults(self, defaults: SuiteDefaults) -> Settings:
        """What a suite would rather have where the command line did not say. Drafts it names are those of the default pair."""
        decided = self.given if self.is_default_pair else self.given | {"drafts"}
        wanted = defaults.get(self.preset, {})
        return replace(self, **{field: value for field, value in wanted.items() if field not in decided})

    def options_of(self, backend: str) -> tuple[tuple[str, str], ...]:
        """The backend options that are for all backends, or for this one."""
        found = ((key.removeprefix(f"{backend}:"), value) for key, value in self.backend_options)
        return tuple((key, value) for key, value in found if ":" not in key)

    @property
    def is_default_pair(self) -> bool:
        """Whether the target is that of the default pair; the draft may be another."""
        return self.target is None and self.pair in (None, DEFAULT_PAIR)
