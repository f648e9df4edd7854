"""The shape of the project: imports run downward only, and looking at the harness loads no engine."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROW_1 = {"records", "remembered", "protocols", "theory", "statistics", "losslessness", "metrics"}
HEAVY = {"torch", "transformers", "vllm"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path, *, everywhere: bool = True) -> Iterator[str]:
    """Dotted names a file imports; with everywhere=False only those that run when it is imported."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path: Path, **how: bool) -> set[str]:
    return {name.partition(".")[0] for name in imported(path, **how)}


@pytest.mark.parametrize("path", modules("bench"), ids=lambda path: path.name)
def test_bench_imports_nothing_above_it_and_no_engine(path: Path) -> None:
    assert not packages(path) & {"backends", "distill", "suites", "tests", *HEAVY}


@pytest.mark.parametrize("name", sorted(ROW_1))
def test_row_one_imports_only_row_one(name: str) -> None:
    path = ROOT / "bench" / f"{name}.py"
    if not path.exists():
        pytest.skip(f"bench/{name}.py is not there yet")
    ours = {part for dotted in imported(path) if dotted.startswith("bench.") for part in dotted.split(".")[1:2]}
    assert ours <= ROW_1


@pytest.mark.parametrize(("package", "sibling"), [("backends", "distill"), ("distill", "backends")])
def test_backends_and_distill_do_not_import_each_other_or_what_is_above(package: str, sibling: str) -> None:
    for path in modules(package):
        assert not packages(path) & {sibling, "suites", "tests"}, path


def test_only_the_registry_imports_by_name() -> None:
    # smollm2 asks where a package lies, and imports nothing
    allowed = {ROOT / "bench" / "registry.py", ROOT / "backends" / "smollm2.py"}
    users = {
        path
        for package in ("bench", "backends", "distill")
        for path in modules(package)
        if "importlib" in packages(path)
    }
    assert users <= allowed


def test_importing_the_harness_loads_neither_torch_nor_an_engine() -> None:
    names = [f"bench.{path.stem}" for path in modules("bench") if path.parent.name == "bench"]
    code = f"import sys, {', '.join(names)}; print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
