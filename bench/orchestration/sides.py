"""The sides of a comparison: where the engines of each come from, checked out or installed for as long as they are needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import last_line
from bench.records import checkout
from bench.records.checkout import git

WORKTREE = (".", "WORKTREE")  # names of the caller's files, committed or not
ENGINES = "backends/engines"  # a folder that revisions lack whose backends have the old layout


@dataclass(frozen=True, slots=True)
class Source:
    """Where the engines of one side come from."""

    label: str
    commit: str | None  # of the package `backends`; None: the caller's files
    package: str | None = None  # "name==version"; None: the installed one


def sources(revisions: Sequence[str], packages: Sequence[str]) -> tuple[Source, ...]:
    """Return the sides: several revisions, or several versions of one package on one revision.

    Args:    revisions: commits as git names them, or `.` or WORKTREE for the caller's files, which is also the default
             packages: "name==version" each
    """
    for package in packages:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*==[A-Za-z0-9_.!+-]+", package):
            raise ValueError(f"expected --with PACKAGE==VERSION, got {package!r}")
    if len({package.partition("==")[0] for package in packages}) > 1:
        raise ValueError(f"expected --with versions of one package, got {', '.join(packages)}")
    if len(revisions) > 1 and len(packages) > 1:
        raise ValueError("expected several revisions or several --with versions, got both; fix one of them")
    if max(len(revisions), len(packages)) < 2:
        raise ValueError("expected at least two revisions, or two versions of a package with --with")
    if (root := _answer("rev-parse", "--show-toplevel")) is None or Path(root).resolve() != checkout.REPOSITORY:
        raise ValueError(f"expected to run from a checkout of specheat's repository, found none at {checkout.REPOSITORY}")
    found = [_revision(revision) for revision in revisions or WORKTREE[:1]]
    if len(packages) > 1:
        found = [Source(package, found[0].commit, package) for package in packages]
    elif packages:
        found = [replace(source, package=packages[0]) for source in found]
    labels = [source.label for source in found]
    for index, label in enumerate(labels):  # a commit may be compared with itself
        if labels.count(label) > 1:
            found[index] = replace(found[index], label=f"{label} #{labels[: index + 1].count(label)}")
    return tuple(found)


def _revision(name: str) -> Source:
    if name in WORKTREE:
        return Source("working tree", None)
    commit = _answer("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if commit is None:
        raise ValueError(f"expected a commit of this repository, got {name!r}; `git log --all --oneline` lists them")
    if _answer("cat-file", "-e", f"{commit}:backends") is None:
        raise ValueError(f"expected a revision with a package backends, got {name!r}")
    if _answer("cat-file", "-e", f"{commit}:{ENGINES}") is None:
        raise ValueError(
            f"expected a revision from commit 6c227e1280 on, which have {ENGINES}, got {name!r}, which is older; "
            "compare older revisions by running specheat across from a checkout of one of them"
        )
    short = commit[:10]
    return Source(short if commit.startswith(name) else f"{name} ({short})", commit)


def _answer(*arguments: str) -> str | None:
    """Return what git prints; None where it fails or is missing."""
    try:
        return git(checkout.REPOSITORY, *arguments)
    except (OSError, subprocess.CalledProcessError):
        return None


@contextmanager
def checkouts(sides: Sequence[Source]) -> Iterator[tuple[Path, ...]]:
    """Yield the folder in which each side's package `backends` lies: for revisions, git worktrees that hold only it."""
    with tempfile.TemporaryDirectory(prefix="specheat-across-") as scratch, ExitStack() as stack:
        folders = []
        for number, side in enumerate(sides, start=1):
            folder = checkout.REPOSITORY
            if side.commit is not None:
                folder = Path(scratch).resolve() / f"side-{number}"
                # Registered before the worktree exists, so that one that fails halfway is removed too.
                stack.callback(_answer, "worktree", "remove", "--force", str(folder))
                _add_worktree(folder, side.commit, side.label)
            folders.append(folder)
        yield tuple(folders)


def _add_worktree(folder: Path, commit: str, label: str) -> None:
    no_hooks = ("-c", f"core.hooksPath={os.devnull}")  # the user's hooks are for the user's checkouts
    try:
        git(checkout.REPOSITORY, *no_hooks, "worktree", "add", "--detach", "--no-checkout", str(folder), commit)
        git(folder, *no_hooks, "checkout", commit, "--", "backends")
    except subprocess.SubprocessError as error:
        reason = last_line(getattr(error, "stderr", None) or str(error))
        raise ValueError(f"git cannot check out {label}: {reason}") from error


def package_folder(package: str, note: Callable[[str], None]) -> Path:
    """Return a folder with only this version of a package, installed once and kept. Dependencies are those installed here."""
    cache = Path(os.environ.get("SPECHEAT_CACHE") or Path.home() / ".cache" / "specheat")
    folder = cache / "packages" / str(sys.implementation.cache_tag) / package
    if folder.is_dir():
        return folder
    note(f"installing {package} into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".installing-") as scratch:
        target = Path(scratch, "target")  # renamed when complete, so that an interrupted installation is never used
        options = ("--quiet", "--no-deps", "--disable-pip-version-check", "--target", str(target))
        command = [sys.executable, "-m", "pip", "install", *options, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"cannot install {package}: {last_line(done.stderr)}")
        target.rename(folder)
    return folder
