"""Backends are found by name, imported only on request, and missing ones are reported in one clear line."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bench import registry
from bench.errors import BackendUnavailable
from bench.records import environment
from tests.support import ROOT

MODULE = """

def load(pair, *, device, options): return "loaded"
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of somebody else, and entry points that name it, a missing one and two that cannot be imported."""
    (tmp_path / "some_engine.py").write_text(MODULE)
    (tmp_path / "needy_engine.py").write_text("import a_package_nobody_has")
    (tmp_path / "torn_engine.py").write_text("raise OSError('libengine.so: cannot open shared object file\\nat ...')")
    monkeypatch.syspath_prepend(tmp_path)
    groups = {
        "specheat.backends": {
            "some": "some_engine:load",
            "needy": "needy_engine:load",
            "torn": "torn_engine:load",
        },
    }
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group: tuple(EntryPoint(name, value, group) for name, value in groups[group].items()),
    )
    return "some_engine"


def test_importing_the_registry_imports_no_other_package() -> None:
    code = (
        "import sys; before = set(sys.modules); import bench.registry\n"
        "heavy = {'torch', 'numpy', 'msgspec', 'psutil', 'importlib.metadata', 'argparse', 'pytest'}\n"
        "sys.exit(', '.join(heavy & (set(sys.modules) - before)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("third_party")
def test_backends_are_listed_without_importing_them() -> None:
    assert registry.backend_names() == ("needy", "some", "torn")
    assert "needy_engine" not in sys.modules


def test_a_backend_is_found_by_name_and_by_location(third_party: str) -> None:
    by_name = registry.backend_factory("some")
    assert by_name is registry.backend_factory(f"{third_party}:load")
    assert by_name.__module__ == third_party


@pytest.mark.usefixtures("third_party")
def test_an_unknown_backend_is_answered_with_the_names_and_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"^unknown backend 'sone'; did you mean 'some'\? \(known: needy, some, torn;"):
        registry.backend_factory("sone")
    with pytest.raises(ValueError, match=r"^unknown backend 'zzz' \(known: needy, some, torn;"):
        registry.backend_factory("zzz")


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("needy", r"^'needy' cannot be imported from needy_engine: No module named 'a_package_nobody_has'$"),
        ("torn", r"^'torn' cannot be imported from torn_engine: libengine.so: cannot open shared object file$"),
        ("absent_engine:load", r"^'absent_engine:load' cannot be imported from absent_engine: No module named"),
    ],
)
def test_a_backend_that_cannot_be_imported_is_unavailable_and_says_why(name: str, reason: str) -> None:
    with pytest.raises(BackendUnavailable, match=reason):
        registry.backend_factory(name)


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("location", ["some_engine:", ":load", ".relative:load", "/some/engine.py:load"])
def test_a_malformed_location_is_refused(location: str) -> None:
    with pytest.raises(ValueError, match=r"expected package\.module:attribute"):
        registry.backend_factory(location)


@pytest.mark.usefixtures("third_party")
def test_a_missing_attribute_is_named() -> None:
    with pytest.raises(ValueError, match="expected an attribute 'laod' in some_engine"):
        registry.backend_factory("some_engine:laod")


def test_a_version_is_known_only_of_what_is_installed() -> None:
    assert environment.installed_version("pytest") == pytest.__version__
    assert environment.installed_version("a-package-nobody-has") is None


def test_the_project_declares_entry_points_for_backends_pytest_and_vllm_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["entry-points"]) == {"specheat.backends", "pytest11", "vllm.general_plugins"}
    for group, named in project["entry-points"].items():
        for name, location in named.items():
            assert callable(EntryPoint(name, location, group).load()) or group == "pytest11"
