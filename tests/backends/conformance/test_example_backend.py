"""The example of docs/backends.md, loaded as a third party's package would be: from another folder, by its name."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.conformance.kit import BackendConformance
from bench import registry
from bench.protocols import Backend
from bench.records.decoding import ModelPair

PACKAGE = Path(__file__).parent / "example_backend"
GROUP = "specheat.backends"


@pytest.fixture(scope="module", autouse=True)
def _outside_the_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = shutil.copytree(PACKAGE, tmp_path_factory.mktemp("third_party") / "specheat-ngram")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    for module in [name for name in sys.modules if name.startswith("specheat_ngram")]:
        del sys.modules[module]


def declared() -> dict[str, str]:
    """The example's entry points."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    return project["entry-points"][GROUP]


class TestNgram(BackendConformance):
    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return registry.backend_factory(declared()["ngram"])(pair, device="cpu", options={})

    def test_it_comes_from_outside_the_tree(self, near: Backend) -> None:
        assert isinstance(near, Backend)
        assert not Path(sys.modules[type(near).__module__].__file__ or "").is_relative_to(PACKAGE.parent)


def test_the_example_has_fewer_than_80_lines() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".toml")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 80
