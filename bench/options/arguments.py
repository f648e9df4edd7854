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

Parser = Callable[[str, str], Any]  # of the option's name and the text that was given for it


def _text(name: str, text: str) -> str:
    return text


def _path(name: str, text: str) -> Path:
    return Path(text)


def key_value(text: str, name: str = "an option as") -> tuple[str, str]:
    """Return the parts of KEY=VALUE. Raise ValueError for another form."""
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise ValueError(f"expected {name} KEY=VALUE, got {text!r}")
    return key, value


def _key_value(name: str, text: str) -> tuple[str, str]:
    return key_value(text, name)


@dataclass(frozen=True, slots=True)
class Option:
    """One option: what its text means, and the field of Settings that it decides. Settings has the defaults."""

    flag: str
    metavar: str  # empty: a switch, without a value
    help: str
    parse: Parser = _text
    field: str = ""  # empty: named like the option
    several: bool = False  # it may be repeated, and its value is a tuple

    def value(self, given: Any) -> Any:
        if self.several:
            return values.unique(self.flag, [self.parse(self.flag, text) for text in given])
        return self.parse(self.flag, str(given)) if self.metavar else given


def _several(flag: str, metavar: str, help: str, field: str, parse: Parser = _text) -> Option:
    return Option(flag, metavar, help, parse, field, several=True)


# The longer help texts.
BACKEND_OPTION = "passed to all backends, or to one; repeat for several"
INFLATE = (
    "give the target the compute of a larger model with the same distribution: 0.5b, 1b, 7b, 13b, 70b, sizes such as "
    "layers=40,hidden=5120, or none; repeat for several (default: none, or the suite's)"
)
DRAFT_TEMPERATURE = "draft temperatures, in the form of --temperatures (default: the decode temperature)"
INSTRUMENT_EVERY = (
    "time bare forwards and repeat the generation with instruments after every Nth pair; 0: never (default: 4, or the suite's)"
)
TIMING = "interleaved: both arms advance in turns, if the engine can (default); whole: one after the other"
PRECISION = (
    "end a cell once gamma is known to within this share, such as 0.02; none: measure all pairs (default: none, or the suite's)"
)
SHARED_MACHINE = "measure beside another run; the records of both note it, and their times do not count"
PAIRS_ONLY = "time only the pairs: no baseline, no instruments, no certificate; for runs beside a full one"

OPTIONS = (
    Option("--preset", "NAME", f"how much to measure: {', '.join(PRESETS)} (default: quick)", values.one_of(*PRESETS)),
    _several("--backend", "NAME", "backend, or package.module:factory; repeat for several", "backends"),
    _several("--backend-option", "[BACKEND:]KEY=VALUE", BACKEND_OPTION, "backend_options", _key_value),
    Option("--pair", "NAME", f"model pair by name (default: {DEFAULT_PAIR}); see `specheat pairs`"),
    Option("--target", "ID|DIR", "target model instead of a named pair"),
    _several("--draft", "ID|DIR", "draft model, also instead of that of --pair; repeat for several", "drafts"),
    _several("--inflate", "SHAPE", INFLATE, "inflations", lambda _, text: None if text == "none" else text),
    Option("--pairs-file", "TOML", "more model pairs", _path),
    Option("--device", "DEVICE", "cpu, cuda, cuda:1, ... (default: cpu)"),
    Option("--dtype", "DTYPE", "bfloat16 or float32 (default: the pair's)", values.one_of("bfloat16", "float32")),
    _several("--rule", "NAME", "acceptance rule; repeat for several (default: rejection)", "rules"),
    Option("--temperatures", "LIST|RANGE", "decode temperatures: 0,0.5,1 or first:last:step", values.temperatures_of),
    Option("--draft-temperature", "LIST|RANGE", DRAFT_TEMPERATURE, values.temperatures_of, "draft_temperatures"),
    Option("--num-draft-tokens", "LIST", "draft tokens per round, k (default: 2, or the suite's)", values.counts_of),
    Option("--concurrency", "LIST", "prompts decoded at once, in some suites (default: 1,4,16)", values.counts_of),
    Option("--top-k", "N", "keep the N likeliest tokens; 0 is off (default)", values.count_or_0),
    Option("--top-p", "P", "nucleus of probability P; 1 is off (default)", values.probability_of),
    _several("--prompts", "SET|FILE", "prompts; repeat for several (default: instructions, or the suite's)", "prompts"),
    Option("--num-prompts", "N", "prompts per cell", values.count_of),
    Option("--repeats", "N", "times each prompt is measured", values.count_of),
    Option("--max-new-tokens", "N", "token limit of every generation", values.count_of),
    Option("--max-prompt-tokens", "N", "cut longer prompts to their last N tokens (default: error)", values.count_of),
    Option("--ignore-end-token", "", "decode to the token limit; the share after the end is reported"),
    Option("--instrument-every", "N", INSTRUMENT_EVERY, values.count_or_0),
    Option("--timing", "HOW", TIMING, values.one_of("interleaved", "whole")),
    Option("--precision", "SHARE", PRECISION, values.share_or_none),
    Option("--time-budget", "MINUTES", "end a cell after so many minutes (default: after all pairs)", values.above_0),
    Option("--baseline-prompts", "N", "prompts of the baseline, at most (default: all, or the suite's)", values.count_of),
    Option("--pairs-only", "", PAIRS_ONLY),
    Option("--chat-template", "none|default|FILE", "how chat prompts become text (default: default)"),
    Option("--system-prompt", "TEXT", "system message put before every chat prompt"),
    Option("--seed", "N", "seed of prompt order and sampling (default: 0)", values.count_or_0),
    Option("--results", "DIR", f"where records go (default: {RUNS})", _path),
    Option("--resume", "", "continue the newest unfinished run of the same experiment"),
    Option("--plan", "", "print the cells, minutes, memory and what the run can decide, and stop"),
    Option("--pilot", "", "with --plan: measure for a minute first, to tell what the run can decide"),
    Option("--no-page", "", "do not write the page of all results at the end"),
    Option("--shared-machine", "", SHARED_MACHINE),
)


