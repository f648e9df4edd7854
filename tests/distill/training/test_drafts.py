"""Drafts: built from layers, loaded, trained in part, and saved as checkpoints that a backend decodes with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from backends.engines import reference
from backends.models import embedded
from bench.records.decoding import DecodeRequest, ModelPair
from distill.training import drafts
from tests.support.tiny_distillation import END, in_training, tiny_draft, tiny_target
from tests.support.tiny_models import save_checkpoint, tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = torch.tensor([[3, 4, 12, 20, 7, 9]])


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.inference_mode():
        return model(TEXT).logits


def disturb(draft: drafts.Draft) -> None:
    """As training would."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for _, weight in draft.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


def test_all_layers_in_order_are_the_target_itself() -> None:
    target = tiny_target()
    assert torch.equal(logits(drafts.from_layers(target, (0, 1))), logits(target))


def test_a_draft_of_some_layers_runs_these_and_no_others() -> None:
    target = tiny_llama(seed=1, num_layers=4)
    draft = drafts.from_layers(target, (3, 1))
    expected = tiny_llama(seed=5, num_layers=4)
    expected.load_state_dict(target.state_dict())
    expected.model.layers = torch.nn.ModuleList([expected.model.layers[3], expected.model.layers[1]])
    for place, layer in enumerate(expected.model.layers):
        layer.self_attn.layer_idx = place
    expected.config.num_hidden_layers = 2
    assert draft.config.num_hidden_layers == 2
    assert torch.equal(logits(draft), logits(expected))
    assert target.config.num_hidden_layers == 4


def test_a_cast_rounds_the_weights_and_not_the_positions() -> None:
    draft = drafts.from_layers(tiny_target().bfloat16(), (0, 1))
    frequencies = tiny_target().model.rotary_emb.inv_freq
    assert draft.dtype == torch.bfloat16
    assert torch.equal(draft.model.rotary_emb.inv_freq, frequencies)
    assert torch.equal(drafts.snapshot(in_training()).model.rotary_emb.inv_freq, frequencies)


def test_building_a_draft_leaves_the_global_random_state_alone() -> None:
    target, start = tiny_target(), tiny_draft()
    state = torch.get_rng_state()
    drafts.from_layers(target, (0,))
    drafts.trainable(start, "adapters")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layers", [(), (2,), (-1, 0)])
def test_layers_that_the_target_has_not_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected layers of 0\.\.1"):
        drafts.from_layers(tiny_target(), layers)


def test_what_is_trained_is_what_was_asked_for() -> None:
    layers, everything, adapters = (
        {name for name, _ in in_training(trained=trained).parameters()} for trained in drafts.TRAINED
    )
    assert everything - layers == {"model.embed_tokens.weight", "lm_head.weight"}
    assert {"model.norm.weight", "model.layers.0.mlp.up_proj.weight"} <= layers
    assert adapters
    assert all(".lora_" in name for name in adapters)


@pytest.mark.parametrize("trained", drafts.TRAINED)
def test_a_saved_draft_is_a_plain_checkpoint_that_decodes(tmp_path: Path, trained: drafts.Trained) -> None:
    target = save_checkpoint(tiny_target(), tmp_path / "target")
    draft = in_training(trained=trained)
    disturb(draft)
    before = logits(draft.model)
    for name in ("card.json", "inflated.json", "frequent_tokens.json"):  # of the target, not of its tokenizer
        (Path(target) / name).write_text("{}")
    drafts.save(draft, tmp_path / "draft", tokenizer_from=Path(target))
    assert not [path for path in (tmp_path / "draft").iterdir() if path.name in drafts.NOT_TOKENIZER[3:]]

    assert torch.equal(logits(draft.model), before), "saving changed the draft in training"
    state = load_file(tmp_path / "draft" / "model.safetensors")
    assert state.keys() == tiny_draft().state_dict().keys()
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "draft")
    assert torch.equal(logits(loaded), logits(drafts.snapshot(draft)))
    if trained != "adapters":
        assert all(torch.equal(state[name], weight.bfloat16()) for name, weight in draft.model.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "draft")("w5 w7")["input_ids"] == [5, 7]

    pair = ModelPair("tiny", target, str(tmp_path / "draft"), "causal", "bfloat16")
    backend = reference.load(pair, device="cpu", options={})
    made = backend.generate(DecodeRequest((3, 4), 12, num_draft_tokens=3, eos_token_ids=(END,)))
    assert made.rounds
    backend.close()


