"""The cache folder: models that are made once on this machine, with the sha256 of every file recorded beside them.

Each use checks the hashes. A damaged folder is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

RECORD = "prepared.json"


def cache_folder() -> Path:
    """Return $SPECHEAT_CACHE, or its default in the user's home."""
    return Path(os.environ.get("SPECHEAT_CACHE") or Path.home() / ".cache" / "specheat")


def sha256_of(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*parts: str) -> str:
    """Return 16 digits that depend on every part, for the name of a folder."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def copy_companions(model: Path, folder: Path) -> None:
    """Copy everything of a checkpoint but configuration and weights: tokenizer, chat template, generation config."""
    for path in model.iterdir():
        is_weight = path.suffix in (".safetensors", ".bin") or path.name.endswith(".index.json")
        if path.is_file() and not is_weight and path.name not in ("config.json", RECORD):
            shutil.copy(path, folder)


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache; `make` fills it if it is missing or damaged. Safe for two processes at once."""
    folder = cache_folder() / name
    if _intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:  # on the same disk: moved in one step
        made = Path(scratch) / name
        made.mkdir()
        make(made)
        hashes = {path.name: sha256_of(path) for path in sorted(made.iterdir())}
        (made / RECORD).write_text(json.dumps({"sha256": hashes}, indent=1))
        _install(made, folder)
    return folder


def _intact(folder: Path) -> bool:
    """Return whether every recorded file is there with its recorded content."""
    try:
        recorded = json.loads((folder / RECORD).read_text())["sha256"]
        return all(sha256_of(folder / name) == value for name, value in recorded.items())
    except (OSError, ValueError, KeyError):
        return False


def _install(made: Path, folder: Path) -> None:
    """Move a finished folder to its place, unless another process was faster."""
    if _intact(folder):
        return
    if folder.exists():
        os.replace(folder, made.with_name("damaged"))  # deleted together with the scratch folder
    try:
        os.replace(made, folder)
    except OSError:
        # A folder cannot replace one that has content: the other process moved its own here in the meantime.
        if not _intact(folder):
            raise