def add_options(parser: Any, *, only: Collection[str] | None = None) -> None:
    """Declare the options, or only those of these flags, on an argparse parser or on a group of pytest's options."""
    add = getattr(parser, "addoption", None) or parser.add_argument
    for option in OPTIONS:
        if only is not None and option.flag not in only:
            continue
        if option.metavar:
            add(option.flag, action="append" if option.several else "store", metavar=option.metavar, help=option.help)
        else:
            add(option.flag, action="store_true", default=None, help=option.help)  # None: not given


def from_options(options: argparse.Namespace) -> Settings:
    """Return the validated settings. Options that the namespace lacks were not given.

    Raises: ValueError: in one line what was expected, and what was given
    """
    found: dict[str, Any] = {}
    for option in OPTIONS:
        name = option.flag[2:].replace("-", "_")  # as argparse stores it
        if (given := getattr(options, name, None)) is not None:
            found[option.field or name] = option.value(given)
    if found.get("pairs_only"):
        found["instrument_every"] = 0
    if found.pop("no_page", None):
        found["page"] = False
    if found.pop("ignore_end_token", None):
        found["end_token"] = "ignored"
    minutes = found.pop("time_budget", None)
    preset = PRESETS[found.setdefault("preset", "quick")]
    if found.get("pilot") and not found.get("plan"):
        raise ValueError("expected --plan beside --pilot")
    given = frozenset(found) | ({"stopping"} if minutes is not None or "precision" in found else set())
    stopping = Stopping(found.pop("precision", None), None if minutes is None else 60 * minutes)
    decided = {name: getattr(preset, name) for name in ("temperatures", "repeats", "max_new_tokens")}
    settings = Settings(**decided | found, stopping=stopping, given=given)
    for key, value in settings.backend_options:
        # The name of a backend may contain a colon: package.module:factory.
        if ":" in key and not any(key.startswith(f"{name}:") for name in settings.backends):
            expected = f"BACKEND:KEY=VALUE of one of the backends {', '.join(settings.backends)}"
            raise ValueError(f"expected --backend-option {expected}, got {f'{key}={value}'!r}")
    return settings


# Arguments that several commands share.
SHARED: dict[str, dict[str, Any]] = {
    "results": {"nargs": "?", "type": Path, "default": Path("results"), "help": "folder (default: results)"},
    "--machine": {"metavar": "NAME", "help": "only this machine"},
    "--suite": {"metavar": "NAME", "help": "only this suite"},
    "--margin": {"default": "0.02", "metavar": "SHARE", "help": "ratios this near to 1 are SAME (default: 0.02)"},
    "--strict": {"action": "store_true", "help": "exit 3 where something is INCONCLUSIVE"},
    "--shared-machine": {"action": "store_true", "help": SHARED_MACHINE},
    "--markdown": {"action": "store_true", "help": "print markdown, such as for a pull request"},
}


def declare(parser: ArgumentParser, *names: str) -> None:
    """Declare some of the arguments in SHARED."""
    for name in names:
        parser.add_argument(name, **SHARED[name])
