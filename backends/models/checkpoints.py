"""TODO: purpose."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from backends.models import inflated as inflated_models
from bench.records.decoding import ModelPair

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def check_compatible(pair: ModelPair) -> None:
    """Raise ValueError unless the draft can draft for the target: same family, vocabulary and token ids."""
    configs = {model: model_config(model) for model in (pair.target, pair.draft)}
    for model, config in configs.items():
        if model_family(config) != pair.family:
            raise ValueError(
                f"expected a model of the family {pair.family}, got {model}, which is {model_family(config)}"
            )
        _check_weights(model)
    sizes = [config.get_text_config().vocab_size for config in configs.values()]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"expected one vocabulary, got {sizes[0]} tokens in the target {pair.target} and {sizes[1]} "
            f"in the draft {pair.draft}"
        )
    _check_tokenizers(pair, sizes[0])


def model_hashes(pair: ModelPair) -> dict[str, str]:
    """sha256 of configuration and weights, or the commit of a hub's snapshot, of a resolved target and draft.

    Of an inflated target also that of the one it was made from.
    """
    hashes = {"target": model_hash(Path(pair.target)), "draft": model_hash(Path(pair.draft))}
    made_from = inflated_models.card(Path(pair.target))
    return hashes | ({"uninflated target": made_from["sha256"]} if made_from else {})


def context_length(pair: ModelPair) -> int:
    """Tokens that both models have positions for."""
    return min(_num_positions(model) for model in (pair.target, pair.draft))


def tokenizer(pair: ModelPair) -> Any:
    """The target's tokenizer, of a resolved pair."""
    return _tokenizer(pair.target)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files the weights lie in, safetensors before pickles; none unless all shards are there."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {name}
        files = tuple(folder / shard for shard in sorted(names))
        if all(file.is_file() for file in files):
            return files
    return ()


def missing_parts(folder: Path) -> list[str]:
    parts = {
        "config.json": (folder / "config.json").is_file(),
        "weights": bool(weight_files(folder)),
        "tokenizer": any((folder / name).is_file() for name in TOKENIZER_FILES),
    }
    return [part for part, there in parts.items() if not there]


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def model_config(model: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ValueError(f"expected a readable model in {model}: {first_line(error)}") from error


def model_family(config: Any) -> str:
    return "encoder-decoder" if config.is_encoder_decoder else "causal"


def _num_positions(model: str) -> int:
    config = model_config(model).get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    raise ValueError(f"expected max_position_embeddings or n_positions in the config of {model}, got neither")


def _check_weights(model: str) -> None:
    """Headers only: a truncated file is found without reading it."""
    from safetensors import SafetensorError, safe_open

    for path in weight_files(Path(model)):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="numpy"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"expected readable weights in {path}: {first_line(error)}") from error


def _check_tokenizers(pair: ModelPair, vocab_size: int) -> None:
    """Same id, same token. Which of them begin or end a text is asked of the target alone, so it need not agree."""
    files = [Path(model) / "tokenizer.json" for model in (pair.target, pair.draft)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return
    target_tokens, draft_tokens = (_tokens_by_id(model, vocab_size) for model in (pair.target, pair.draft))
    differing = [i for i in range(vocab_size) if target_tokens.get(i) != draft_tokens.get(i)]
    if differing:
        i = differing[0]
        raise ValueError(
            f"expected one tokenizer, got {len(differing)} ids with different tokens: id {i} is "
            f"{target_tokens.get(i)!r} in {pair.target} and {draft_tokens.get(i)!r} in {pair.draft}"
        )


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    file = Path(model) / "tokenizer.json"
    try:
        if file.is_file():
            json.loads(file.read_text(encoding="utf-8"))  # the loader's own complaint is a bare Exception
        return AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"expected a readable tokenizer in {model}: {first_line(error)}") from error


def _tokens_by_id(model: str, vocab_size: int) -> dict[int, str]:
    """Ids beyond the model's vocabulary are left out: no model emits them."""
    return {i: token for token, i in _tokenizer(model).get_vocab().items() if i < vocab_size}


def model_hash(folder: Path) -> str:
    if folder.parent.name == "snapshots":
        return folder.name  # the commit
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)  # says who wrote the file, not what the model is
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in weight_files(folder):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
