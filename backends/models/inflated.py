"""Inflated targets as plain checkpoints, which any engine loads: made once, in a cache folder that says what it holds."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.models.cache import RECORD, cache_folder, made_once
from bench.errors import BackendUnavailable
from bench.records.environment import available_memory_bytes

if TYPE_CHECKING:
    from backends.models.inflation import Shape


CARD = "inflated.json"
_BYTES_MADE, _BYTES_STORED = 4, 2  # a parameter: float32 while it is made, bfloat16 on the disk


def card(folder: Path) -> dict[str, str]:
    """Of an inflated target: the target it was made from, its sha256 and the shape; empty of any other model."""
    path = folder / CARD
    found: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def check_inflatable(config: Any, text: str) -> Shape:
    """The shape that `--inflate` names, for a target with this configuration.

    Raises:  BackendUnavailable: no target of this kind can be inflated; ValueError: no such shape, or the target does not fit
             into it
    """
    from backends.models import inflation

    if reason := inflation.obstacle(config):
        raise BackendUnavailable(f"expected a Llama-type target to inflate, got {reason}")
    shape = inflation.parse_shape(text, config)
    inflation.check_fits(config, shape)
    return shape


def checkpoint(target: Path, text: str, *, config: Any, name: str, sha256: str) -> tuple[Path, str]:
    """The folder of a target inflated to a shape, and what the shape is called.

    Args:    text: as `--inflate` takes it; config: of the target; name, sha256: of the target, for the card
    Raises:  as `check_inflatable`, and ValueError: memory or disk cannot hold it
    """
    from backends.models import inflation

    shape = check_inflatable(config, text)
    label = text.lower() if text.lower() in inflation.SHAPES else str(shape)
    how = hashlib.sha256(Path(inflation.__file__).read_bytes()).hexdigest()
    key = hashlib.sha256(" ".join((sha256, str(shape), how)).encode()).hexdigest()[:16]

    def make(folder: Path) -> None:
        _check_room(inflation.num_parameters(config, shape), label)
        print(f"specheat: inflating {name} to {label} (once)", file=sys.stderr, flush=True)
        _write(target, folder, shape)
        (folder / CARD).write_text(json.dumps({"target": name, "sha256": sha256, "shape": label}, indent=1))

    return made_once(f"inflated-{key}", make), label


def _check_room(num_parameters: int, label: str) -> None:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    for what, needed, free in (
        ("memory", _BYTES_MADE * num_parameters, available_memory_bytes()),
        (f"disk for {cache}", _BYTES_STORED * num_parameters, shutil.disk_usage(cache).free),
    ):
        if free < needed:
            raise ValueError(
                f"expected {needed / 2**30:.1f} GiB of {what} to inflate to {label}, found {free / 2**30:.1f}; "
                "take a smaller --inflate"
            )


def _write(target: Path, folder: Path, shape: Shape) -> None:
    """In bfloat16 what that does not round, such as all random weights; the rest, such as scaled norms, in float32."""
    import torch
    import transformers

    from backends.models import inflation

    small = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, local_files_only=True)
    large = inflation.inflate(small, shape)
    weights = {name: _narrowed(weight) for name, weight in large.state_dict().items()}
    large.config.dtype = torch.bfloat16
    large.save_pretrained(folder, state_dict=weights)
    for path in target.iterdir():
        is_model = path.suffix in (".safetensors", ".bin") or path.name.endswith(".index.json")
        if path.is_file() and not is_model and path.name not in ("config.json", RECORD):
            shutil.copy(path, folder)  # tokenizer, chat template, generation config


def _narrowed(weight: Any) -> Any:
    import torch

    narrow = weight.to(torch.bfloat16)
    return narrow if torch.equal(narrow.to(weight.dtype), weight) else weight
