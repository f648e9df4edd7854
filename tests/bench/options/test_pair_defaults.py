"""Defaults of a pair: who overrides them, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.options.pair_defaults import pair_defaults
from bench.options.settings import Settings
from tests.support import ROOT


def defaults(settings: Settings) -> dict[str, Any]:
    ours = ROOT / "backends" / "models" / "pairs.toml"
    return pair_defaults(settings, [ours] if settings.pairs_file is None else [ours, settings.pairs_file])


def plain(**changes: object) -> Settings:
    return Settings(preset="quick", temperatures=(1.0,), repeats=1, max_new_tokens=8, **changes)  # type: ignore[arg-type]


def test_the_embedded_pair_has_defaults_which_the_command_line_and_the_suite_override() -> None:
    found = defaults(plain())
    assert found.keys() == {"num_draft_tokens", "backend_options"}
    used = plain().with_pair_defaults(found)
    assert used.num_draft_tokens == found["num_draft_tokens"]
    assert dict(used.options_of("reference")) == {"draft_vocabulary": "4096"}
    assert used.options_of("assisted") == ()
    own = plain(num_draft_tokens=(7,), backend_options=(("draft_vocabulary", "0"),), given=frozenset({"num_draft_tokens"}))
    used = own.with_pair_defaults(found)
    assert used.num_draft_tokens == (7,)
    assert dict(used.options_of("reference")) == {"draft_vocabulary": "0"}
    of_suite = plain().with_defaults({"quick": {"num_draft_tokens": (1, 3), "backend_options": ()}}).with_pair_defaults(found)
    assert of_suite.num_draft_tokens == (1, 3)
    assert of_suite.options_of("reference") == ()


def test_other_models_than_those_of_the_pair_have_no_defaults() -> None:
    assert defaults(plain(drafts=("embedded:smollm2/other",))) == {}
    assert defaults(plain(target="a", drafts=("b",))) == {}
    assert defaults(plain(pair="mini-t5")) == {}


def test_a_pairs_file_may_have_defaults_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    row = '[mine]\ntarget = "a"\ndraft = "b"\nfamily = "causal"\ndtype = "float32"\n'
    file = tmp_path / "pairs.toml"
    file.write_text(f"{row}defaults = {{ num_draft_tokens = [3, 5] }}\n")
    assert defaults(plain(pair="mine", pairs_file=file)) == {"num_draft_tokens": (3, 5)}
    file.write_text(f"{row}defaults = {{ temperature = 1 }}\n")
    with pytest.raises(ValueError, match="expected defaults backend_options, num_draft_tokens; got temperature"):
        defaults(plain(pair="mine", pairs_file=file))
    file.write_text(f"{row}defaults = {{ num_draft_tokens = 3 }}\n")
    with pytest.raises(ValueError, match="expected a list as default of num_draft_tokens, got 3"):
        defaults(plain(pair="mine", pairs_file=file))
