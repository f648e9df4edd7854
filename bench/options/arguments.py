"""TODO: purpose."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from bench.options.settings import DEFAULT_PAIR, DRAFT_TOKENS, INSTRUMENT_EVERY, PRESETS, PROMPTS, Settings, Stopping
from bench.options.values import above_0, count_of, number_of, parse_temperatures, unique

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
    top_p = number_of("--top-p", options.top_p)
    if not 0 < top_p <= 1:
        raise ValueError(f"expected --top-p in (0, 1], got {options.top_p}")
    backends = unique("--backend", options.backend or ["reference"])
    return Settings(
        preset=options.preset,
        backends=backends,
        backend_options=tuple(_key_value(text, backends) for text in options.backend_option),
        pair=options.pair,
        target=options.target,
        drafts=unique("--draft", options.draft or [None]),
        inflations=unique("--inflate", [None if text == "none" else text for text in options.inflate or ["none"]]),
        pairs_file=options.pairs_file,
        device=options.device,
        dtype=options.dtype,
        rules=unique("--rule", options.rule or ["rejection"]),
        temperatures=temperatures,
        draft_temperatures=(None,) if drafted_at is None else parse_temperatures(drafted_at, "--draft-temperature"),
        num_draft_tokens=unique(
            "--num-draft-tokens",
            [count_of("--num-draft-tokens", part) for part in (options.num_draft_tokens or DRAFT_TOKENS).split(",")],
        ),
        concurrency=unique(
            "--concurrency", [count_of("--concurrency", part) for part in options.concurrency.split(",")]
        ),
        top_k=count_of("--top-k", options.top_k, least=0),
        top_p=top_p,
        prompts=unique("--prompts", options.prompts or [PROMPTS]),
        num_prompts=None if options.num_prompts is None else count_of("--num-prompts", options.num_prompts),
        repeats=count_of("--repeats", options.repeats, default=preset.repeats),
        max_new_tokens=count_of("--max-new-tokens", options.max_new_tokens, default=preset.max_new_tokens),
        max_prompt_tokens=(
            None if options.max_prompt_tokens is None else count_of("--max-prompt-tokens", options.max_prompt_tokens)
        ),
        end_token="ignored" if options.ignore_end_token else "natural",
        instrument_every=(
            0
            if options.pairs_only
            else count_of("--instrument-every", options.instrument_every, least=0, default=INSTRUMENT_EVERY)
        ),
        pairs_only=options.pairs_only,
        stopping=Stopping(
            None if options.precision is None else above_0("--precision", options.precision),
            None if options.time_budget is None else 60 * above_0("--time-budget", options.time_budget),
        ),
        chat_template=options.chat_template,
        system_prompt=options.system_prompt,
        seed=count_of("--seed", options.seed, least=0),
        results=options.results,
        resume=options.resume,
        plan=options.plan,
        given=_given(options),
    )


def _given(options: argparse.Namespace) -> frozenset[str]:
    given = {field for field, option in SUITE_FIELDS.items() if getattr(options, option) is not None}
    return frozenset(given | {"instrument_every"} if options.pairs_only else given)


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


def add_arguments(parser: ArgumentParser) -> None:
    """What to read, for a command line."""
    parser.add_argument(
        "results", nargs="?", type=Path, default=Path("results"), help="folder or record (default: results)"
    )
    parser.add_argument("--suite", metavar="NAME", help="only this suite's records")
