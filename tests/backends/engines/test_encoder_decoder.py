"""Encoder-decoder pairs: the cache, both arms of the reference, transformers' own, the scorer, and a suite as users run it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from backends.certification.scoring import TargetScorer, Text, near_tie_tolerance
from backends.engines import assisted, vllm_engine
from backends.engines.reference import ReferenceBackend
from backends.forwards.cached_model import CachedEncoderDecoder
from backends.models import pairs
from bench.analysis import metrics
from bench.analysis.certificate import Sample, certify
from bench.analysis.verdict import verdict_of
from bench.errors import BackendUnavailable
from bench.records import files
from bench.records.decoding import DecodeRequest
from bench.records.runs import Evidence
from tests.support.children import run_suites
from tests.support.tiny_models import VOCAB_SIZE, nearby, save_checkpoint, tiny_t5

REQUEST = DecodeRequest(prompt_ids=(5, 9, 3, 7, 4), max_new_tokens=24, num_draft_tokens=3, seed=4)


@pytest.fixture(scope="module")
def target() -> T5ForConditionalGeneration:
    return tiny_t5(seed=1)


@pytest.fixture(scope="module")
def backend(target: T5ForConditionalGeneration) -> ReferenceBackend:
    return ReferenceBackend(target, nearby(target, seed=2, noise=0.1))


def uncached(model: T5ForConditionalGeneration, prompt: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    start = torch.zeros(1, 1, dtype=torch.long)
    return model(prompt, decoder_input_ids=torch.cat((start, generated), 1), use_cache=False).logits[0]


@torch.inference_mode()
def test_the_cache_gives_what_a_fresh_forward_gives_also_after_a_rewind(target: T5ForConditionalGeneration) -> None:
    tokens = torch.randint(3, VOCAB_SIZE, (1, 20), generator=torch.Generator().manual_seed(0))
    prompt, generated, other = tokens[:, :7], tokens[:, 7:15], tokens[:, 15:]
    remembering = CachedEncoderDecoder(target)
    rows = [remembering.feed(prompt, num_logits=1), remembering.feed(generated, num_logits=8)]
    torch.testing.assert_close(torch.cat(rows), uncached(target, prompt, generated), atol=1e-3, rtol=1e-3)
    remembering.rewind(7 + 3)
    assert remembering.length == 10
    following = remembering.feed(other, num_logits=5)
    whole = uncached(target, prompt, torch.cat((generated[:, :3], other), 1))
    torch.testing.assert_close(following, whole[-5:], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="num_logits = 1 for the prompt of an encoder"):
        CachedEncoderDecoder(target).feed(prompt, num_logits=2)


@pytest.mark.parametrize("num_draft_tokens", [0, 1, 3])
def test_greedy_texts_are_those_of_generate(backend: ReferenceBackend, num_draft_tokens: int) -> None:
    request = replace(REQUEST, temperature=0.0, num_draft_tokens=num_draft_tokens)
    found = backend.generate(request)
    assert found.token_ids == backend.generate_natively(replace(request, num_draft_tokens=0)).token_ids
    if num_draft_tokens:
        assert sum(round_.emitted for round_ in found.rounds or ()) == len(found.token_ids) - 1


def test_transformers_own_speculation_decodes_the_same_greedy_text(
    target: T5ForConditionalGeneration, backend: ReferenceBackend
) -> None:
    request = replace(REQUEST, temperature=0.0)
    theirs = assisted.Assisted(nearby(target, seed=2, noise=0.0), nearby(target, seed=2, noise=0.1))
    expected = backend.generate(request).token_ids
    found = theirs.generate(request)
    assert found.token_ids == expected == theirs.generate(replace(request, num_draft_tokens=0)).token_ids
    assert sum(round_.emitted for round_ in found.rounds or ()) == len(expected)
    sampled = replace(REQUEST, temperature=1.0)
    assert theirs.replay(sampled).token_ids == theirs.generate(sampled).token_ids


def test_a_decoder_may_be_deeper_than_its_encoder() -> None:
    target, draft = tiny_t5(seed=1, decoder_layers=3), tiny_t5(seed=2)
    request = replace(REQUEST, temperature=0.0)
    ours = ReferenceBackend(target, nearby(target, seed=2))
    expected = ours.generate(request).token_ids
    assert ours.generate_natively(replace(request, num_draft_tokens=0)).token_ids == expected
    assert assisted.Assisted(nearby(target, seed=3, noise=0.0), draft).generate(request).token_ids == expected
    with pytest.raises(BackendUnavailable, match="deeper than its encoder"):
        assisted.Assisted(draft, target)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_sampled_texts_follow_the_target(backend: ReferenceBackend, temperature: float) -> None:
    """3,840 tokens. A sound decoder fails at most 1 time in 50: 1 in 100 is LOSSY, and as many are INCONCLUSIVE."""
    model = backend.target.model
    texts, prompts = [], [(3 + seed % 20, 9, 3 + seed % 7, 4)[: 2 + seed % 3] for seed in range(160)]
    for seed, prompt in enumerate(prompts):
        found = backend.generate(replace(REQUEST, prompt_ids=prompt, temperature=temperature, seed=seed))
        texts.append(Text(prompt, found.token_ids, (0,) * len(found.token_ids), seed))
    near_tie = near_tie_tolerance(model, prompts, 3)
    assert 0 <= near_tie < 1e-3
    scored = TargetScorer(model).score_texts(texts, temperature=temperature, near_tie=near_tie)
    certificate = certify([Sample(Evidence("float32", near_tie, scored), temperature)])
    assert certificate.verdict == "LOSSLESS", certificate.words
    wrong = TargetScorer(model).score_texts(texts, temperature=2 * temperature, near_tie=near_tie)
    assert certify([Sample(Evidence("float32", near_tie, wrong), temperature)]).verdict == "LOSSY"


def test_texts_are_scored_in_a_batch_as_they_are_alone(target: T5ForConditionalGeneration) -> None:
    texts = [Text((5, 6, 7), (8, 9), (0, 0)), Text((5,), (8, 9, 10, 11), (0,) * 4)]
    scorer = TargetScorer(target)
    for together, text in zip(scorer.logits(texts), texts, strict=True):
        (alone,) = scorer.logits([text])
        assert together.shape == (len(text.token_ids), VOCAB_SIZE)
        torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, target: T5ForConditionalGeneration) -> tuple[str, ...]:
    folder, draft = tmp_path_factory.mktemp("pair"), nearby(target, seed=2, noise=0.1)
    return ("--target", save_checkpoint(target, folder / "target"), "--draft", save_checkpoint(draft, folder / "draft"))


def test_the_temperature_grid_runs_on_both_backends(pair: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ["suites/test_temperature_grid.py", *pair, "--preset", "smoke", "--dtype", "float32"]
    arguments += ["--backend", "reference", "--backend", "assisted", "--num-prompts", "6", "--chat-template", "none"]
    done = run_suites(*arguments, "--max-new-tokens", "16", "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    runs = files.load_runs(tmp_path)
    assert {run.model_pair.family for run in runs} == {"encoder-decoder"}
    verdicts = [verdict_of(record, run) for run in runs for record in run.cells]
    assert len(verdicts) == 4
    assert all(verdict.valid and verdict.certificate != "LOSSY" for verdict in verdicts)
    for run in runs:
        for record in run.cells:
            assert metrics.counted_alpha(record) is not None
            assert metrics.aa_floor(run) is not None


def test_vllm_and_prompt_lookup_say_in_one_line_that_they_decode_no_such_pair(pair: tuple[str, ...]) -> None:
    resolved = pairs.resolve(target=pair[1], draft=pair[3])
    for load in (vllm_engine.load, assisted.load_prompt_lookup):
        with pytest.raises(BackendUnavailable, match="is encoder-decoder") as caught:
            load(resolved, device="cpu", options={})
        assert "\n" not in str(caught.value)
