"""The command-line options of the suites, and the settings that they give."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.options import values
from bench.options.settings import DEFAULT_PAIR, PRESETS, RUNS, Settings, Stopping


def _text(name: str, text: str) -> str:
    return text


def _path(name: str, text: str) -> Path:
    return Path(text)


def _shape(name: str, text: str) -> str | None:
    return None if text == "none" else text


def _seconds(name: str, minutes: str) -> float:
    return 60 * values.above_0(name, minutes)


def _key_value(name: str, text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise ValueError(f"expected {name} KEY=VALUE, got {text!r}")
    return key, value


@dataclass(frozen=True, slots=True)
class Option:
    """One option: what its text means, and the field of Settings that it decides."""

    flag: str
    metavar: str
    help: str
    parse: Callable[[str, str], Any] = _text
    field: str = ""  # empty: named like the option

    @property
    def name(self) -> str:
        """Return the attribute under which argparse stores what was given."""
        return self.flag[2:].replace("-", "_")

    def details(self) -> dict[str, Any]:
        """Return the keywords of argparse's `add_argument`. Without a default: Settings holds it."""
        return {"metavar": self.metavar, "help": self.help}

    def value(self, given: Any) -> Any:
        """Return the value of what was given."""
        return self.parse(self.flag, str(given))


class Several(Option):
    """An option that may be repeated; its value is a tuple."""

    def details(self) -> dict[str, Any]:
        return {"action": "append", "metavar": self.metavar, "help": self.help}

    def value(self, given: Any) -> Any:
        return values.unique(self.flag, [self.parse(self.flag, text) for text in given])


class Switch(Option):
    """An option without a value."""

    def details(self) -> dict[str, Any]:
        return {"action": "store_true", "default": None, "help": self.help}

    def value(self, given: Any) -> Any:
        return given


# The longer help texts.
INFLATE = (
    "give the target the compute of a larger model with the same distribution: 0.5b, 1b, 7b, 13b, 70b, sizes such as "
    "layers=40,hidden=5120, or none; repeat for several (default: none, or the suite's)"
)
DRAFT_TEMPERATURE = "draft temperatures, in the form of --temperatures (default: the decode temperature)"
INSTRUMENT_EVERY = "time bare forwards and repeat the generation with instruments after every Nth pair; 0: never (default: 4, or the suite's)"
PRECISION = "end a cell once gamma is known to within this share, such as 0.02 (default: all pairs are measured)"
PAIRS_ONLY = "time only the pairs: no baseline, no instruments, no certificate; for runs beside a full one"

