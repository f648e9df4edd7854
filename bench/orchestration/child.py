"""One side of `specheat across` in a separate process: the caller's pytest, bench and suites on another revision's backends.

python -m bench.orchestration.child '{"folder": ..., "package": ..., "command": ...}' PYTEST_ARGUMENTS
"""

from __future__ import annotations

import json
import signal
import sys
from importlib import import_module
from pathlib import Path

from bench.records.environment import installed_version


def main() -> int:
    """Check where backends and package come from, and run pytest."""
    side, pytest_arguments = json.loads(sys.argv[1]), sys.argv[2:]
    sys.argv = side["command"]  # records store the command that the user typed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore Ctrl-C by default
    folder = Path(side["folder"]).resolve()
    sys.path.insert(0, str(folder))
    backends = Path(str(import_module("backends").__file__)).resolve().parent  # later imports get this package too
    if backends != folder / "backends":
        raise ValueError(f"expected the package backends of {folder}, got that of {backends}")
    if side["package"]:
        name, _, version = side["package"].partition("==")
        if (found := installed_version(name)) != version:
            raise ValueError(f"expected {name} {version}, got {found}; write the version as the package itself does")
    import pytest

    return int(pytest.main(pytest_arguments))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))
