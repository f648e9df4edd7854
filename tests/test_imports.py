"""Check the shape of the project: every import points down, and importing the harness loads no engine."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "vllm"}

# The import rule. A unit is a sub-package, or a file that lies directly in a package. It may import units of earlier rows only.
LAYERS = {
    "bench": (
        ("errors",),
        ("progress", "options", "statistics"),
        ("records",),
        ("protocols", "prompts"),
        ("registry",),
        ("analysis",),
        ("claims", "measurement"),
        ("reporting", "orchestration"),
        ("commands", "plugin"),
    ),
    "backends": (
        ("models", "acceptance", "forwards"),
        ("engines", "certification"),
        ("conformance", "doctor"),
        ("commands",),
    ),
    "distill": (("text",), ("training",), ("evaluation",), ("runs",), ("commands",)),
}
# What a package may import beside itself: a package, or one sub-package of it.
ALLOWED = {"bench": (), "backends": ("bench",), "distill": ("bench", "backends.models")}
# Only these look up packages by name: the registry finds backends, a child process finds the engines of a revision,
# the others read versions, requirements and the place of a package.
IMPORTLIB = {
    "backends/doctor/checks.py",
    "bench/registry.py",
    "bench/orchestration/child.py",
    "bench/records/environment.py",
    "backends/models/embedded.py",
}


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted name of every import of a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[1]


def within(dotted: str, place: str) -> bool:
    return f"{dotted}.".startswith(f"{place}.")


@pytest.mark.parametrize("package", LAYERS)
def test_imports_inside_a_package_point_down(package: str) -> None:
    row_of = {unit: row for row, units in enumerate(LAYERS[package]) for unit in units}
    wrong = []
    for path in modules(package):
        unit = unit_of(path)
        if unit == "__init__":
            continue
        for dotted in imported(path):
            if within(dotted, package):
                other = dotted.split(".")[1]
                if other != unit and other in row_of and row_of[other] >= row_of[unit]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {dotted}")
    assert not wrong


@pytest.mark.parametrize("package", LAYERS)
def test_every_unit_has_a_row(package: str) -> None:
    units = {unit_of(path) for path in modules(package)} - {"__init__"}
    assert units == {unit for row in LAYERS[package] for unit in row}


@pytest.mark.parametrize("package", LAYERS)
def test_packages_import_only_the_packages_below_them(package: str) -> None:
    ours = {*LAYERS, "suites", "tests"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {dotted}"
        for path in modules(package)
        for dotted in imported(path)
        if dotted.split(".")[0] in ours and not any(within(dotted, place) for place in (package, *ALLOWED[package]))
    ]
    assert not wrong


def test_the_harness_names_no_engine_library() -> None:
    wrong = [path for path in modules("bench") if {name.split(".")[0] for name in imported(path)} & HEAVY]
    assert not wrong


def test_files_of_a_package_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts) for package in LAYERS for path in modules(package)}
    for package in LAYERS:
        for path in modules(package):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            wanted = set(imported(path))
            graph[name] = {other for other in known if other != name and any(within(dotted, other) for dotted in wanted)}
    while free := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in free:
            del graph[name]
    assert not {name: sorted(others & graph.keys()) for name, others in graph.items()}


def test_only_the_named_files_use_importlib() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in LAYERS
        for path in modules(package)
        if any(within(dotted, "importlib") for dotted in imported(path))
    }
    assert users <= IMPORTLIB


def test_importing_the_harness_loads_neither_torch_nor_an_engine() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules("bench") if path.stem != "__init__"]
    names.remove("bench.prompts.make_word_problems")  # a program, not part of the harness
    code = f"import sys, {', '.join(names)}; print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
