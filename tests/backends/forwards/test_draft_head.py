"""A restricted draft vocabulary: the head's rows are those kept, texts stay the target's, and bad input is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backends.certification.scoring import TargetScorer, Text, near_tie_tolerance
from backends.engines import reference
from backends.engines.reference import Options, ReferenceBackend
from backends.forwards.draft_head import FREQUENT, frequent_tokens, restrict, spread
from bench.analysis import certificate
from bench.protocols import Backend
from bench.records.decoding import DecodeRequest, ModelPair
from bench.records.runs import Evidence
from bench.statistics import intervals
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

KEPT = (2, 3, 5, 8, 13, 21)
REQUEST = DecodeRequest(prompt_ids=(5, 9, 3, 7, 4), max_new_tokens=40, num_draft_tokens=3, seed=4)


@pytest.fixture(params=["fused", "transformers"])
def backend(request: pytest.FixtureRequest) -> ReferenceBackend:
    target = tiny_llama(seed=1, num_layers=1)
    draft = nearby(target, seed=2)
    restrict(draft, KEPT)
    return ReferenceBackend(target, draft, Options(forward=request.param), draft_token_ids=KEPT)


def test_the_head_gives_the_logits_of_its_tokens_and_the_embedding_stays_whole() -> None:
    whole, part = tiny_llama(seed=1), tiny_llama(seed=1)
    restrict(part, KEPT)
    prompt = torch.tensor([[5, 9, 23]])
    with torch.inference_mode():
        torch.testing.assert_close(part(prompt).logits, whole(prompt).logits[..., list(KEPT)])


def test_a_tied_head_leaves_the_embedding_alone() -> None:
    model = tiny_llama(seed=1)
    model.lm_head.weight = model.model.embed_tokens.weight
    before = model.model.embed_tokens.weight.clone()
    restrict(model, KEPT)
    assert model.lm_head.weight.shape == (len(KEPT), before.shape[1])
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_distributions_are_spread_over_the_vocabulary() -> None:
    found = spread(torch.tensor([[0.25, 0.75]]), torch.tensor([1, 3]), 5)
    assert found.tolist() == [[0, 0.25, 0, 0.75, 0]]


def test_greedy_text_is_the_targets_own_and_only_kept_tokens_are_accepted(backend: ReferenceBackend) -> None:
    request = replace(REQUEST, temperature=0.0)
    found = backend.generate(request)
    assert found.token_ids == backend.generate(replace(request, num_draft_tokens=0)).token_ids
    place = 1
    for round_ in found.rounds or ():
        assert set(found.token_ids[place : place + round_.accepted]) <= set(KEPT)
        place += round_.emitted


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_sampled_text_follows_the_target_and_is_accepted_as_q_says(rule: str, backend: ReferenceBackend) -> None:
    """1,600 tokens; false alarms at most 1 in 100 for the certificate, and 1 in 1,000 for the acceptance."""
    texts, outcomes = [], []
    for seed in range(40):
        request = replace(REQUEST, prompt_ids=(3 + seed % 20, 9, 3 + seed % 7), seed=seed, rule=rule)
        replay = backend.replay(request)
        assert seed or replay.token_ids == backend.generate(request).token_ids
        texts.append(Text(request.prompt_ids, replay.token_ids, (0,) * len(replay.token_ids), seed))
        for round_, probs in zip(replay.rounds, replay.acceptance_probs, strict=True):
            outcomes += [(place < round_.accepted, prob) for place, prob in enumerate(probs)]
    near_tie = near_tie_tolerance(backend.target.model, [text.prompt_ids for text in texts], 3)
    scored = TargetScorer(backend.target.model).score_texts(texts, temperature=1.0, near_tie=near_tie)
    verdict = certificate.certify([certificate.Sample(Evidence("float32", near_tie, scored), 1.0)])
    assert verdict.verdict != "LOSSY", verdict.words
    if outcomes:  # none under the rule that judges a round as a whole
        assert intervals.two_sided_p(intervals.martingale_z(*zip(*outcomes, strict=True))) > 0.001


@pytest.fixture
def pair(tmp_path: Path) -> ModelPair:
    target = tiny_llama(seed=1)
    folders = [
        save_checkpoint(model, tmp_path / name) for name, model in (("target", target), ("draft", nearby(target, seed=2)))
    ]
    return ModelPair("tiny", *folders, family="causal", dtype="float32")


def test_the_option_takes_the_most_frequent_tokens_and_the_end_token(pair: ModelPair) -> None:
    ranked = [9, 4, 7, 3, 11, 2, 6]
    (Path(pair.draft) / FREQUENT).write_text(json.dumps(ranked))
    assert frequent_tokens(Path(pair.draft), 4, always=(2,)) == (2, 4, 7, 9)
    backend: Backend = reference.load(pair, device="cpu", options={"draft_vocabulary": "4"})
    assert backend.settings()["draft_vocabulary"] == 4
    assert backend.generate(REQUEST).rounds
    whole = reference.load(pair, device="cpu", options={})
    assert "draft_vocabulary" not in whole.settings()


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("many", "expected a number above 0 for draft_vocabulary, got 'many'"),
        ("0", "expected a number above 0 for draft_vocabulary, got '0'"),
        ("8", "expected a draft vocabulary of 1 to 7 tokens, got 8"),
    ],
)
def test_a_vocabulary_that_cannot_be_had_is_refused(pair: ModelPair, asked: str, complaint: str) -> None:
    (Path(pair.draft) / FREQUENT).write_text(json.dumps([9, 4, 7, 3, 11, 5, 6]))
    (Path(pair.target) / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((Path(pair.target) / "config.json").read_text())
    (Path(pair.target) / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(ValueError, match=complaint):
        reference.load(pair, device="cpu", options={"draft_vocabulary": asked})


def test_a_draft_that_names_no_frequent_tokens_is_refused(pair: ModelPair) -> None:
    with pytest.raises(ValueError, match=f"expected {FREQUENT} in .*, found none; `specheat distill` writes it"):
        reference.load(pair, device="cpu", options={"draft_vocabulary": "4"})
    (Path(pair.draft) / FREQUENT).write_text('{"a": 1}')
    with pytest.raises(ValueError, match="expected a list of token ids"):
        reference.load(pair, device="cpu", options={"draft_vocabulary": "4"})
