"""Finds by name what is installed: backends, commands, pairs, versions of packages. The only module that uses importlib.

Names come from entry points, so a third party adds a backend or a command with no change here. Nothing is imported
before it is asked for.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from bench.protocols import BackendFactory, BackendUnavailable

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from importlib.metadata import EntryPoint
    from pathlib import Path

    from bench.records import ModelPair
    from bench.rendering import Page

_BACKENDS = "specheat.backends"
_COMMANDS = "specheat.commands"
_PAIRS = "specheat.pairs"
_PAGES = "specheat.pages"
_CLAIMS = "specheat.claims"


class Command(Protocol):
    """A subcommand of `specheat`: what an entry point of the group `specheat.commands` names, a class or an object."""

    help: str

    def configure(self, parser: ArgumentParser) -> None:
        """Declare the command's arguments."""
        ...

    def run(self, args: Namespace) -> int:
        """Do it; returns the exit status."""
        ...


def backend_names() -> tuple[str, ...]:
    """Names of the installed backends, sorted."""
    return tuple(sorted(_entry_points(_BACKENDS)))


def backend_factory(name: str) -> BackendFactory:
    """The factory of an installed backend, or of any other given as "package.module:attribute".

    Raises:  ValueError: no such backend, or no such attribute
             BackendUnavailable: its module, or one that it needs, cannot be imported
    """
    installed = _entry_points(_BACKENDS)
    if name in installed:
        return _load(name, installed[name].value)
    if ":" in name:
        return _load(name, name)
    close = difflib.get_close_matches(name, installed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(sorted(installed)) or "none is installed"
    raise ValueError(f"unknown backend {name!r}{hint} (known: {known}; or give package.module:attribute)")


def commands() -> dict[str, Callable[[], Command]]:
    """Name of each installed command -> a function that imports and makes it."""
    found = sorted(_entry_points(_COMMANDS).items())
    return {name: functools.partial(_command, name, point.value) for name, point in found}


def ready_pair(
    name: str | None, *, target: str | None = None, draft: str | None = None, pairs_file: Path | None = None
) -> ModelPair:
    """A pair of the table, or of a target and a draft, whose models lie in folders and fit each other.

    Raises:  ValueError: no such pair, or models that do not fit; BackendUnavailable: the hub did not give one
    """
    found: ModelPair = _pair_function("ready")(name, target=target, draft=draft, pairs_file=pairs_file)
    return found


def load_model(folder: str, *, dtype: str, device: str) -> Any:
    """A transformers causal model from a folder, as engines load it: on a device, its weights in memory of their own."""
    return _pair_function("load_model")(folder, dtype=dtype, device=device)


def _pair_function(name: str) -> Callable[..., Any]:
    installed = _entry_points(_PAIRS)
    if name not in installed:
        raise BackendUnavailable(f"no installed package offers {name!r} of {_PAIRS}; install specheat again")
    found: Callable[..., Any] = _load(name, installed[name].value)
    return found


def page_maker(suite: str) -> Callable[[Sequence[Path]], Page] | None:
    """What makes a page of a suite's records, oldest first, where these are JSON lines of another package's own form."""
    installed = _entry_points(_PAGES)
    return _load(suite, installed[suite].value) if suite in installed else None


def claim_makers() -> dict[str, Callable[[], tuple[Any, ...]]]:
    """What makes the claims of the ledger, by the name of the records that they are about; those of cells first.

    Returns: functions that give `bench.claims.Claim`s, a type that stands above this module
    """
    found = sorted(_entry_points(_CLAIMS).items(), key=lambda item: (item[0] != "cells", item[0]))
    return {name: _load(name, point.value) for name, point in found}


def installed_version(distribution: str) -> str | None:
    """Version of an installed package, without importing it; None where it is missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def imported_from(package: str) -> Path:
    """The folder of a package, which is imported here; whoever imports it later gets the same."""
    from importlib import import_module
    from pathlib import Path

    return Path(str(import_module(package).__file__)).resolve().parent


def _entry_points(group: str) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=group)}


def _command(name: str, location: str) -> Command:
    found = _load(name, location)
    return found() if isinstance(found, type) else found


def _load(name: str, location: str) -> Any:
    """The object at "package.module:attribute"; attributes may be dotted."""
    from importlib import import_module

    module_name, _, attribute = location.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"expected package.module:attribute, got {location!r}")
    try:
        found: Any = import_module(module_name)
    except (ImportError, OSError) as error:  # OSError: a shared library that cannot be opened
        reason = str(error).partition("\n")[0]
        raise BackendUnavailable(f"{name!r} cannot be imported from {module_name}: {reason}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{name!r}: expected an attribute {attribute!r} in {module_name}, found none")
        found = getattr(found, part)
    return found
