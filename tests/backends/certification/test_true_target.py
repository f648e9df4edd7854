"""An engine is judged by the pair's target, whatever it has done to the target that it holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from backends.certification.cell_scorer import cell_scorer
from backends.certification.true_target import difference, true_target
from backends.engines import reference
from backends.engines.reference import ReferenceBackend
from backends.models.loading import load_model
from bench.analysis.certificate import Certificate, Sample, certify
from bench.measurement.recording import Workload
from bench.options.settings import Settings
from bench.records.decoding import DecodeRequest, ModelPair
from bench.records.runs import TimedArm, TimedPair
from tests.support.record_builder import make_cell
from tests.support.tiny_models import VOCAB_SIZE, nearby, save_checkpoint, tiny_llama, tiny_t5


def rounded_to_int8(model: PreTrainedModel) -> PreTrainedModel:
    """Round each matrix to 255 values and back, as an engine does that stores weights in int8."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                step = weight.abs().max() / 127
                weight.copy_((weight / step).round() * step)
    return model


def quantised(pair: ModelPair, *, device: str, options: Mapping[str, str]) -> ReferenceBackend:
    backend = reference.load(pair, device=device, options=options)
    return ReferenceBackend(rounded_to_int8(copy.deepcopy(backend.target.model)), backend.draft.model)


def with_outliers(model: PreTrainedModel) -> PreTrainedModel:
    """Make one weight of each matrix large, as real models have them, so that int8 leaves few values for the others."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight[0, 0] = 12 * weight.abs().max()
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    folder = tmp_path_factory.mktemp("pair")
    target = with_outliers(tiny_llama(seed=1))
    draft = nearby(target, seed=2)
    folders = (save_checkpoint(target, folder / "target"), save_checkpoint(draft, folder / "draft"))
    return ModelPair("tiny", *folders, "causal", "float32")


def certificate(backend: ReferenceBackend, pair: ModelPair, temperature: float) -> tuple[Certificate, str]:
    """Decode 4,000 tokens and judge them as a suite does."""
    prompt_ids = tuple((1, 5 + index % 8) for index in range(50))
    cell = make_cell(temperature=temperature, dtype="float32", num_draft_tokens=2)
    pairs = []
    for index, prompt in enumerate(prompt_ids):
        made = backend.generate(DecodeRequest(prompt, 80, 2, temperature, seed=index))
        arm = TimedArm(index, 1.0, 0.1, made.token_ids, made.finish_reason, made.rounds)
        pairs.append(TimedPair(index, 0, "ar_first", arm, arm))
    workload = Workload(pair, pair, {}, "prompts", "", {}, prompt_ids, ())
    evidence = cell_scorer(backend, workload, SETTINGS)(cell, pairs)
    return certify([Sample(evidence, temperature)]), evidence.target


SETTINGS = Settings(preset="quick", temperatures=(1.0,), repeats=1, max_new_tokens=80)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_an_engine_that_rounds_its_target_to_int8_is_lossy(
    pair: ModelPair, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = quantised(pair, device="cpu", options={})
    with monkeypatch.context() as unchecked:
        unchecked.setattr("backends.certification.true_target.difference", lambda model, pair: "")
        assert certificate(backend, pair, temperature)[0].verdict == "LOSSLESS"  # by the target that it lends
    backend = quantised(pair, device="cpu", options={})
    judged, target = certificate(backend, pair, temperature)
    assert judged.verdict == "LOSSY", judged.words
    assert target.startswith("loaded from the pair: ")
    assert target.endswith("of the engine's target differs from the checkpoint")


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_an_engine_that_holds_the_pairs_target_lends_it(pair: ModelPair, temperature: float) -> None:
    backend = reference.load(pair, device="cpu", options={})
    assert true_target(backend, pair, "cpu")[0] is backend.target.model
    judged, target = certificate(backend, pair, temperature)
    assert (judged.verdict, target) == ("LOSSLESS", "lent by the engine, equal to the checkpoint")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tied_and_encoder_decoder_and_bare_checkpoints_equal_what_is_loaded_from_them(dtype: str, tmp_path: Path) -> None:
    tied = tiny_llama(seed=1)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB_SIZE, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    for name, model in (("tied", tied), ("t5", tiny_t5(seed=1)), ("head", gpt2), ("bare", gpt2.transformer)):
        folder = save_checkpoint(model, tmp_path / name)
        pair = ModelPair(name, folder, folder, "causal", dtype)
        loaded = load_model(folder, dtype=dtype, device="cpu")
        assert difference(loaded, pair) == "", name
        weight = next(weight for weight in loaded.parameters() if weight.ndim == 2)
        weight.data[0, 0] += 1
        assert difference(loaded, pair).endswith("differs from the checkpoint"), name


def test_another_dtype_and_weights_that_the_checkpoint_lacks_are_differences(pair: ModelPair, tmp_path: Path) -> None:
    model = load_model(pair.target, dtype="float32", device="cpu")
    assert "differs from the checkpoint" in difference(model, replace(pair, dtype="bfloat16"))
    deeper = replace(pair, target=save_checkpoint(tiny_llama(seed=1, num_layers=1), tmp_path / "shallow"))
    assert difference(tiny_llama(seed=1), deeper) != ""
    model.add_module("extra", torch.nn.Linear(2, 2))
    assert difference(model, pair) == "extra.weight of the engine's target is not in the checkpoint"
    assert "no safetensors" in difference(model, replace(pair, target=str(tmp_path)))
