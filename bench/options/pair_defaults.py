"""Options that are right for a model pair, where neither the command line nor a suite decides them.

They stand in the table of pairs, as `defaults` of a row. They are read here, not by the engines' side: in `specheat across` all
sides take those of the caller's table.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.options.arguments import key_value
from bench.options.settings import DEFAULT_PAIR, Settings

DEFAULTS = "defaults"  # of a row: options by the field of Settings that they decide
FIELDS = {"num_draft_tokens", "backend_options"}


def pair_defaults(settings: Settings, tables: Sequence[Path]) -> dict[str, Any]:
    """Return the defaults of the pair of the settings, by field; none if the user replaces one of its models.

    Args:    tables: files of pairs; a row of a later one replaces that of an earlier one
    Raises:  ValueError: a file is no TOML, or a row has other defaults than FIELDS
    """
    if settings.target is not None or settings.drafts != (None,):
        return {}
    name = settings.pair or DEFAULT_PAIR
    found: dict[str, Any] = {}
    for path in tables:
        row = read_tables(path).get(name)
        found = found if row is None else row.get(DEFAULTS, {})
    if unknown := found.keys() - FIELDS:
        raise ValueError(f"pair {name}: expected defaults {', '.join(sorted(FIELDS))}; got {', '.join(sorted(unknown))}")
    if wrong := [field for field, value in found.items() if not isinstance(value, list)]:
        raise ValueError(f"pair {name}: expected a list as default of {', '.join(wrong)}, got {found[wrong[0]]!r}")
    return {
        field: tuple(key_value(each) for each in value) if field == "backend_options" else tuple(value)
        for field, value in found.items()
    }


def read_tables(path: Path) -> dict[str, Any]:
    """Return a TOML file. Raise ValueError if it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
