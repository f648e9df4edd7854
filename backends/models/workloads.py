"""Workloads: a resolved model pair and prompts as token ids, checked before any model is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from backends.models import checkpoints, inflated, pairs
from bench.errors import BackendUnavailable
from bench.measurement.recording import Workload
from bench.measurement.session import Variant
from bench.options.settings import PRESETS, Settings
from bench.prompts import formatting, sets
from bench.prompts.sets import PromptSet
from bench.records.decoding import ModelPair


def prepare(
    pair: ModelPair, prompts: PromptSet, settings: Settings, *, model_hashes: Mapping[str, str] | None = None
) -> Workload:
    """Turn prompts into ids for a resolved pair, in the format of the settings.

    Raises: ValueError: a prompt that is empty or too long, or an unreadable tokenizer or template
    """
    tokenizer = checkpoints.tokenizer(pair.target)
    prompt_format = formatting.prompt_format(
        tokenizer,
        chat_template=settings.chat_template,
        system_prompt=settings.system_prompt,
        max_prompt_tokens=settings.max_prompt_tokens,
    )
    prompt_ids = formatting.encode(prompts, tokenizer, prompt_format)
    formatting.check_room(
        prompts,
        prompt_ids,
        context_length=checkpoints.context_length(pair),
        max_new_tokens=settings.max_new_tokens,
        num_draft_tokens=max(settings.num_draft_tokens),
    )
    return Workload(
        model_pair=pair,
        recorded_pair=pairs.recorded(pair),
        model_hashes=model_hashes or {},
        prompt_set=prompts.name,
        prompts_hash=prompts.sha256,
        prompt_format=prompt_format.as_record(),
        prompt_ids=prompt_ids,
        end_token_ids=formatting.end_token_ids(pair),
        draft_card=pairs.draft_card(pair),
    )


def of_settings(settings: Settings) -> dict[Variant, Workload] | str:
    """Return one workload for each target, draft and prompt set; or why models that only the suite chose are missing.

    Raises: ValueError: as `prepare`; or two workloads have the same name
            BackendUnavailable: a model that the user chose is missing
    """
    if reason := _missing(settings):
        return reason
    variants = itertools.starmap(Variant, itertools.product(settings.inflations, settings.drafts, settings.prompts))
    found = {variant: _workload(settings, variant) for variant in variants}
    names = {(each.model_pair.name, each.recorded_pair.draft, each.prompt_set, each.prompts_hash) for each in found.values()}
    if len(names) < len(found):
        known = ", ".join(sorted({f"{draft} on {prompt_set}" for _, draft, prompt_set, _ in names}))
        raise ValueError(f"expected drafts and prompt sets of different names, got only {known}; rename a folder")
    return found


def _missing(settings: Settings) -> str | None:
    """Return why drafts or inflations of the suite's defaults cannot be used; raise where the user chose them."""
    checked = "drafts"  # the setting that is to blame if the next check fails
    try:
        for draft in settings.drafts:
            pair = pairs.resolve(settings.pair, target=settings.target, draft=draft, pairs_file=settings.pairs_file)
        checked = "inflations"
        for inflation in filter(None, settings.inflations):
            inflated.check_inflatable(checkpoints.model_config(pair.target), inflation)
    except (BackendUnavailable, ValueError) as reason:
        if checked in settings.given or getattr(settings, checked) == (None,):
            raise
        return str(reason)
    return None


def _workload(settings: Settings, variant: Variant) -> Workload:
    pair, hashes = _checked_pair(
        settings.pair, settings.target, variant.draft, settings.dtype, settings.pairs_file, variant.inflation
    )
    prompts = sets.load(variant.prompts, limit=settings.num_prompts if "num_prompts" in settings.given else None)
    # A number that the user did not choose may exceed that of the prompt set.
    wanted = settings.num_prompts or PRESETS[settings.preset].num_prompts
    prompts = replace(prompts, prompts=prompts.prompts[:wanted])
    return prepare(pair, prompts, settings, model_hashes=hashes)


@cache
def _checked_pair(
    name: str | None, target: str | None, draft: str | None, dtype: str | None, pairs_file: Path | None, inflation: str | None
) -> tuple[ModelPair, dict[str, str]]:
    """Return the resolved pair and the hashes of its models, computed once for all suites."""
    pair = pairs.resolve(name, target=target, draft=draft, dtype=dtype, pairs_file=pairs_file)
    if inflation is not None:
        pair = pairs.inflated(pair, inflation)
    checkpoints.check_compatible(pair)
    return pair, checkpoints.model_hashes(pair)
