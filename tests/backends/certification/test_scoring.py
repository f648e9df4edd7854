"""The scorer against a naive twin written from the definition, and the evidence of a healthy and a broken decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from backends.acceptance.warping import warp
from backends.certification import scoring
from backends.certification.scoring import TargetScorer, Text, evidence_for_cell, near_tie_tolerance, slots_of
from backends.engines.reference import ReferenceBackend
from bench.analysis.certificate import Sample, certify
from bench.records.decoding import DecodeRequest, Round
from bench.records.runs import Evidence, TextEvidence, TimedArm, TimedPair
from tests.support.record_builder import make_cell
from tests.support.tiny_models import VOCAB_SIZE, nearby, tiny_llama

TARGET = tiny_llama(seed=3)
WARPINGS = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 0.8, "top_p": 0.7},
    {"temperature": 1.0, "top_k": 8, "top_p": 0.6},
]


def random_texts(lengths: Sequence[tuple[int, int]]) -> list[Text]:
    """Return outputs of random tokens, with these numbers of prompt and new tokens."""
    rng = np.random.default_rng(4)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(VOCAB_SIZE, size=count).tolist())

    return [Text(ids(p), ids(n), (0,) * n, prompt_index=i) for i, (p, n) in enumerate(lengths)]


def decode(backend: ReferenceBackend, num_texts: int, **request: object) -> list[Text]:
    texts = []
    for index in range(num_texts):
        asked = DecodeRequest(prompt_ids=(1, 5 + index % 3), max_new_tokens=64, seed=index, **request)  # type: ignore[arg-type]
        made = backend.generate(asked)
        texts.append(Text(asked.prompt_ids, made.token_ids, slots_of(made.rounds, len(made.token_ids)), index))
    return texts


def probabilities(text: Text, **warping: float) -> torch.Tensor:
    """Return (N, V) probabilities from one forward of the output alone."""
    with torch.inference_mode():
        logits = TARGET(torch.tensor([text.prompt_ids + text.token_ids])).logits[0]
    start = len(text.prompt_ids) - 1
    return warp(logits[start : start + len(text.token_ids)], **warping).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("warping", WARPINGS, ids=str)
def test_evidence_is_what_its_definition_says(warping: dict[str, float]) -> None:
    texts = random_texts([(3, 20), (9, 12), (1, 30)])
    for text, evidence in zip(texts, TargetScorer(TARGET).score_texts(texts, **warping), strict=True):  # type: ignore[arg-type]
        for place, (token, probs) in enumerate(zip(text.token_ids, probabilities(text, **warping), strict=True)):
            if probs[token] == 0:
                assert evidence.pit[place] == 1
                assert place in evidence.off_support
                assert evidence.excess_surprisal[place] == evidence.surprisal_variance[place] == 0
                continue
            likelier = [v for v in range(VOCAB_SIZE) if (-probs[v], v) < (-probs[token], token)]
            above = float(probs[likelier].sum())
            kept = probs[probs > 0]
            entropy = float(-(kept * kept.log()).sum())
            # float32 probabilities of another batch shape
            assert above - 1e-5 <= evidence.pit[place] <= above + float(probs[token]) + 1e-5
            assert evidence.excess_surprisal[place] == pytest.approx(-math.log(probs[token]) - entropy, abs=1e-4)
            variance = float((kept * (kept.log() + entropy) ** 2).sum())
            assert evidence.surprisal_variance[place] == pytest.approx(variance, abs=1e-4)


def test_batches_say_the_same_as_single_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts([(3, 20), (12, 2), (1, 1), (5, 40), (4, 17)])
    scorer = TargetScorer(TARGET)
    together = scorer.score_texts(texts, temperature=0.7, seed=9)
    monkeypatch.setattr(scoring, "BATCH_BYTES", 40 * VOCAB_SIZE * 4)
    monkeypatch.setattr(scoring, "ROWS_AT_A_TIME", 7)
    in_parts = scorer.score_texts(texts, temperature=0.7, seed=9)
    for text, evidence, part in zip(texts, together, in_parts, strict=True):
        (alone,) = scorer.score_texts([text], temperature=0.7, seed=9)
        for other in (alone, part):
            assert evidence.prompt_index == other.prompt_index == text.prompt_index
            np.testing.assert_allclose(evidence.pit, other.pit, atol=1e-5)  # float32 of other batch shapes
            np.testing.assert_allclose(evidence.excess_surprisal, other.excess_surprisal, atol=1e-4)


def test_the_same_seed_gives_the_same_evidence_and_the_global_state_is_untouched() -> None:
    texts = random_texts([(3, 20), (3, 20)])
    before = torch.get_rng_state()
    first, again, other = (TargetScorer(TARGET).score_texts(texts, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first[0].pit != other[0].pit
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_evidence_is_the_gap_to_the_best_logit() -> None:
    text = random_texts([(4, 15)])[0]
    evidence = TargetScorer(TARGET).score_texts([text], temperature=0)[0]
    with torch.inference_mode():
        logits = TARGET(torch.tensor([text.prompt_ids + text.token_ids])).logits[0, 3:-1]
    gaps = logits.amax(-1) - logits[torch.arange(15), torch.tensor(text.token_ids)]
    assert evidence.pit == evidence.excess_surprisal == ()
    np.testing.assert_allclose(evidence.logit_gap, gaps, atol=1e-5)  # float32


class Fixed:
    """A target whose logits are the same after every token."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, logits: Sequence[float]) -> None:
        self.logits = torch.tensor(logits)
        self.config = tiny_llama(seed=0, vocab_size=len(logits)).config

    def __call__(self, tokens_BT: torch.Tensor, *, use_cache: bool, logits_to_keep: int) -> object:
        shape = (len(tokens_BT), logits_to_keep, len(self.logits))
        return type("Output", (), {"logits": self.logits.expand(shape)})


