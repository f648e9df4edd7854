"""Model pairs: rows of a TOML table, made loadable and checked before anything is timed.

A model is named by a hub id, a folder, or `embedded:...`. Only `resolve` makes an embedded model or contacts a hub. It returns
a pair that names two folders, so nothing that works with a resolved pair needs a network.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from backends.models import checkpoints, embedded
from backends.models import inflated as inflated_models
from bench.errors import BackendUnavailable, first_line
from bench.options.pair_defaults import DEFAULTS, read_tables
from bench.options.settings import DEFAULT_PAIR, INFLATED
from bench.records.decoding import ModelPair, Scalar

DTYPES = ("bfloat16", "float32")
DEVICE_MAPS = ("", "auto", "balanced", "balanced_low_0", "sequential")
OPTIONAL = {"licence", "note", "device_map", "tensor_parallel_size"}  # of a row
EMBEDDED_PREFIX = "embedded:smollm2/"
CARD = "card.json"
MINI_T5 = Path(__file__).with_name("mini-t5")  # plain checkpoints, made by `python -m distill.commands.mini_t5`
EMBEDDED: dict[str, Callable[[], Path]] = {
    "embedded:smollm2/target": embedded.target_folder,
    "embedded:smollm2/draft": embedded.draft_folder,
    **{f"embedded:smollm2/{name}": partial(embedded.adapted_draft_folder, name) for name in embedded.adapted_drafts()},
    **{f"embedded:mini-t5/{role}": partial(Path, MINI_T5, role) for role in ("target", "draft")},
}


def load_table(extra: Path | None = None) -> dict[str, ModelPair]:
    """Return our pairs by name. Rows of `extra`, a file of the same form, are added or replace ours."""
    table = _read_rows(Path(__file__).with_name("pairs.toml"))
    return table if extra is None else table | _read_rows(extra)


def named(table: dict[str, ModelPair], name: str | None, *, target: str | None, draft: str | None) -> ModelPair:
    """Return the requested pair with its models as they are named: nothing is made or fetched.

    Raises:  ValueError: no row of the table has this name, or a target is named without a draft
    """
    if target is None:
        row = table.get(name or DEFAULT_PAIR)
        if row is None:
            raise ValueError(f"expected a pair of {', '.join(table)}; got {name}")
        return row if draft is None else replace(row, draft=draft)
    if name is not None or draft is None:
        raise ValueError("expected --pair, or --target together with --draft")
    # An empty family is read from the target's config, once that is on this machine.
    return ModelPair(f"{Path(target).name}+{Path(draft).name}", target, draft, family="", dtype="bfloat16")


def resolve(
    name: str | None = None,
    *,
    target: str | None = None,
    draft: str | None = None,
    dtype: str | None = None,
    pairs_file: Path | None = None,
) -> ModelPair:
    """Return a pair whose target and draft are folders on this machine: made, found in the hub's cache, or fetched.

    Args:    name: a row of the table (default: the embedded pair), whose draft `draft` replaces;
             or `target` and `draft` of a pair that is in no table
    Raises:  ValueError: unknown name, unreadable folder; BackendUnavailable: the hub did not give a model
    """
    row = named(load_table(pairs_file), name, target=target, draft=draft)
    if dtype is not None:
        row = replace(row, dtype=_one_of("dtype", dtype, DTYPES))
    pair = replace(row, target=str(_folder(row.name, row.target)), draft=str(_folder(row.name, row.draft)))
    return pair if pair.family else replace(pair, family=checkpoints.model_family(checkpoints.model_config(pair.target)))


def ready(
    name: str | None = None, *, target: str | None = None, draft: str | None = None, pairs_file: Path | None = None
) -> ModelPair:
    """Return a resolved pair whose models fit each other. Raises: as `resolve` and `check_compatible`."""
    pair = resolve(name, target=target, draft=draft, pairs_file=pairs_file)
    checkpoints.check_compatible(pair)
    return pair


def readiness(pair: ModelPair) -> tuple[bool, str]:
    """Return whether a row of the table can be used without a hub, and why not. Makes and fetches nothing."""
    models = {"target": pair.target, "draft": pair.draft}
    try:
        if any(model.startswith(EMBEDDED_PREFIX) for model in models.values()):
            embedded.gguf_file()  # raises if the package is missing
        absent = [role for role, model in models.items() if model not in EMBEDDED and _found(model) is None]
    except (ValueError, BackendUnavailable, ImportError) as error:  # ImportError: a package of the hub is missing
        return False, str(error)
    return (False, f"not downloaded: {', '.join(absent)}") if absent else (True, "ready")


def inflated(pair: ModelPair, shape: str) -> ModelPair:
    """Return a resolved pair whose target is inflated to a shape. Raises: as `backends.models.inflated.checkpoint`."""
    target = Path(pair.target)
    config, sha256 = checkpoints.model_config(pair.target), checkpoints.model_hash(target)
    folder, label = inflated_models.checkpoint(target, shape, config=config, name=_public_name(target), sha256=sha256)
    return replace(pair, name=f"{pair.name}{INFLATED}{label}", target=str(folder), inflation=label)


def recorded(pair: ModelPair) -> ModelPair:
    """Return a resolved pair under the names that a published record gives: without paths of this machine."""
    return replace(pair, target=_public_name(Path(pair.target)), draft=_public_name(Path(pair.draft)))


def _public_name(folder: Path) -> str:
    if made_from := inflated_models.card(folder):
        return f"{made_from['target']}{INFLATED}{made_from['shape']}"
    name = re.fullmatch(r"smollm2-(.+)-[0-9a-f]{16}", folder.name)
    if name and f"{EMBEDDED_PREFIX}{name[1]}" in EMBEDDED:
        return f"{EMBEDDED_PREFIX}{name[1]}"
    if folder.parent == MINI_T5:
        return f"embedded:mini-t5/{folder.name}"
    if folder.parent.name == "snapshots":  # models--<owner>--<name>/snapshots/<commit>
        return folder.parents[1].name.removeprefix("models--").replace("--", "/")
    if folder.name == "draft" and (folder.parent / CARD).is_file():
        return folder.parent.name  # `specheat distill` leaves every draft as <name>/draft beside its card
    return folder.name


def draft_card(pair: ModelPair) -> dict[str, Scalar]:
    """Return how the draft of a resolved pair was made, from the card that `specheat distill` wrote; empty without one."""
    name = recorded(pair).draft
    folders = [Path(pair.draft), Path(pair.draft).parent]
    if name.startswith(EMBEDDED_PREFIX):  # its card lies in this repository
        adapters = name.removeprefix(EMBEDDED_PREFIX)
        folders = [embedded.DRAFT_SOURCE if adapters == "draft" else embedded.ADAPTERS_SOURCE / adapters]
    path = next((folder / CARD for folder in folders if (folder / CARD).is_file()), None)
    if path is None:
        return {}
    try:
        card = json.loads(path.read_text())
        recipe = card["recipe"]
        return {
            "recipe": recipe["name"],
            "data_temperatures": ", ".join(f"{temperature:g}" for temperature, _ in recipe["temperatures"]),
            "labels": recipe["labels"],
            "on_policy": recipe["on_policy"],
            "seed": card["seed"],
            **{f"{name}_tokens": value for name, value in card["tokens"].items()},
            **{f"{name}_s": value for name, value in card["seconds"].items()},
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expected a card of `specheat distill` in {path}: {type(error).__name__} {error}") from error


def _read_rows(path: Path) -> dict[str, ModelPair]:
    return {name: _row(f"{path}, pair {name}", name, _models_of(table)) for name, table in read_tables(path).items()}


def _models_of(table: Any) -> Any:
    return {key: value for key, value in table.items() if key != DEFAULTS} if isinstance(table, Mapping) else table


def _row(where: str, name: str, table: Any) -> ModelPair:
    allowed = {field.name for field in fields(ModelPair)} - {"name", "inflation"}
    required = allowed - OPTIONAL
    if not isinstance(table, Mapping) or not required <= set(table) <= allowed:
        got = ", ".join(sorted(table)) if isinstance(table, Mapping) else repr(table)
        expected = f"{', '.join(sorted(required))} and maybe {', '.join(sorted(OPTIONAL))}"
        raise ValueError(f"{where}: expected {expected}; got {got}")
    if not all(isinstance(value, str) for key, value in table.items() if key != "tensor_parallel_size"):
        raise ValueError(f"{where}: expected strings, got {dict(table)}")
    size = table.get("tensor_parallel_size", 1)
    if type(size) is not int or size < 1:
        raise ValueError(f"{where}: expected a tensor_parallel_size of 1 or more, got {size!r}")
    for key, choices in (("device_map", DEVICE_MAPS), ("family", ("causal", "encoder-decoder")), ("dtype", DTYPES)):
        _one_of(f"{where}: {key}", table.get(key, ""), choices)
    return ModelPair(name=name, **table)


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{what}: expected {' or '.join(filter(None, allowed))}, got {value}")
    return value


def _folder(pair: str, model: str) -> Path:
    """Return the folder of a model, which is made or fetched if it is not there yet."""
    if model in EMBEDDED:
        return EMBEDDED[model]()
    return _found(model) or _download(pair, model)


def _found(model: str) -> Path | None:
    """Return the folder of a model that is on this machine; None for a hub id that has to be fetched first."""
    if model.startswith((".", "/", "~")) or Path(model).is_dir():  # a folder goes before a hub id of the same name
        folder = Path(model).expanduser().absolute()
        if missing := checkpoints.missing_parts(folder):
            raise ValueError(f"expected a transformers checkpoint in {model}, found no {', no '.join(missing)}")
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise ValueError(f"expected a folder, a hub id or one of {', '.join(EMBEDDED)}; got {model}")
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json")
    # Another value than a path: it is not cached, or it is known that the hub has no such file.
    found = Path(config).parent if isinstance(config, str) else None
    return None if found is None or checkpoints.missing_parts(found) else found


def _download(pair: str, model: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    print(f"pair {pair}: requesting {model} from the hub", file=sys.stderr, flush=True)
    small = ["*.json", "*.jinja", "*.model", "*.txt"]  # configuration, chat template and tokenizer
    try:
        folder = Path(snapshot_download(model, allow_patterns=[*small, "*.safetensors"]))
        if not checkpoints.weight_files(folder):  # an older model, stored as pickles only
            folder = Path(snapshot_download(model, allow_patterns=[*small, "*.bin"]))
        if missing := checkpoints.missing_parts(folder):
            raise BackendUnavailable(f"pair {pair}: {model} on the hub has no {', no '.join(missing)}")
        return folder
    except errors.GatedRepoError as error:
        raise BackendUnavailable(
            f"pair {pair}: {model} is gated; accept its licence at https://huggingface.co/{model} and run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BackendUnavailable(
            f"pair {pair}: {model} is no folder here, and the hub shows no such model to you; "
            "check the name, or run `hf auth login` if it is private"
        ) from error
    except (OSError, errors.HTTPError) as error:  # HTTPError: from the client library that this version of the hub uses
        raise BackendUnavailable(
            f"pair {pair}: the hub did not give {model} ({first_line(error)}); "
            "fetch it elsewhere and pass --target DIR --draft DIR"
        ) from error
