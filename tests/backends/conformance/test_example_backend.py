"""The example of docs/backends.md, loaded as a third party's package would be: from another folder, by its name."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from backends.conformance.kit import BackendConformance
from bench import registry
from bench.protocols import Backend
from bench.records.decoding import ModelPair
from tests.support import ROOT

PACKAGE = ROOT / "tests" / "example_backend"
GROUP = "specheat.backends"

# The kit reads the class's capabilities when tests are collected, so the copy has to be importable by then.
INSTALLED = Path(tempfile.mkdtemp(prefix="third-party-"))
atexit.register(shutil.rmtree, INSTALLED, ignore_errors=True)
shutil.copytree(PACKAGE, INSTALLED, dirs_exist_ok=True)
sys.path.insert(0, str(INSTALLED))

from specheat_ngram.backend import NgramBackend  # noqa: E402


def declared() -> dict[str, str]:
    """Return the example's entry points."""
    project: dict[str, Any] = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    entry_points: dict[str, str] = project["entry-points"][GROUP]
    return entry_points


class TestNgram(BackendConformance):
    backend = NgramBackend

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return registry.backend_factory(declared()["ngram"])(pair, device="cpu", options={})

    def test_it_comes_from_outside_the_tree(self, near: Backend) -> None:
        assert isinstance(near, Backend)
        assert not Path(sys.modules[type(near).__module__].__file__ or "").is_relative_to(ROOT)


def test_the_example_has_fewer_than_80_lines() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".toml")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 80
