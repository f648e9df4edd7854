"""Find a backend by its name, without importing any other.

Names are entry points of the group `specheat.backends`, so a third party adds one without a change here.
"""

from __future__ import annotations

import difflib
import pkgutil
from typing import TYPE_CHECKING, Any

from bench.errors import BackendUnavailable, first_line
from bench.protocols import BackendFactory

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def backend_names() -> tuple[str, ...]:
    """Return the names of the installed backends, sorted."""
    return tuple(sorted(_installed()))


def backend_factory(name: str) -> BackendFactory:
    """Return the factory of an installed backend, or of one given as "package.module:attribute".

    Raises:  ValueError: no such backend, or no such attribute
             BackendUnavailable: its module, or one that it needs, cannot be imported
    """
    installed = _installed()
    if name in installed:
        return load_object(name, installed[name].value)
    if ":" in name:
        return load_object(name, name)
    close = difflib.get_close_matches(name, installed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(sorted(installed)) or "none is installed"
    raise ValueError(f"unknown backend {name!r}{hint} (known: {known}; or give package.module:attribute)")


def _installed() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="specheat.backends")}


def load_object(name: str, location: str) -> Any:
    """Import the object at "package.module:attribute"; the attribute may be dotted."""
    module, _, attribute = location.partition(":")
    if not attribute or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"expected package.module:attribute, got {location!r}")
    try:
        return pkgutil.resolve_name(location)
    except (ImportError, OSError) as error:  # OSError: a shared library that cannot be opened
        raise BackendUnavailable(f"{name!r} cannot be imported from {module}: {first_line(error)}") from error
    except AttributeError:
        raise ValueError(f"{name!r}: expected an attribute {attribute!r} in {module}, found none") from None