def one_of_each_token() -> Text:
    return Text((0,), (0, 1, 2, 3), (0,) * 4, 0, 0)


@pytest.mark.parametrize(
    ("warping", "at_boundary", "forbidden"),
    [
        # Logits 3.0, 2.0, 1.96, 0.0 are 0.57, 0.21, 0.20, 0.03 at T = 1.
        ({"top_k": 2}, {2}, {3}),  # the third is 0.04 below the second
        ({"top_p": 0.56}, {1}, {2, 3}),  # 0.566 lies before the second; with noise the boundary may lie after it
        ({"top_p": 0.5}, set(), {1, 2, 3}),
    ],
)
def test_a_token_at_the_boundary_of_the_support_is_not_marked_but_keeps_pit_1(
    warping: dict[str, float], at_boundary: set[int], forbidden: set[int]
) -> None:
    scorer = TargetScorer(Fixed([3.0, 2.0, 1.96, 0.0]))  # type: ignore[arg-type]
    (evidence,) = scorer.score_texts([one_of_each_token()], temperature=1.0, near_tie=0.1, **warping)  # type: ignore[arg-type]
    assert set(evidence.off_support) == forbidden
    assert {place for place in range(4) if evidence.pit[place] == 1} == forbidden | at_boundary


def test_equal_logits_are_ordered_by_id() -> None:
    scorer = TargetScorer(Fixed([1.0, 1.0, 1.0, 1.0]))  # type: ignore[arg-type]
    (evidence,) = scorer.score_texts([Text((0,), (2,) * 200, (0,) * 200, 0, 0)], temperature=1.0)
    assert 0.5 <= min(evidence.pit) < 0.52
    assert 0.73 < max(evidence.pit) <= 0.75


def test_impossible_tokens_and_a_tiny_temperature_leave_finite_evidence() -> None:
    scorer = TargetScorer(Fixed([0.0, -math.inf, 5.0, -3.0]))  # type: ignore[arg-type]
    for temperature in (1.0, 1e-30):
        (evidence,) = scorer.score_texts([one_of_each_token()], temperature=temperature)
        assert np.isfinite(evidence.pit + evidence.excess_surprisal + evidence.surprisal_variance).all()
        assert evidence.pit[1] < 1


