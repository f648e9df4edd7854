"""Inflated targets as plain checkpoints that any engine loads. Each is made once; a card in its folder names its origin."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.models.cache import cache_folder, copy_companions, key_of, made_once, sha256_of
from bench.errors import BackendUnavailable
from bench.records.machine import available_memory_bytes

if TYPE_CHECKING:
    from backends.models.inflation import Shape

CARD = "inflated.json"


def card(folder: Path) -> dict[str, str]:
    """Return target, sha256 and shape that an inflated target was made from; for any other model an empty dict."""
    path = folder / CARD
    return json.loads(path.read_text()) if path.is_file() else {}


def check_inflatable(config: Any, text: str) -> Shape:
    """Return the shape that `--inflate` names, for a target with this configuration.

    Raises:  BackendUnavailable: no target of this kind can be inflated
             ValueError: there is no such shape, or the target does not fit into it
    """
    from backends.models import inflation

    if reason := inflation.obstacle(config):
        raise BackendUnavailable(f"expected a Llama-type target to inflate, got {reason}")
    shape = inflation.parse_shape(text, config)
    inflation.check_fits(config, shape)
    return shape


def checkpoint(target: Path, text: str, *, config: Any, name: str, sha256: str) -> tuple[Path, str]:
    """Return the folder of a target inflated to a shape (`text`, as `--inflate` takes it), and the shape's label.

    Raises:  as `check_inflatable`, and ValueError: memory or disk cannot hold it
    """
    from backends.models import inflation

    shape = check_inflatable(config, text)
    label = text.lower() if text.lower() in inflation.SHAPES else str(shape)

    def make(folder: Path) -> None:
        _check_room(folder, inflation.num_parameters(config, shape), label)
        print(f"specheat: inflating {name} to {label} (once)", file=sys.stderr, flush=True)
        _write_inflated(target, folder, shape)
        (folder / CARD).write_text(json.dumps({"target": name, "sha256": sha256, "shape": label}, indent=1))

    # The code is part of the key: after a change to it, no model made by the old code is taken for one of the new.
    code = sha256_of(Path(inflation.__file__))
    return made_once(f"inflated-{key_of(sha256, str(shape), code)}", make), label


def _check_room(folder: Path, num_parameters: int, label: str) -> None:
    for what, needed, free in (
        ("memory", 4 * num_parameters, available_memory_bytes()),  # float32 while it is made
        (f"disk for {cache_folder()}", 2 * num_parameters, shutil.disk_usage(folder).free),  # bfloat16
    ):
        if free < needed:
            found = f"found {free / 2**30:.1f}; take a smaller --inflate"
            raise ValueError(f"expected {needed / 2**30:.1f} GiB of {what} to inflate to {label}, {found}")


def _write_inflated(target: Path, folder: Path, shape: Shape) -> None:
    """Save the inflated target: in bfloat16 what that holds exactly, such as all random weights; the rest in float32."""
    import torch
    import transformers

    from backends.models import inflation

    small = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, local_files_only=True)
    large = inflation.inflate(small, shape)
    weights = large.state_dict()
    for name, weight in weights.items():
        narrow = weight.to(torch.bfloat16)
        if torch.equal(narrow.to(weight.dtype), weight):
            weights[name] = narrow
    large.config.dtype = torch.bfloat16
    large.save_pretrained(folder, state_dict=weights)
    copy_companions(target, folder)
