"""One side of `specheat across`, in a process of its own: the caller's pytest, bench and suites on another revision's backends.

python -m bench.orchestration.child '{"folder": ..., "package": ..., "command": ...}' PYTEST_ARGUMENTS
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path


def imported_from(package: str) -> Path:
    """The folder of a package, which is imported here; whoever imports it later gets the same."""
    from importlib import import_module
    from pathlib import Path

    return Path(str(import_module(package).__file__)).resolve().parent


def main() -> int:
    side, pytest_arguments = json.loads(sys.argv[1]), sys.argv[2:]
    sys.argv = side["command"]  # what records say was typed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it
    import_backends(Path(side["folder"]))
    if side["package"]:
        check_installed(side["package"])
    import pytest

    return int(pytest.main(pytest_arguments))


def import_backends(folder: Path) -> None:
    """Import the package `backends` that lies in `folder`, before anybody imports another one.

    Raises: ValueError: it came from elsewhere
    """
    pass

    sys.path.insert(0, str(folder))  # for worker processes, which import for themselves
    found = imported_from("backends")
    if found != folder.resolve() / "backends":
        raise ValueError(f"expected the package backends of {folder}, got that of {found}")


def check_installed(package: str) -> None:
    """Raises: ValueError: this process would import another version."""
    from bench.records.environment import installed_version

    name, _, version = package.partition("==")
    found = installed_version(name)
    if found != version:
        raise ValueError(f"expected {name} {version}, got {found}; write the version as the package itself does")


if __name__ == "__main__":
    try:
        status = main()
    except ValueError as error:
        sys.exit(str(error))
    sys.exit(status)