def test_merged_adapters_give_the_forward_of_the_adapters(tmp_path: Path) -> None:
    import peft

    start = save_checkpoint(tiny_draft(), tmp_path / "start")
    target = save_checkpoint(tiny_target(), tmp_path / "target")
    draft = in_training(drafts.load(Path(start), dtype=torch.float32), trained="adapters")
    assert torch.allclose(logits(draft.model), logits(tiny_draft()), atol=1e-5)  # new adapters change nothing
    disturb(draft)
    drafts.save(draft, tmp_path / "out" / "draft", tokenizer_from=Path(target))
    adapters = tmp_path / "out" / "adapters"
    around = peft.PeftModel.from_pretrained(drafts.load(Path(start), dtype=torch.float32), adapters)
    merged = around.merge_and_unload()
    assert not torch.allclose(logits(merged), logits(tiny_draft()), atol=1e-2)
    rounding = (logits(merged) - logits(draft.model)).norm() / (logits(merged) - logits(tiny_draft())).norm()
    assert rounding < 0.02  # adapters are stored in bf16
    saved = drafts.load(tmp_path / "out" / "draft", dtype=torch.bfloat16)
    for name, weight in drafts.cast(merged, torch.bfloat16).named_parameters():
        assert torch.equal(weight, saved.get_parameter(name))
    assert {value.dtype for value in load_file(adapters / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert {path.name for path in adapters.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = (adapters / "adapter_config.json").read_text()
    assert str(tmp_path) not in config
    assert json.loads(config)["r"] == 8


def test_shipped_adapters_are_merged_into_the_embedded_draft_as_they_were_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, target = (
        Path(save_checkpoint(model, tmp_path / name)) for model, name in ((tiny_draft(), "start"), (tiny_target(), "target"))
    )
    draft = in_training(drafts.load(start, dtype=torch.float32), trained="adapters")
    disturb(draft)
    drafts.save(draft, tmp_path / "offline-t0.2" / "draft", tokenizer_from=target)
    shutil.move(tmp_path / "offline-t0.2" / "adapters", tmp_path / "shipped" / "offline-t0.2")
    monkeypatch.setenv("SPECHEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "draft_folder", lambda: start)
    monkeypatch.setattr(embedded, "ADAPTERS_SOURCE", tmp_path / "shipped")
    assert embedded.adapted_drafts() == ("offline-t0.2",)
    made = embedded.adapted_draft_folder("offline-t0.2")
    assert AutoTokenizer.from_pretrained(made)("w5 w7")["input_ids"] == [5, 7]
    as_trained, shipped = (drafts.load(folder, dtype=torch.bfloat16) for folder in (tmp_path / "offline-t0.2" / "draft", made))
    assert all(torch.equal(weight, shipped.get_parameter(name)) for name, weight in as_trained.named_parameters())


def test_a_folder_without_a_draft_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected config.json in .*, found none"):
        drafts.load(tmp_path, dtype=torch.float32)


def test_training_does_not_write_into_the_file_it_started_from(tmp_path: Path) -> None:
    start = Path(save_checkpoint(tiny_draft(), tmp_path / "start"))
    before = (start / "model.safetensors").read_bytes()
    disturb(in_training(drafts.load(start, dtype=torch.float32)))
    assert (start / "model.safetensors").read_bytes() == before
