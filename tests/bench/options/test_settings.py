"""Options: what is understood, and what is refused in one line."""

from __future__ import annotations

import argparse

import pytest

from bench.options.arguments import add_options, from_options
from bench.options.settings import PRESETS, Settings, Stopping
from bench.options.values import temperatures_of


def parsed(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser)
    return from_options(parser.parse_args(arguments))


def test_a_preset_fills_what_no_option_says() -> None:
    settings = parsed("--preset", "smoke", "--num-prompts", "9")
    assert settings.num_prompts == 9
    assert settings.max_new_tokens == PRESETS["smoke"].max_new_tokens
    assert settings.temperatures == PRESETS["smoke"].temperatures


def test_the_papers_grid_has_no_rounding_noise() -> None:
    assert temperatures_of("--temperatures", "0:1:0.1") == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert temperatures_of("--temperatures", "0,0.25,2") == (0.0, 0.25, 2.0)
    assert temperatures_of("--temperatures", "0.5:0.5:1") == (0.5,)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset", "slow"], "expected --preset smoke, quick or paper, got 'slow'"),
        (["--temperatures=-1"], "expected a temperature >= 0 for --temperatures, got '-1'"),
        (["--temperatures", "nan"], "expected a finite number for --temperatures, got 'nan'"),
        (["--temperatures", "0:1"], "expected --temperatures first:last:step"),
        (["--temperatures", "1:0:0.1"], "first <= last"),
        (["--temperatures", "0:1:0"], "step > 0"),
        (["--temperatures", "0:1:0.3"], "reaches the last temperature"),
        (["--temperatures", "0:1:1e-9"], "at most 1000 temperatures"),
        (["--temperatures", "hot"], "expected a number for --temperatures, got 'hot'"),
        (["--temperatures", "1,1"], "each --temperatures once"),
        (["--draft-temperature", "inf"], "finite number for --draft-temperature"),
        (["--instrument-every=-1"], "expected --instrument-every >= 0, got -1"),
        (["--num-draft-tokens", "0"], "expected --num-draft-tokens >= 1, got 0"),
        (["--num-draft-tokens", "two"], "whole number for --num-draft-tokens"),
        (["--top-p", "0"], "expected --top-p in"),
        (["--top-k=-1"], "expected --top-k >= 0, got -1"),
        (["--dtype", "float16"], "expected --dtype bfloat16 or float32"),
        (["--num-prompts", "0"], "expected --num-prompts >= 1, got 0"),
        (["--backend-option", "fast"], "expected --backend-option KEY=VALUE"),
        (
            ["--backend-option", "vllm:texts=4"],
            "BACKEND:KEY=VALUE of one of the backends reference, got 'vllm:texts=4'",
        ),
        (["--backend", "reference", "--backend", "reference"], "each --backend once"),
        (["--draft", "a", "--draft", "a"], "each --draft once"),
        (["--prompts", "a", "--prompts", "a"], "each --prompts once"),
        (["--draft-temperature", "1:0:1"], "--draft-temperature first:last:step with first <= last"),
    ],
)
def test_a_bad_option_is_one_line_with_what_was_expected(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parsed(*arguments)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_suites_defaults_hold_where_no_option_speaks() -> None:
    defaults = {
        "quick": {"num_draft_tokens": (1, 4), "temperatures": (0.0, 1.0), "num_prompts": 8, "rules": ("one_hot",)},
        "smoke": {"num_draft_tokens": (9,)},
    }
    silent = parsed().with_defaults(defaults)
    assert (silent.num_draft_tokens, silent.temperatures, silent.num_prompts) == ((1, 4), (0.0, 1.0), 8)
    assert silent.rules == ("one_hot",)
    assert silent.repeats == PRESETS["quick"].repeats
    given = parsed("--num-draft-tokens", "2", "--temperatures", "0.3", "--num-prompts", "5", "--rule", "rejection")
    assert given.with_defaults(defaults) == given
    assert parsed("--preset", "paper").with_defaults(defaults) == parsed("--preset", "paper")


def test_the_drafts_of_a_suite_are_those_of_the_default_pair() -> None:
    defaults = {"quick": {"drafts": ("a", "b"), "end_token": "ignored"}}
    for silent in (parsed(), parsed("--pair", "smollm2")):
        assert silent.with_defaults(defaults).drafts == ("a", "b")
    for other in (parsed("--pair", "llama2-13b"), parsed("--target", "t", "--draft", "d"), parsed("--draft", "d")):
        assert other.with_defaults(defaults).drafts == other.drafts
    assert parsed().with_defaults(defaults).end_token == "ignored"
    assert parsed().end_token == "natural"


def test_several_drafts_prompts_and_draft_temperatures_are_lists() -> None:
    given = parsed("--draft", "a", "--draft", "b", "--prompts", "x", "--prompts", "y", "--draft-temperature", "0:1:0.5")
    assert given.drafts == ("a", "b")
    assert given.prompts == ("x", "y")
    assert given.draft_temperatures == (0.0, 0.5, 1.0)
    assert parsed().draft_temperatures == (None,)


def test_an_option_may_be_for_one_of_several_backends() -> None:
    names = ("--backend", "reference", "--backend", "mine.engine:load")
    options = ("a=1", "reference:compile=true", "mine.engine:load:b=2")
    given = parsed(*names, *(word for option in options for word in ("--backend-option", option)))
    assert given.options_of("reference") == (("a", "1"), ("compile", "true"))
    assert given.options_of("mine.engine:load") == (("a", "1"), ("b", "2"))


def test_a_suite_may_end_cells_early_unless_the_command_line_decides_that() -> None:
    of_suite = {"quick": {"stopping": Stopping(precision=0.05, least_prompts=24)}}
    assert parsed().with_defaults(of_suite).stopping.precision == 0.05
    assert parsed("--precision", "none").with_defaults(of_suite).stopping == Stopping()
    assert parsed("--precision", "0.02").with_defaults(of_suite).stopping == Stopping(precision=0.02)
    assert parsed("--time-budget", "1").with_defaults(of_suite).stopping == Stopping(budget_s=60.0)
