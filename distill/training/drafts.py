"""Drafts to train: built from layers of the target or loaded from a folder, trained whole or through adapters, and saved.

What is saved is a plain transformers checkpoint with the target's tokenizer beside it, so every backend loads it. A draft over
the target's own embedding can also be stored as its layers alone, and one trained through adapters as these.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from backends.models.loading import load_model
from bench.errors import BackendUnavailable
from distill.text.generation import product_dtype

Trained = Literal["layers", "all", "adapters"]
TRAINED: tuple[Trained, ...] = ("layers", "all", "adapters")
ADAPTERS = "adapter_config.json"
LAYERS = "layers.safetensors"

# JSON files of a checkpoint that say something of its model, not of its tokenizer
NOT_TOKENIZER = (
    *("config.json", "model.safetensors.index.json", "prepared.json"),
    *("card.json", "inflated.json", "frequent_tokens.json"),
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A model in training."""

    model: PreTrainedModel
    adapters: Any | None  # the peft model around it, where only adapters are trained

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Those that are trained, by name."""
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]


def from_layers(target: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A draft made of some of the target's layers, in the order given, between the target's embedding and head.

    Raises:  ValueError: a layer that the target does not have, or an architecture whose layers cannot be picked
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
    with torch.random.fork_rng(devices=[]):  # its random first weights are written over
        draft = cast(type(target)(config), target.dtype)
    draft.load_state_dict(_picked(target.state_dict(), layers))
    draft.generation_config = copy.deepcopy(target.generation_config)
    return draft.eval()


def _picked(state: dict[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The weights of a model that has only these layers."""
    picked: dict[str, Any] = {}
    for name, value in state.items():
        before, found, rest = name.partition(".layers.")
        number, _, rest = rest.partition(".")
        places = [place for place, layer in enumerate(layers) if found and int(number) == layer]
        picked |= {f"{before}.layers.{place}.{rest}": value for place in places} if found else {name: value}
    return picked


def load(folder: Path, *, dtype: torch.dtype, adapters: Path | None = None) -> PreTrainedModel:
    """The draft of a checkpoint folder on CPU, with adapters that were trained on it merged into it.

    Raises:  ValueError: a folder that does not hold what it should
             BackendUnavailable: adapters, and peft is not installed
    """
    for place, name in ((folder, "config.json"), (adapters, ADAPTERS)):
        if place is not None and not (place / name).is_file():
            raise ValueError(f"expected {name} in {place}, found none")
    model: PreTrainedModel = load_model(str(folder), dtype="float32", device="cpu")
    if adapters is not None:
        model = _peft().PeftModel.from_pretrained(model, adapters).merge_and_unload()
    return cast(model, dtype).eval()


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise BackendUnavailable("adapters need peft; pip install -e '.[distill]'") from error
    return peft


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights in this type. Buffers stay: rotary frequencies rounded to bf16 are other frequencies."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.data = weight.data.to(dtype)
    return model


def trainable(model: PreTrainedModel, trained: Trained, *, adapter_rank: int = 8) -> Draft:
    """A model on CPU, of which the layers (all but embedding and head), everything, or new adapters are trained, in float32.

    Raises:  BackendUnavailable: adapters, and peft is not installed
    """
    model = cast(model, torch.float32)
    if trained == "adapters":
        peft = _peft()
        config = peft.LoraConfig(
            r=adapter_rank, lora_alpha=2 * adapter_rank, target_modules="all-linear", lora_dropout=0.0
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            adapters = peft.get_peft_model(model, config)
        return Draft(adapters.get_base_model(), adapters)
    model.requires_grad_(True)
    if trained == "layers":
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
    return Draft(model, None)


def snapshot(draft: Draft) -> PreTrainedModel:
    """A bf16 copy of the draft as it is now, adapters merged: what `save` writes."""
    model = (
        copy.deepcopy(draft.model) if draft.adapters is None else _rounded(draft.adapters).float().merge_and_unload()
    )
    return cast(model, torch.bfloat16).eval()


def measurable(draft: Draft) -> PreTrainedModel:
    """The snapshot in the type in which it is measured fastest: the same weights."""
    return cast(snapshot(draft), product_dtype(draft.model.device.type))


def _rounded(adapters: Any) -> Any:
    """A copy with adapters in bf16, as they are stored, so that whoever merges the stored ones gets the same draft."""
    copied = copy.deepcopy(adapters)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.bfloat16()
    return copied


def save(draft: Draft, folder: Path, *, tokenizer_from: Path) -> None:
    """Write a plain checkpoint with the tokenizer of `tokenizer_from`, and adapters beside it, if there are any."""
    snapshot(draft).save_pretrained(folder)
    for path in tokenizer_from.iterdir():
        if path.is_file() and path.name not in NOT_TOKENIZER and path.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copy(path, folder)
    if draft.adapters is not None:
        adapters = _rounded(draft.adapters)
        for config in adapters.peft_config.values():
            config.base_model_name_or_path = ""  # a path of this machine
        adapters.save_pretrained(folder.with_name("adapters"))
        (folder.with_name("adapters") / "README.md").unlink(
            missing_ok=True
        )  # an empty form with a path of this machine


def save_layers(folder: Path, into: Path, *, target: PreTrainedModel) -> None:
    """Store a checkpoint whose embedding and head are the target's as its other weights and its config.

    Raises:  ValueError: embedding or head differ from the target's
    """
    draft = load(folder, dtype=torch.bfloat16)
    shared = {"get_input_embeddings", "get_output_embeddings"}
    for part in sorted(shared):
        if not torch.equal(getattr(draft, part)().weight, getattr(target, part)().weight.bfloat16()):
            raise ValueError(f"expected {folder} to share the target's embedding and head; its own differ")
    held = {id(getattr(draft, part)().weight) for part in shared}
    into.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in draft.named_parameters() if id(value) not in held}, into / LAYERS
    )
    shutil.copy(folder / "config.json", into)
