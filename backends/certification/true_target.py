"""The target that judges an engine: the one that the engine lends if its weights are the pair's, else one loaded for it.

An engine may have quantised its target, or changed it otherwise. Judged by that target it would seem lossless.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from backends.certification.scoring import load_target
from backends.models.checkpoints import weight_files
from bench.protocols import Backend
from bench.records.decoding import ModelPair

_DIFFERENCES: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()  # compared once, because it reads all weights


def true_target(backend: Backend | None, pair: ModelPair, device: str) -> tuple[PreTrainedModel, str]:
    """Return the target that judges an engine's tokens, and where it came from, as evidence stores it."""
    lent = _lent_target(backend)
    if lent is None:
        return _loaded_target(pair, device), "loaded from the pair"
    if lent not in _DIFFERENCES:
        _DIFFERENCES[lent] = difference(lent, pair)
    if reason := _DIFFERENCES[lent]:
        return _loaded_target(pair, device), f"loaded from the pair: {reason}"
    return lent, "lent by the engine, equal to the checkpoint"


def difference(model: PreTrainedModel, pair: ModelPair) -> str:
    """Return why a model may be another than the pair's target: the first tensor that differs; an empty string if none does.

    Stored tensors are read one at a time and cast to the pair's dtype. A name that the file lacks is another name of a tensor
    that was compared (tied weights), or the difference.
    """
    files, dtype = weight_files(Path(pair.target)), getattr(torch, pair.dtype)
    if not files or files[0].suffix != ".safetensors":
        return "the checkpoint has no safetensors to compare the engine's target with"
    weights = model.state_dict()
    compared = set()
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in stored.offset_keys():  # in the order of the file
                # Checkpoints of a bare model lack the prefix that a head's model gives its names.
                full = name if name in weights else f"{model.base_model_prefix}.{name}"
                if full not in weights:
                    continue  # not used by this model
                own, expected = weights[full], stored.get_tensor(name)
                expected = expected.to(dtype) if expected.is_floating_point() else expected
                if own.dtype != expected.dtype or not torch.equal(own, expected.to(own.device)):
                    return f"{full} of the engine's target differs from the checkpoint"
                compared.add((own.device, own.data_ptr()))
    missing = [name for name, own in weights.items() if (own.device, own.data_ptr()) not in compared]
    return f"{missing[0]} of the engine's target is not in the checkpoint" if missing else ""


def _lent_target(backend: Backend | None) -> PreTrainedModel | None:
    """Return the target that an engine of this process has loaded; None if none has."""
    target = getattr(backend, "target", None)
    if not isinstance(target, PreTrainedModel):
        target = getattr(target, "model", None)
    return target if isinstance(target, PreTrainedModel) else None


@lru_cache(maxsize=1)
def _loaded_target(pair: ModelPair, device: str) -> PreTrainedModel:
    return load_target(pair, device)
