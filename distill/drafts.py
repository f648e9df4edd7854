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
from transformers import AutoModelForCausalLM, PreTrainedModel

Trained = Literal["layers", "all", "adapters"]
TRAINED: tuple[Trained, ...] = ("layers", "all", "adapters")
ADAPTERS = "adapter_config.json"
LAYERS = "layers.safetensors"
NOT_TOKENIZER = ("config.json", "model.safetensors.index.json", "prepared.json")


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
        draft = type(target)(config).to(target.dtype)
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


def load(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """The draft of a checkpoint folder; adapters are merged into the draft that they were trained on.

    Raises:  ValueError: the folder holds neither
    """
    if (folder / ADAPTERS).is_file():
        from peft import PeftConfig, PeftModel

        base = Path(str(PeftConfig.from_pretrained(folder).base_model_name_or_path))
        return PeftModel.from_pretrained(load(base, dtype=dtype), folder).merge_and_unload().eval()
    if not (folder / "config.json").is_file():
        raise ValueError(f"expected a draft's checkpoint folder, got {folder}")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def trainable(model: PreTrainedModel, trained: Trained, *, adapter_rank: int = 8) -> Draft:
    """A model of which the layers (all but embedding and head), everything, or new adapters are trained, in float32."""
    model = model.float()
    if trained == "adapters":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=adapter_rank, lora_alpha=2 * adapter_rank, target_modules="all-linear", lora_dropout=0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            adapters = get_peft_model(model, config)
        return Draft(adapters.get_base_model(), adapters)
    model.requires_grad_(True)
    if trained == "layers":
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
    return Draft(model, None)


def save(draft: Draft, folder: Path, *, tokenizer_from: Path) -> None:
    """Write a plain bf16 checkpoint with the tokenizer of `tokenizer_from`; adapters are merged into it."""
    adapters = copy.deepcopy(draft.adapters)
    model = copy.deepcopy(draft.model) if adapters is None else adapters.merge_and_unload()
    model.to(torch.bfloat16).save_pretrained(folder)
    for path in tokenizer_from.iterdir():
        if path.is_file() and path.name not in NOT_TOKENIZER and path.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copy(path, folder)


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
