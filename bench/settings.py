"""What a run was asked to do: the options every suite shares, the presets behind them, and their validation.

An option has one name everywhere: on the command line (--num-draft-tokens), here (num_draft_tokens), in the records and
in the tables. An option that is not given takes the preset's value.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.stopping import Stopping

T = TypeVar("T")
MAX_GRID_POINTS = 1000
DEFAULT_PAIR = "smollm2"
DRAFT_TOKENS = "2"
PROMPTS = "instructions"
INFLATED = " inflated "  # in names, between a model and the shape to which it was inflated
INSTRUMENT_EVERY = 4
# Fields that a suite may have defaults of its own for -> the option that decides them
SUITE_FIELDS = {
    "temperatures": "temperatures",
    "draft_temperatures": "draft_temperature",
    "drafts": "draft",
    "inflations": "inflate",
    "prompts": "prompts",
    "rules": "rule",
    "num_draft_tokens": "num_draft_tokens",
    "num_prompts": "num_prompts",
    "repeats": "repeats",
    "max_new_tokens": "max_new_tokens",
    "end_token": "ignore_end_token",
    "instrument_every": "instrument_every",
}


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


def add_options(add: object) -> None:
    """Declare the options on anything with argparse's `add_argument` signature, pytest's option group included."""
    option = getattr(add, "addoption", None) or add.add_argument  # type: ignore[attr-defined]
    option(
        "--preset", default="quick", metavar="NAME", help=f"how much to measure: {', '.join(PRESETS)} (default: quick)"
    )
    option("--backend", action="append", metavar="NAME", help="backend, or package.module:factory; repeat for several")
    option(
        "--backend-option",
        action="append",
        default=[],
        metavar="[BACKEND:]KEY=VALUE",
        help="passed to the backend, or to one of several; repeatable",
    )
    option("--pair", metavar="NAME", help=f"model pair by name (default: {DEFAULT_PAIR}); see `specheat pairs`")
    option("--target", metavar="ID|DIR", help="target model instead of a named pair")
    option(
        "--draft",
        action="append",
        metavar="ID|DIR",
        help="draft model; with --pair it replaces the pair's draft; repeat for several",
    )
    option(
        "--inflate",
        action="append",
        metavar="SHAPE",
        help="give the target the compute of a larger model with the same distribution: 0.5b, 1b, 7b, 13b, 70b, sizes such as "
        "layers=40,hidden=5120, or none; repeat for several (default: none, or the suite's)",
    )
    option("--pairs-file", type=Path, metavar="TOML", help="more model pairs")
    option("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cpu)")
    option("--dtype", metavar="DTYPE", help="bfloat16 or float32 (default: the pair's)")
    option("--rule", action="append", metavar="NAME", help="acceptance rule; repeat for several (default: rejection)")
    option("--temperatures", metavar="LIST|RANGE", help="decode temperatures: 0,0.5,1 or first:last:step")
    option(
        "--draft-temperature",
        metavar="LIST|RANGE",
        help="draft temperatures, as --temperatures (default: the decode temperature)",
    )
    option(
        "--num-draft-tokens",
        metavar="LIST",
        help="draft tokens a round, k >= 1; a list for several (default: 2, or the suite's)",
    )
    option(
        "--concurrency",
        metavar="LIST",
        default="1,4,16",
        help="texts decoded at once, in the suite concurrency (default: 1,4,16)",
    )
    option("--top-k", metavar="N", default="0", help="keep the N likeliest tokens; 0 is off (default)")
    option("--top-p", metavar="P", default="1", help="nucleus of probability P; 1 is off (default)")
    option(
        "--prompts",
        action="append",
        metavar="NAME|FILE",
        help=f"prompt set or file; repeat for several (default: {PROMPTS}, or the suite's)",
    )
    option("--num-prompts", metavar="N", help="prompts a cell")
    option("--repeats", metavar="N", help="times each prompt is measured")
    option("--max-new-tokens", metavar="N", help="token limit of every generation")
    option("--max-prompt-tokens", metavar="N", help="cut longer prompts to their last N tokens (default: refuse them)")
    option(
        "--ignore-end-token",
        action="store_true",
        default=None,
        help="decode to the token limit; the share after the end is reported",
    )
    option(
        "--instrument-every",
        metavar="N",
        help="time bare forwards and repeat the text with instruments behind every Nth pair, with 0 behind none "
        f"(default: {INSTRUMENT_EVERY}, or the suite's)",
    )
    option(
        "--precision",
        metavar="SHARE",
        help="end a cell once gamma is known to within this share, such as 0.02 (default: all pairs are measured)",
    )
    option("--time-budget", metavar="MINUTES", help="end a cell after so many minutes (default: after all pairs)")
    option(
        "--pairs-only",
        action="store_true",
        help="time the pairs and nothing else: no baseline, no instruments, no certificate; for runs beside a full one",
    )
    option("--chat-template", default="default", metavar="none|default|FILE", help="how chat prompts become text")
    option("--system-prompt", metavar="TEXT", help="system message put before every chat prompt")
    option("--seed", default="0", metavar="N", help="seed of prompt order and sampling (default: 0)")
    option("--results", default=Path("results"), type=Path, metavar="DIR", help="where records go (default: results)")
    option("--resume", action="store_true", help="go on with the newest unfinished run of the same experiment")
    option("--plan", action="store_true", help="print the cells, minutes and memory, and stop")


def from_options(options: argparse.Namespace) -> Settings:
    """Validated settings.

    Raises: ValueError: one line with what was expected, what was given and what to do.
    """
    if options.preset not in PRESETS:
        raise ValueError(f"expected --preset {', '.join(PRESETS)}, got {options.preset!r}")
    preset = PRESETS[options.preset]
    temperatures = preset.temperatures if options.temperatures is None else parse_temperatures(options.temperatures)
    drafted_at = options.draft_temperature
    if options.dtype not in (None, "bfloat16", "float32"):
        raise ValueError(f"expected --dtype bfloat16 or float32, got {options.dtype!r}")
    top_p = _number("--top-p", options.top_p)
    if not 0 < top_p <= 1:
        raise ValueError(f"expected --top-p in (0, 1], got {options.top_p}")
    backends = _unique("--backend", options.backend or ["reference"])
    return Settings(
        preset=options.preset,
        backends=backends,
        backend_options=tuple(_key_value(text, backends) for text in options.backend_option),
        pair=options.pair,
        target=options.target,
        drafts=_unique("--draft", options.draft or [None]),
        inflations=_unique("--inflate", [None if text == "none" else text for text in options.inflate or ["none"]]),
        pairs_file=options.pairs_file,
        device=options.device,
        dtype=options.dtype,
        rules=_unique("--rule", options.rule or ["rejection"]),
        temperatures=temperatures,
        draft_temperatures=(None,) if drafted_at is None else parse_temperatures(drafted_at, "--draft-temperature"),
        num_draft_tokens=_unique(
            "--num-draft-tokens",
            [_count("--num-draft-tokens", part) for part in (options.num_draft_tokens or DRAFT_TOKENS).split(",")],
        ),
        concurrency=_unique(
            "--concurrency", [_count("--concurrency", part) for part in options.concurrency.split(",")]
        ),
        top_k=_count("--top-k", options.top_k, least=0),
        top_p=top_p,
        prompts=_unique("--prompts", options.prompts or [PROMPTS]),
        num_prompts=None if options.num_prompts is None else _count("--num-prompts", options.num_prompts),
        repeats=_count("--repeats", options.repeats, default=preset.repeats),
        max_new_tokens=_count("--max-new-tokens", options.max_new_tokens, default=preset.max_new_tokens),
        max_prompt_tokens=(
            None if options.max_prompt_tokens is None else _count("--max-prompt-tokens", options.max_prompt_tokens)
        ),
        end_token="ignored" if options.ignore_end_token else "natural",
        instrument_every=(
            0
            if options.pairs_only
            else _count("--instrument-every", options.instrument_every, least=0, default=INSTRUMENT_EVERY)
        ),
        pairs_only=options.pairs_only,
        stopping=Stopping(
            None if options.precision is None else _above_0("--precision", options.precision),
            None if options.time_budget is None else 60 * _above_0("--time-budget", options.time_budget),
        ),
        chat_template=options.chat_template,
        system_prompt=options.system_prompt,
        seed=_count("--seed", options.seed, least=0),
        results=options.results,
        resume=options.resume,
        plan=options.plan,
        given=_given(options),
    )


def _given(options: argparse.Namespace) -> frozenset[str]:
    given = {field for field, option in SUITE_FIELDS.items() if getattr(options, option) is not None}
    return frozenset(given | {"instrument_every"} if options.pairs_only else given)


def parse_temperatures(text: str, option: str = "--temperatures") -> tuple[float, ...]:
    """`0,0.5,1` or `first:last:step`, both ends included, as floats without rounding noise.

    Raises: ValueError: not numbers, negative, not finite, repeated, or a range that does not step from first to last.
    """
    if ":" not in text:
        return _unique(option, [_temperature(option, part) for part in text.split(",")])
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"expected {option} first:last:step or a list such as 0,0.5,1, got {text!r}")
    first, last, step = (_temperature(option, part) for part in parts)
    if step == 0 or last < first:
        raise ValueError(f"expected {option} first:last:step with first <= last and step > 0, got {text!r}")
    steps = (last - first) / step
    if steps > MAX_GRID_POINTS:
        raise ValueError(f"expected at most {MAX_GRID_POINTS} temperatures, got {text!r}")
    if not math.isclose(steps, round(steps), abs_tol=1e-6):
        raise ValueError(f"expected a step that reaches the last temperature, got {text!r}")
    return tuple(round(first + step * place, 10) for place in range(round(steps) + 1))


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"expected a number for {name}, got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number for {name}, got {text!r}")
    return value


def _above_0(name: str, text: str) -> float:
    value = _number(name, text)
    if not value > 0:
        raise ValueError(f"expected {name} > 0, got {text!r}")
    return value


def _temperature(name: str, text: str) -> float:
    value = _number(name, text)
    if value < 0:
        raise ValueError(f"expected a temperature >= 0 for {name}, got {text!r}")
    return value


def _count(name: str, text: str | None, *, least: int = 1, default: int = 0) -> int:
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"expected a whole number for {name}, got {text!r}") from None
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
    return value


def _unique(name: str, values: list[T]) -> tuple[T, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"expected each {name} once, got {', '.join(map(str, values))}")
    return tuple(values)


def _key_value(text: str, backends: Sequence[str]) -> tuple[str, str]:
    """Of a backend option; the key with its backend's name and a colon in front, where it is for one alone."""
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise ValueError(f"expected --backend-option KEY=VALUE, got {text!r}")
    if ":" in key and not any(key.startswith(f"{name}:") for name in backends):
        raise ValueError(
            f"expected --backend-option BACKEND:KEY=VALUE of one of the backends {', '.join(backends)}, got {text!r}"
        )
    return key, value
