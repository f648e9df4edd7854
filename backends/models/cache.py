"""TODO: purpose."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

RECORD = "prepared.json"


def cache_folder() -> Path:
    return Path(os.environ.get("SPECHEAT_CACHE") or Path.home() / ".cache" / "specheat")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _intact(folder: Path) -> bool:
    """Whether every recorded file is there with its recorded content."""
    try:
        recorded = json.loads((folder / RECORD).read_text())["sha256"]
        return all(sha256_of(folder / name) == value for name, value in recorded.items())
    except (OSError, ValueError, KeyError):
        return False


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, made by `make` if it is missing or damaged. Safe for two processes at once."""
    folder = cache_folder() / name
    if _intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
        made = Path(scratch) / name
        made.mkdir()
        make(made)
        hashes = {path.name: sha256_of(path) for path in sorted(made.iterdir())}
        (made / RECORD).write_text(json.dumps({"sha256": hashes}, indent=1))
        _install(made, folder)
    return folder


def _install(made: Path, folder: Path) -> None:
    """Move a finished folder to its place, unless another process was faster."""
    if _intact(folder):
        return
    if folder.exists():
        os.replace(folder, made.with_name("damaged"))  # goes with the scratch folder
    try:
        os.replace(made, folder)
    except OSError:  # a folder cannot replace one with content: the other process won between the two lines
        if not _intact(folder):
            raise
