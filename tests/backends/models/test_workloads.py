"""A pair and prompts become one workload, whoever decodes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backends.models import checkpoints, pairs, workloads
from bench.measurement.session import Variant
from bench.options.settings import PRESETS, Settings
from bench.prompts import sets
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    target = tiny_llama(seed=1)
    for name, model in {"target": target, "draft": nearby(target, seed=2), "other": nearby(target, seed=3)}.items():
        save_checkpoint(model, folder / name)
    for name in ("first", "second"):
        (folder / f"{name}.txt").write_text(f"w3 w4\nw5 w6 w7\n{'w8 ' * len(name)}w9\n")
    return folder


def chosen(folder: Path, **changes: object) -> Settings:
    settings = Settings(
        preset="smoke",
        temperatures=PRESETS["smoke"].temperatures,
        repeats=1,
        max_new_tokens=16,
        target=str(folder / "target"),
        drafts=(str(folder / "draft"),),
        prompts=(str(folder / "first.txt"),),
        chat_template="none",
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def test_prompts_become_ids_with_the_end_tokens_and_the_format_of_the_record(folder: Path) -> None:
    settings = chosen(folder)
    pair = pairs.resolve(target=settings.target, draft=settings.drafts[0])
    found = workloads.prepare(pair, sets.load(settings.prompts[0]), settings)
    assert found.prompt_ids[:2] == ((3, 4), (5, 6, 7))
    assert found.end_token_ids == (2,)
    assert (found.prompt_set, found.prompt_format["chat_template"]) == ("first.txt", "none")
    assert (found.recorded_pair.target, found.recorded_pair.draft) == ("target", "draft")


def test_there_is_one_workload_for_each_draft_and_prompt_set_with_the_hashes_of_its_models(folder: Path) -> None:
    drafts = tuple(str(folder / name) for name in ("draft", "other"))
    prompts = tuple(str(folder / f"{name}.txt") for name in ("first", "second"))
    found = workloads.of_settings(chosen(folder, drafts=drafts, prompts=prompts))
    assert isinstance(found, dict)
    assert set(found) == {Variant(None, draft, source) for draft in drafts for source in prompts}
    for variant, workload in found.items():
        assert workload.model_hashes == checkpoints.model_hashes(workload.model_pair)
        assert workload.model_pair.draft == variant.draft


def test_the_number_of_prompts_is_the_presets_unless_it_was_given(folder: Path) -> None:
    def num_prompts(settings: Settings) -> int:
        found = workloads.of_settings(settings)
        assert isinstance(found, dict)
        (workload,) = found.values()
        return len(workload.prompt_ids)

    assert num_prompts(chosen(folder)) == PRESETS["smoke"].num_prompts == 3
    assert num_prompts(chosen(folder, num_prompts=2)) == 2
    assert num_prompts(chosen(folder, num_prompts=9)) == 3  # a suite's default may exceed the prompt set
    with pytest.raises(ValueError, match="between 1 and 3 prompts, got 9"):
        num_prompts(chosen(folder, num_prompts=9, given=frozenset({"num_prompts"})))


def test_drafts_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    twin = save_checkpoint(nearby(tiny_llama(seed=1), seed=4), tmp_path / "draft")
    with pytest.raises(ValueError, match=r"different names, got only draft on first\.txt; rename a folder"):
        workloads.of_settings(chosen(folder, drafts=(str(folder / "draft"), twin)))


def test_a_shape_that_only_the_suite_chose_is_a_reason_to_skip_and_no_error(folder: Path) -> None:
    unknown = chosen(folder, inflations=("9z",))
    assert str(workloads.of_settings(unknown)).endswith("got '9z'")
    with pytest.raises(ValueError, match="got '9z'"):
        workloads.of_settings(replace(unknown, given=frozenset({"inflations"})))
