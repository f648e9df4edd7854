"""Drafts in training: built from layers of the target or loaded from a folder, trained whole or through adapters, and saved.

A saved draft is a plain transformers checkpoint with the target's tokenizer, so every backend loads it. A draft that was
trained through adapters is saved with them merged, and the adapters are stored beside it.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from backends.models.loading import load_model
from bench.errors import BackendUnavailable
from distill.text.generation import product_dtype

Trained = Literal["layers", "all", "adapters"]
TRAINED: tuple[Trained, ...] = get_args(Trained)

# JSON files of a checkpoint that describe its model, not its tokenizer
NOT_TOKENIZER = (
    *("config.json", "model.safetensors.index.json", "prepared.json"),
    *("card.json", "inflated.json", "frequent_tokens.json"),
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A model in training."""

    model: PreTrainedModel
    adapters: Any | None  # the peft model around it, if only adapters are trained

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the trained parameters with their names."""
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]


def from_layers(target: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Return a draft of some of the target's layers, in the given order, between the target's embedding and head.

    Raises:  ValueError: the target does not have such a layer, or has no list of decoder layers
    """
    found = getattr(target.base_model, "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise ValueError(f"expected a target with a list of decoder layers, got {type(target).__name__}")
    if not layers or not all(0 <= layer < len(found) for layer in layers):
        raise ValueError(f"expected layers of 0..{len(found) - 1}, got {', '.join(map(str, layers)) or 'none'}")
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]
    with torch.random.fork_rng(devices=[]):  # its random first weights are overwritten
        draft = cast(type(target)(config), target.dtype)
    shared = {name: value for name, value in target.state_dict().items() if ".layers." not in name}
    draft.load_state_dict(shared, strict=False)  # the layers are missing, and follow
    for own, layer in zip(draft.base_model.layers, layers, strict=True):
        own.load_state_dict(found[layer].state_dict())
    draft.generation_config = copy.deepcopy(target.generation_config)
    return draft.eval()


def load(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load the draft of a checkpoint folder on the CPU. Raise ValueError if the folder holds no checkpoint."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"expected config.json in {folder}, found none")
    return cast(load_model(str(folder), dtype="float32", device="cpu"), dtype)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert the weights of the model. Its buffers stay: rotary frequencies in bfloat16 would be other frequencies."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.data = weight.data.to(dtype)
    return model


def trainable(model: PreTrainedModel, trained: Trained, *, adapter_rank: int = 8, seed: int = 0) -> Draft:
    """Return a draft of which the layers (all but embedding and head), everything, or new adapters are trained, in float32.

    Args:    seed: of the first weights of adapters
    Raises:  BackendUnavailable: peft is not installed, which adapters need
    """
    model = cast(model, torch.float32)
    if trained == "adapters":
        try:
            import peft
        except ImportError as error:
            raise BackendUnavailable("adapters need peft; pip install -e '.[distill]'") from error
        config = peft.LoraConfig(r=adapter_rank, lora_alpha=2 * adapter_rank, target_modules="all-linear", lora_dropout=0.0)
        with torch.random.fork_rng(devices=[]):  # peft draws the first weights from the global random state
            torch.manual_seed(seed)
            adapters = peft.get_peft_model(model, config)
        return Draft(adapters.get_base_model(), adapters)
    model.requires_grad_(True)
    if trained == "layers":
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
    return Draft(model, None)


def snapshot(draft: Draft) -> PreTrainedModel:
    """Return a bfloat16 copy of the draft as it is now, adapters merged. This is what `save` writes."""
    model = copy.deepcopy(draft.model) if draft.adapters is None else _rounded(draft.adapters).float().merge_and_unload()
    return cast(model, torch.bfloat16).eval()


def measurable(draft: Draft) -> PreTrainedModel:
    """Return the snapshot, with the same values, in the type in which it runs fastest."""
    return cast(snapshot(draft), product_dtype(draft.model.device.type))


def _rounded(adapters: Any) -> Any:
    """Return a copy with adapters in bfloat16, as they are stored. Merging the stored ones then gives the same draft."""
    copied = copy.deepcopy(adapters)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.bfloat16()
    return copied


def save(draft: Draft, folder: Path, *, tokenizer_from: Path) -> None:
    """Write a plain checkpoint with the tokenizer of `tokenizer_from`, and the adapters, if there are any, beside it."""
    snapshot(draft).save_pretrained(folder)
    for path in tokenizer_from.iterdir():
        if path.is_file() and path.name not in NOT_TOKENIZER and path.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copy(path, folder)
    if draft.adapters is not None:
        adapters, beside = _rounded(draft.adapters), folder.with_name("adapters")
        for config in adapters.peft_config.values():
            config.base_model_name_or_path = ""  # otherwise a path of this machine
        adapters.save_pretrained(beside)
        (beside / "README.md").unlink(missing_ok=True)  # an empty form, with a path of this machine
