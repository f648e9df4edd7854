"""Find a backend by its name. Names come from entry points of the group `specheat.backends`, so a third party needs no change here.

Nothing is imported before it is requested.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from bench.errors import BackendUnavailable
from bench.protocols import BackendFactory

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_BACKENDS = "specheat.backends"


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
        return load_object(name, installed[name].value)
    if ":" in name:
        return load_object(name, name)
    close = difflib.get_close_matches(name, installed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(sorted(installed)) or "none is installed"
    raise ValueError(f"unknown backend {name!r}{hint} (known: {known}; or give package.module:attribute)")


def _entry_points(group: str) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=group)}


def load_object(name: str, location: str) -> Any:
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
