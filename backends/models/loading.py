"""Loads a model for measuring: on a device that is present, with weights in memory instead of a mapped file."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from bench.errors import BackendUnavailable
from bench.records.environment import installed_version


def load_model(folder: str, *, dtype: str, device: str, device_map: str = "") -> PreTrainedModel:
    """Return a language model from a checkpoint folder, causal or encoder-decoder as its configuration requires.

    Args:    dtype: "bfloat16" or "float32"; device: in torch's notation
             device_map: how transformers spreads it over all devices of that kind; empty, or on a CPU: not at all
    Raises:  ValueError: the device is absent
             BackendUnavailable: the model does not fit there, or a device map needs accelerate
    """
    if device_map and installed_version("accelerate") is None:
        raise BackendUnavailable("a device_map needs accelerate; pip install -e '.[distill]'")
    place = checked_device(device)
    is_encoder_decoder = AutoConfig.from_pretrained(folder, local_files_only=True).is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    spread = {"device_map": device_map} if device_map and place.type != "cpu" else {}
    model = auto.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True, **spread).eval()
    if spread:
        if {"cpu", "disk"} & {str(part) for part in model.hf_device_map.values()}:
            raise BackendUnavailable(f"{folder} does not fit the devices: device_map={device_map} left a part outside them")
        return model
    if place.type != "cpu":
        try:
            return model.to(place)
        except torch.OutOfMemoryError as error:
            raise BackendUnavailable(f"{folder} does not fit on {device} in {dtype}") from error
    # On a CPU the weights are still the mapped file. The kernel may drop its pages, and a timed call would read the disk.
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


def checked_device(device: str) -> torch.device:
    """Return the device. Raises: ValueError: torch finds no such device on this machine."""
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"expected a device such as cpu, cuda or cuda:1, got {device!r}") from None
    if place.type == "cpu":
        return place
    present = torch.accelerator.current_accelerator(check_available=True)
    if present is None or present.type != place.type:
        found = "only a CPU" if present is None else f"a {present.type} device"
        raise ValueError(f"device {device} was requested, torch finds {found}; try --device cpu")
    if (place.index or 0) >= (count := torch.accelerator.device_count()):
        raise ValueError(f"device {device} was requested, torch finds {count} of {place.type}, counted from 0")
    return place
