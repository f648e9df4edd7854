"""The commit that a process runs, and git's answers about it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.records.decoding import Scalar

REPOSITORY = Path(__file__).resolve().parents[2]


def git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints. Raise SubprocessError if it fails, OSError if git is missing."""
    # Inside a git hook, these variables point at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def commit(folder: Path = REPOSITORY, *, role: str = "harness", paths: Sequence[str] = (".", ":!results")) -> dict[str, Scalar]:
    """Return `<role>_commit` and `<role>_dirty` of the checkout whose root is `folder`. Changed results do not count."""
    # An installed package has no commit, even if it lies inside another repository.
    unknown: dict[str, Scalar] = {f"{role}_commit": "unknown", f"{role}_dirty": None}
    try:
        if Path(git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return unknown
        short = git(folder, "rev-parse", "--short=10", "HEAD")
        # Untracked files cannot change what a commit runs.
        changes = git(folder, "status", "--porcelain", "--untracked-files=no", "--", *paths)
    except (OSError, subprocess.SubprocessError):
        return unknown
    return {f"{role}_commit": short, f"{role}_dirty": bool(changes)}


def foreign_backends() -> dict[str, Scalar]:
    """Return the commit of the package `backends`, if this process imported it from another checkout than the harness."""
    backends = sys.modules.get("backends")
    if backends is None or backends.__file__ is None:
        return {}
    folder = Path(backends.__file__).resolve().parent.parent
    return {} if folder == REPOSITORY else commit(folder, role="backends", paths=("backends",))
