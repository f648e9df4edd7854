"""The commit in a record is that of the checkout which ran, and dirty only where something it runs was edited."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.records.checkout import REPOSITORY, commit, foreign_backends


def git(folder: Path, *arguments: str) -> None:
    identity = {f"GIT_{who}_{what}": "x@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | identity
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=environ)


def make_checkout(folder: Path) -> None:
    (folder / "results").mkdir(parents=True)
    for name in ("code.py", "results/table.md"):
        (folder / name).write_text("first")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")


def test_the_commit_is_that_of_the_checkout_and_dirty_after_an_edit(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    clean = commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{10}", str(clean["harness_commit"]))
    assert clean["harness_dirty"] is False
    (tmp_path / "code.py").write_text("second")
    edited = commit(tmp_path)
    diff = edited.pop("harness_diff")
    assert edited == clean | {"harness_dirty": True}
    assert re.fullmatch("[0-9a-f]{16}", str(diff))


def diff_of(folder: Path) -> object:
    return commit(folder).get("harness_diff")


def test_the_diff_is_that_of_the_files_as_they_are_and_absent_in_a_clean_checkout(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    assert diff_of(tmp_path) is None
    code = tmp_path / "code.py"
    found = []
    for content in ("second", "third", "second"):
        code.write_text(content)
        found.append(diff_of(tmp_path))
    second, third, again = found
    assert second == again != third
    git(tmp_path, "config", "diff.noprefix", "true")  # a user's settings change git's diff and not the code
    git(tmp_path, "add", ".")
    assert diff_of(tmp_path) == second
    code.unlink()
    assert diff_of(tmp_path) not in (None, second, third)
    git(tmp_path, "checkout", "HEAD", "code.py")
    assert diff_of(tmp_path) is None


def test_an_untracked_source_counts_and_ignored_files_and_data_do_not(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "ignore")
    for name in ("ignored.py", "prompts.jsonl", "results/new.py"):
        (tmp_path / name).write_text("new")
    assert commit(tmp_path)["harness_dirty"] is False
    source = tmp_path / "own" / "bäckend.py"
    source.parent.mkdir()
    source.write_text("first")
    found = commit(tmp_path)
    assert found["harness_dirty"] is True
    source.write_text("second")
    assert diff_of(tmp_path) not in (None, found["harness_diff"])


def test_new_results_do_not_make_a_checkout_dirty(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    (tmp_path / "results/table.md").write_text("second")
    (tmp_path / "results/new.json").write_text("{}")
    assert commit(tmp_path)["harness_dirty"] is False


def test_the_commit_is_unknown_without_a_repository_and_inside_another_one(tmp_path: Path) -> None:
    unknown = {"harness_commit": "unknown", "harness_dirty": None}
    installed = tmp_path / "site-packages"
    installed.mkdir()
    assert commit(installed) == unknown
    make_checkout(tmp_path)
    assert commit(installed) == unknown


def test_the_commit_is_unknown_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path)["harness_commit"] == "unknown"


def test_backends_of_another_checkout_have_a_commit_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path)
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "__init__.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "backends")
    monkeypatch.setitem(sys.modules, "backends", SimpleNamespace(__file__=str(tmp_path / "backends/__init__.py")))
    (tmp_path / "code.py").write_text("of no matter here")
    short = commit(tmp_path)["harness_commit"]
    assert foreign_backends() == {"backends_commit": short, "backends_dirty": False}
    (tmp_path / "backends" / "__init__.py").write_text("changed")
    assert {"backends_commit": short, "backends_dirty": True}.items() < foreign_backends().items()


def test_our_own_backends_have_no_commit_beside_that_of_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    own = REPOSITORY / "backends" / "__init__.py"
    monkeypatch.setitem(sys.modules, "backends", SimpleNamespace(__file__=str(own)))
    assert foreign_backends() == {}
    monkeypatch.delitem(sys.modules, "backends")
    assert foreign_backends() == {}
