"""What can be read from a checkpoint folder without loading its weights, and whether two of them make a pair."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from backends.models import inflated
from backends.models.cache import sha256_of
from bench.errors import first_line
from bench.records.decoding import ModelPair

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, safetensors before pickles; none unless all shards are there."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {name}
        files = tuple(folder / shard for shard in sorted(names))
        if all(file.is_file() for file in files):
            return files
    return ()


def missing_parts(folder: Path) -> list[str]:
    """Return which parts of a transformers checkpoint a folder lacks."""
    parts = {
        "config.json": (folder / "config.json").is_file(),
        "weights": bool(weight_files(folder)),
        "tokenizer": any((folder / name).is_file() for name in TOKENIZER_FILES),
    }
    return [part for part, there in parts.items() if not there]


def model_config(model: str) -> Any:
    """Return the configuration of a model. Raises: ValueError: it cannot be read."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ValueError(f"expected a readable model in {model}: {first_line(error)}") from error


def model_family(config: Any) -> str:
    """Return the family as the pair table writes it."""
    return "encoder-decoder" if config.is_encoder_decoder else "causal"


def model_hash(folder: Path) -> str:
    """Return the commit of a hub's snapshot, or else the sha256 of configuration and weights."""
    if folder.parent.name == "snapshots":  # in the hub's cache, whose folders are named by the commit
        return folder.name
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)  # who wrote the file is no property of the model
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in weight_files(folder):
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def model_hashes(pair: ModelPair) -> dict[str, str]:
    """Return the hashes of a resolved pair; for an inflated target also that of the target it was made from."""
    hashes = {"target": model_hash(Path(pair.target)), "draft": model_hash(Path(pair.draft))}
    made_from = inflated.card(Path(pair.target))
    return hashes | ({"uninflated target": made_from["sha256"]} if made_from else {})


def context_length(pair: ModelPair) -> int:
    """Return the number of tokens that both models have positions for."""
    lengths = []
    for model in (pair.target, pair.draft):
        config = model_config(model).get_text_config()
        length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        if not length:
            raise ValueError(f"expected max_position_embeddings or n_positions in the config of {model}, got neither")
        lengths.append(int(length))
    return min(lengths)


def tokenizer(model: str) -> Any:
    """Return the tokenizer in a folder. A pair uses the target's. Raises: ValueError: it cannot be read."""
    from transformers import AutoTokenizer

    file = Path(model) / "tokenizer.json"
    try:
        if file.is_file():
            json.loads(file.read_text(encoding="utf-8"))  # transformers would raise a bare Exception for broken JSON
        return AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"expected a readable tokenizer in {model}: {first_line(error)}") from error


def check_compatible(pair: ModelPair) -> None:
    """Raises: ValueError: family, vocabulary size or token ids of the two models differ, or a file cannot be read."""
    from safetensors import SafetensorError, safe_open

    configs = {model: model_config(model) for model in (pair.target, pair.draft)}
    for model, config in configs.items():
        if model_family(config) != pair.family:
            raise ValueError(f"expected a model of the family {pair.family}, got {model}, which is {model_family(config)}")
        for path in weight_files(Path(model)):
            try:
                if path.suffix == ".safetensors":
                    safe_open(path, framework="numpy")  # reads the header, and raises if the file is shorter than it states
            except SafetensorError as error:
                raise ValueError(f"expected readable weights in {path}: {first_line(error)}") from error
    sizes = [config.get_text_config().vocab_size for config in configs.values()]
    if len(set(sizes)) > 1:
        got = f"{sizes[0]} tokens in the target {pair.target} and {sizes[1]} in the draft {pair.draft}"
        raise ValueError(f"expected one vocabulary, got {got}")
    _check_tokenizers(pair, sizes[0])


def _check_tokenizers(pair: ModelPair, vocab_size: int) -> None:
    """Check that an id is the same token in both. Special roles may differ: only the target's are used."""
    files = [Path(model) / "tokenizer.json" for model in (pair.target, pair.draft)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return  # equal files: loading two tokenizers would take seconds
    target_tokens, draft_tokens = (
        # Some tokenizers have ids beyond the model's vocabulary, which no model emits.
        {i: token for token, i in tokenizer(model).get_vocab().items() if i < vocab_size}
        for model in (pair.target, pair.draft)
    )
    differing = [i for i in range(vocab_size) if target_tokens.get(i) != draft_tokens.get(i)]
    if differing:
        i = differing[0]
        first = f"id {i} is {target_tokens.get(i)!r} in {pair.target} and {draft_tokens.get(i)!r} in {pair.draft}"
        raise ValueError(f"expected one tokenizer, got {len(differing)} ids with different tokens: {first}")