def test_slots_follow_the_rounds() -> None:
    rounds = (
        Round(drafted=2, accepted=2, emitted=3),  # bonus
        Round(drafted=2, accepted=0, emitted=1),  # recovered in slot 1
        Round(drafted=2, accepted=1, emitted=2),  # recovered in slot 2
        Round(drafted=2, accepted=1, emitted=1),  # closed by an end token
        Round(drafted=0, accepted=0, emitted=1),  # no room for a draft
    )
    assert slots_of(rounds, 9) == (0, 1, 2, -1, 1, 1, 2, 1, -1)
    assert slots_of(None, 3) == slots_of((), 3) == (0, 0, 0)
    with pytest.raises(ValueError, match="emit 9 or 10 tokens, got 8"):
        slots_of(rounds, 10)
    assert slots_of(rounds, 8) == (1, 2, -1, 1, 1, 2, 1, -1)  # the first round carried the prefill


def test_the_near_tie_tolerance_is_numerical_noise() -> None:
    prompts = [(1, 5, 7), (1, 9)]
    fine = near_tie_tolerance(TARGET, prompts, 2)
    coarse = near_tie_tolerance(tiny_llama(seed=3).to(torch.bfloat16), prompts, 2)
    assert fine < 1e-4  # logits are of order 1 and float32 has 7 digits
    assert 1e-3 < coarse < 0.5  # 3 digits


def test_the_evidence_of_a_cell_is_that_of_its_speculative_texts() -> None:
    prompt_ids = [(1, 5, 7), (1, 9)]
    backend = ReferenceBackend(TARGET, nearby(TARGET, seed=5))
    cell = make_cell(temperature=0.9, num_draft_tokens=3, dtype="float32")
    pairs = []
    for index, prompt in enumerate(prompt_ids):
        made = backend.generate(DecodeRequest(prompt, 20, num_draft_tokens=3, temperature=0.9, seed=index))
        sd = TimedArm(index, 1.0, 0.1, made.token_ids, made.finish_reason, made.rounds)
        pairs.append(TimedPair(index, 0, "ar_first", ar=replace(sd, token_ids=(1,)), sd=sd))
    evidence = evidence_for_cell(pairs, prompt_ids, cell, TargetScorer(TARGET), 1e-5)
    assert (evidence.dtype, evidence.near_tie) == ("float32", 1e-5)
    for pair, text in zip(pairs, evidence.texts, strict=True):
        assert (text.prompt_index, text.repeat) == (pair.prompt_index, pair.repeat)
        assert text.slots == slots_of(pair.sd.rounds, 20)
        assert len(text.pit) == 20


def evidence_of(texts: list[Text], **warping: float) -> Evidence:
    near_tie = near_tie_tolerance(TARGET, [text.prompt_ids for text in texts], 3)
    scored: tuple[TextEvidence, ...] = TargetScorer(TARGET).score_texts(texts, near_tie=near_tie, **warping)  # type: ignore[arg-type]
    return Evidence("float32", near_tie, scored)


@pytest.mark.parametrize("warping", [*WARPINGS, {"temperature": 0.0}], ids=str)
def test_a_healthy_decoder_is_not_lossy(warping: dict[str, float]) -> None:
    """False-alarm rate 1 % per case; the seeds are fixed."""
    texts = decode(ReferenceBackend(TARGET, nearby(TARGET, seed=5)), 8, num_draft_tokens=3, **warping)
    judged = certify([Sample(evidence_of(texts, **warping), warping["temperature"])])
    assert judged.verdict != "LOSSY", judged.words


def test_a_decoder_at_another_temperature_or_truncation_is_lossy() -> None:
    backend = ReferenceBackend(TARGET, nearby(TARGET, seed=5))
    cold = decode(backend, 12, num_draft_tokens=3, temperature=0.7)
    judged = certify([Sample(evidence_of(cold, temperature=1.0), 1.0)])
    assert (judged.verdict, judged.words[0][:23]) == ("LOSSY", "tokens are too likely: ")
    whole = decode(backend, 12, num_draft_tokens=3, temperature=1.0)
    judged = certify([Sample(evidence_of(whole, temperature=1.0, top_p=0.9), 1.0)])
    assert judged.verdict == "LOSSY"
    assert judged.off_support > 30