OPTIONS = (
    Option("--preset", "NAME", f"how much to measure: {', '.join(PRESETS)} (default: quick)", values.one_of(*PRESETS)),
    Several("--backend", "NAME", "backend, or package.module:factory; repeat for several", field="backends"),
    Several(
        "--backend-option",
        "[BACKEND:]KEY=VALUE",
        "passed to all backends, or to one; repeat for several",
        _key_value,
        "backend_options",
    ),
    Option("--pair", "NAME", f"model pair by name (default: {DEFAULT_PAIR}); see `specheat pairs`"),
    Option("--target", "ID|DIR", "target model instead of a named pair"),
    Several("--draft", "ID|DIR", "draft model, also instead of that of --pair; repeat for several", field="drafts"),
    Several("--inflate", "SHAPE", INFLATE, _shape, "inflations"),
    Option("--pairs-file", "TOML", "more model pairs", _path),
    Option("--device", "DEVICE", "cpu, cuda, cuda:1, ... (default: cpu)"),
    Option("--dtype", "DTYPE", "bfloat16 or float32 (default: the pair's)", values.one_of("bfloat16", "float32")),
    Several("--rule", "NAME", "acceptance rule; repeat for several (default: rejection)", field="rules"),
    Option("--temperatures", "LIST|RANGE", "decode temperatures: 0,0.5,1 or first:last:step", values.temperatures_of),
    Option("--draft-temperature", "LIST|RANGE", DRAFT_TEMPERATURE, values.temperatures_of, "draft_temperatures"),
    Option(
        "--num-draft-tokens", "LIST", "draft tokens per round, k >= 1 (default: 2, or the suite's)", values.counts_of
    ),
    Option("--concurrency", "LIST", "prompts decoded at once, in some suites (default: 1,4,16)", values.counts_of),
    Option("--top-k", "N", "keep the N likeliest tokens; 0 is off (default)", values.count_or_0),
    Option("--top-p", "P", "nucleus of probability P; 1 is off (default)", values.probability_of),
    Several("--prompts", "NAME|FILE", "prompts; repeat for several (default: instructions, or the suite's)"),
    Option("--num-prompts", "N", "prompts per cell", values.count_of),
    Option("--repeats", "N", "times each prompt is measured", values.count_of),
    Option("--max-new-tokens", "N", "token limit of every generation", values.count_of),
    Option("--max-prompt-tokens", "N", "cut longer prompts to their last N tokens (default: error)", values.count_of),
    Switch(
        "--ignore-end-token", "", "decode to the token limit; the share after the end is reported", field="end_token"
    ),
    Option("--instrument-every", "N", INSTRUMENT_EVERY, values.count_or_0),
    Option("--precision", "SHARE", PRECISION, values.above_0),
    Option("--time-budget", "MINUTES", "end a cell after so many minutes (default: after all pairs)", _seconds),
    Switch("--pairs-only", "", PAIRS_ONLY),
    Option("--chat-template", "none|default|FILE", "how chat prompts become text (default: default)"),
    Option("--system-prompt", "TEXT", "system message put before every chat prompt"),
    Option("--seed", "N", "seed of prompt order and sampling (default: 0)", values.count_or_0),
    Option("--results", "DIR", f"where records go (default: {RUNS})", _path),
    Switch("--resume", "", "continue the newest unfinished run of the same experiment"),
    Switch("--plan", "", "print the cells, minutes and memory, and stop"),
)


def add_options(parser: Any, *, only: Collection[str] | None = None) -> None:
    """Declare the options, or only those of these flags, on an argparse parser or on a group of pytest's options."""
    add = getattr(parser, "addoption", None) or parser.add_argument
    for option in OPTIONS:
        if only is None or option.flag in only:
            add(option.flag, **option.details())


def from_options(options: argparse.Namespace) -> Settings:
    """Return the validated settings. Options that the namespace lacks were not given.

    Raises: ValueError: in one line what was expected, and what was given
    """
    found = {
        option.field or option.name: option.value(text)
        for option in OPTIONS
        if (text := getattr(options, option.name, None)) is not None
    }
    given = frozenset(found)
    if found.get("pairs_only"):
        found["instrument_every"] = 0
        given |= {"instrument_every"}
    if "end_token" in found:
        found["end_token"] = "ignored"
    stopping = Stopping(found.pop("precision", None), found.pop("time_budget", None))
    settings = Settings(**_of_preset(found.get("preset", "quick")) | found, stopping=stopping, given=given)
    for key, value in settings.backend_options:
        if ":" in key and not any(key.startswith(f"{name}:") for name in settings.backends):
            raise ValueError(
                "expected --backend-option BACKEND:KEY=VALUE of one of the backends "
                f"{', '.join(settings.backends)}, got {f'{key}={value}'!r}"
            )
    return settings


def _of_preset(name: str) -> dict[str, Any]:
    """Return the fields of Settings that a preset decides. Its number of prompts is a default of each prompt set."""
    preset = PRESETS[name]
    return {
        "preset": name,
        "temperatures": preset.temperatures,
        "repeats": preset.repeats,
        "max_new_tokens": preset.max_new_tokens,
    }


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what a command reads: a folder of results or one record, and maybe one suite of it."""
    parser.add_argument(
        "results", nargs="?", type=Path, default=Path("results"), help="folder or record (default: results)"
    )
    parser.add_argument("--suite", metavar="NAME", help="only this suite's records")
