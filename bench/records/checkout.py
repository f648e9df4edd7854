"""The code that a process runs: its commit, what differs from that commit, and git's answers about both."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.records.decoding import Scalar

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = ".py"


def git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints. Raise SubprocessError if it fails, OSError if git is missing."""
    # Inside a git hook, these variables point at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    # File names need not be UTF-8.
    form = {"text": True, "errors": "surrogateescape"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=30, **form)  # type: ignore[call-overload]
    return str(done.stdout).strip()


def commit(folder: Path = REPOSITORY, *, role: str = "harness", paths: Sequence[str] = (".", ":!results")) -> dict[str, Scalar]:
    """Return `<role>_commit`, `<role>_dirty` and, if dirty, `<role>_diff` of the checkout whose root is `folder`.

    The diff is a hash: two processes with the same commit and diff run the same code. Changed results do not count.
    """
    # An installed package has no commit, even if it lies inside another repository.
    unknown: dict[str, Scalar] = {f"{role}_commit": "unknown", f"{role}_dirty": None}
    try:
        if Path(git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return unknown
        short = git(folder, "rev-parse", "--short=10", "HEAD")
        edited = git(folder, "diff", "--name-only", "--no-renames", "-z", "HEAD", "--", *paths).split("\0")
        untracked = git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--", *paths).split("\0")
    except (OSError, subprocess.SubprocessError):
        return unknown
    # Python can import an untracked source. Other untracked files are data, whose hashes are recorded where they are used.
    changed = sorted({*filter(None, edited), *(name for name in untracked if name.endswith(SOURCE))})
    facts: dict[str, Scalar] = {f"{role}_commit": short, f"{role}_dirty": bool(changed)}
    return facts | {f"{role}_diff": _contents_hash(folder, changed)} if changed else facts


def _contents_hash(folder: Path, names: Sequence[str]) -> str:
    """Return a hash of the files that differ from the commit, as they are now. Unlike git's diff it depends on no setting."""
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        content = path.read_bytes() if path.is_file() else None  # None: deleted
        digest.update(repr((name, content and hashlib.sha256(content).hexdigest())).encode())
    return digest.hexdigest()[:16]


def foreign_backends() -> dict[str, Scalar]:
    """Return the commit of the package `backends`, if this process imported it from another checkout than the harness."""
    backends = sys.modules.get("backends")
    if backends is None or backends.__file__ is None:
        return {}
    folder = Path(backends.__file__).resolve().parent.parent
    return {} if folder == REPOSITORY else commit(folder, role="backends", paths=("backends",))
