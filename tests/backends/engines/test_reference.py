"""The reference decoder on tiny random models, float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.conformance.tiny_pairs import tiny_models
from backends.engines.reference import Forward, Options, ReferenceBackend
from backends.forwards import floor
from backends.forwards.fused_llama import FusedLlama
from backends.models.loading import checked_device
from bench.records.decoding import DecodeRequest, Generation, Round
from tests.support.logits_by_context import LogitsByContext
from tests.support.tiny_models import VOCAB_SIZE, nearby, tiny_llama

PROMPT = (3, 1, 4, 1, 5)


@pytest.fixture(scope="module")
def backend() -> ReferenceBackend:
    target = tiny_llama(seed=1)
    return ReferenceBackend(target, nearby(target, seed=2))


def request(**changes: object) -> DecodeRequest:
    return DecodeRequest(**{"prompt_ids": PROMPT, "max_new_tokens": 40, "num_draft_tokens": 3, **changes})  # type: ignore[arg-type]


def rounds_of(generation: Generation) -> tuple[Round, ...]:
    assert generation.rounds is not None
    return generation.rounds


@pytest.mark.parametrize("num_draft_tokens", [1, 2, 3, 7])
def test_greedy_speculation_gives_the_ids_of_greedy_decoding(backend: ReferenceBackend, num_draft_tokens: int) -> None:
    plain = backend.generate(request(temperature=0.0, num_draft_tokens=0))
    speculative = backend.generate(request(temperature=0.0, num_draft_tokens=num_draft_tokens))
    assert speculative.token_ids == plain.token_ids
    assert plain.rounds == ()
    assert any(r.accepted for r in rounds_of(speculative))
    assert any(r.accepted < r.drafted for r in rounds_of(speculative))  # rewinding was exercised


def test_greedy_decoding_is_what_generate_does(backend: ReferenceBackend) -> None:
    asked = request(temperature=0.0, num_draft_tokens=0)
    assert backend.generate(asked).token_ids == backend.generate_natively(asked).token_ids


def test_the_engines_own_decode_takes_nothing_from_the_checkpoint_that_was_not_asked_for() -> None:
    target = tiny_llama(seed=1)
    backend = ReferenceBackend(target, target)
    asked = request(temperature=0.0, num_draft_tokens=0)
    text = backend.generate_natively(asked).token_ids
    target.generation_config.eos_token_id = text[3]
    target.generation_config.repetition_penalty = 3.0
    assert backend.generate_natively(asked).token_ids == text
    assert target.generation_config.eos_token_id == text[3]


@pytest.mark.parametrize("rule", ["rejection", "one_hot", "exact_match", "block", "typical"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_books_balance(backend: ReferenceBackend, rule: str, temperature: float) -> None:
    for seed in range(5):
        generation = backend.generate(request(rule=rule, temperature=temperature, seed=seed))
        rounds = rounds_of(generation)
        assert sum(r.emitted for r in rounds) == len(generation.token_ids) - 1  # prefill gave the first
        assert len(generation.token_ids) == 40
        assert generation.finish_reason == "length"
        assert all(0 <= r.accepted <= r.drafted <= 3 and r.emitted == r.accepted + 1 for r in rounds)


def test_a_draft_equal_to_the_target_is_always_accepted() -> None:
    target = tiny_llama(seed=1)
    backend = ReferenceBackend(target, target)
    for temperature in (0.0, 0.5, 1.0, 2.0):
        generation = backend.generate(request(temperature=temperature, max_new_tokens=41, num_draft_tokens=3))
        assert all(r == Round(3, 3, 4) for r in rounds_of(generation))


def test_the_token_limit_is_met_in_the_middle_of_a_round(backend: ReferenceBackend) -> None:
    for limit in range(1, 12):
        generation = backend.generate(request(max_new_tokens=limit, num_draft_tokens=4))
        assert len(generation.token_ids) == limit


def test_text_ends_with_the_end_token_wherever_in_a_round_it_falls(backend: ReferenceBackend) -> None:
    free = request(temperature=0.0, max_new_tokens=40, num_draft_tokens=4)
    text = backend.generate(free).token_ids
    seen = set()
    for end_token in set(text):
        generation = backend.generate(request(temperature=0.0, num_draft_tokens=4, eos_token_ids=(end_token,)))
        assert generation.token_ids == text[: text.index(end_token) + 1]
        assert generation.finish_reason == "stop"
        if rounds := rounds_of(generation):
            last = rounds[-1]
            assert last.emitted in (last.accepted, last.accepted + 1)
            seen.add("accepted" if last.emitted == last.accepted else "own token")
    assert seen == {"accepted", "own token"}


def test_same_seed_same_text_other_seed_other_text_and_the_global_random_state_is_untouched(
    backend: ReferenceBackend,
) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (backend.generate(request(seed=seed)) for seed in (5, 5, 6))
    backend.generate_natively(request(num_draft_tokens=0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (first.token_ids, first.rounds) == (again.token_ids, again.rounds)
    assert first.token_ids != other.token_ids


@pytest.mark.parametrize("rule", ["rejection", "one_hot", "exact_match", "typical"])
def test_a_replay_repeats_the_text_and_has_one_probability_per_tested_position(backend: ReferenceBackend, rule: str) -> None:
    asked = request(rule=rule, seed=3)
    generation, replay = backend.generate(asked), backend.replay(asked)
    assert (replay.token_ids, replay.rounds) == (generation.token_ids, generation.rounds)
    for round_, probs in zip(replay.rounds, replay.acceptance_probs, strict=True):
        assert len(probs) == round_.accepted + (round_.accepted < round_.drafted)
        assert all(0 <= prob <= 1 for prob in probs)
    assert replay.joint_length is None


def test_a_jointly_judged_replay_has_one_expected_length_per_round(backend: ReferenceBackend) -> None:
    replay = backend.replay(request(rule="block", seed=3))
    assert replay.joint_length is not None
    assert len(replay.joint_length) == len(replay.rounds)
    assert all(0 <= length <= r.drafted for length, r in zip(replay.joint_length, replay.rounds, strict=True))


def test_both_caches_hold_exactly_what_a_fresh_forward_would(backend: ReferenceBackend) -> None:
    generation = backend.generate(request(seed=9))
    ids = torch.tensor([[*PROMPT, *generation.token_ids]])
    with torch.inference_mode():
        for model in (backend.target, backend.draft):
            rest = ids[:, model.length :]
            cached = model.feed(rest, num_logits=1)
            fresh = model.model(ids, logits_to_keep=1).logits[0]
            # float32 sums in another order
            torch.testing.assert_close(cached, fresh, atol=1e-4, rtol=1e-4)


def test_the_second_token_follows_the_target_whatever_the_draft() -> None:
    """3,000 outputs with fixed seeds; chi-square at p > 0.001, so 1 false alarm in 1,000 if the seeds were free."""
    target = tiny_llama(seed=1, vocab_size=6, num_layers=1)
    backend = ReferenceBackend(target, tiny_llama(seed=7, vocab_size=6, num_layers=1))
    backend.target, backend.draft = LogitsByContext(backend.target.model), LogitsByContext(backend.draft.model)
    counts = np.zeros((6, 6))
    for seed in range(3000):
        first, second = backend.generate(request(max_new_tokens=2, num_draft_tokens=1, seed=seed)).token_ids
        counts[first, second] += 1
    with torch.inference_mode():
        first_probs = target(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)
        seconds = torch.stack([target(torch.tensor([[*PROMPT, t]])).logits[0, -1].softmax(-1) for t in range(6)])
    expected = (first_probs[:, None] * seconds).double().numpy() * counts.sum()
    usual = expected > 5
    chi_square = ((counts - expected)[usual] ** 2 / expected[usual]).sum()
    from scipy.stats import chi2

    assert chi2.sf(chi_square, usual.sum() - 1) > 0.001


def test_bare_forwards_are_timed_after_the_requested_context(backend: ReferenceBackend) -> None:
    samples = backend.time_forwards(request(), context_length=50, samples=2)
    assert len(samples) == 2
    assert all(s.context_length == 50 and min(s.ar_s, s.draft_s, s.verify_s) > 0 for s in samples)
    assert backend.target.length == 50


@pytest.mark.parametrize("forward", ["fused", "transformers"])
def test_the_floor_is_every_linear_layer_once(forward: Forward) -> None:
    target = tiny_llama(seed=1)
    backend = ReferenceBackend(target, nearby(target, seed=2), Options(forward=forward))
    (sample,) = backend.time_forwards(request(), context_length=20, samples=1)
    for floor_s in (sample.ar_floor_s, sample.verify_floor_s):
        assert floor_s is not None
        assert floor_s > 0  # how it compares with the forward is measured by suites/test_floor.py
    fused = backend.target if isinstance(backend.target, FusedLlama) else None
    products = floor.products_of(target, fused)
    expected = sum(module.weight.numel() for module in target.modules() if isinstance(module, torch.nn.Linear))
    assert sum(product.weight_ND.numel() for product in products) == expected


@pytest.mark.parametrize("architecture", ["t5", "gpt2", "mixtral"])
def test_where_products_are_not_all_linear_layers_that_run_there_is_no_floor(architecture: str) -> None:
    backend = ReferenceBackend(*tiny_models("near", architecture))
    (sample,) = backend.time_forwards(request(prompt_ids=(3, 4, 5)), context_length=20, samples=1)
    assert sample.ar_floor_s is None


def test_top_k_and_top_p_hold_for_every_token() -> None:
    target = tiny_llama(seed=1)
    backend = ReferenceBackend(target, nearby(target, seed=2))
    for changes in ({"top_k": 2}, {"top_p": 0.5}):
        generation = backend.generate(request(**changes, temperature=1.3, seed=1))
        ids = [*PROMPT, *generation.token_ids]
        with torch.inference_mode():
            logits = target(torch.tensor([ids])).logits[0]
        for place in range(len(PROMPT), len(ids)):
            probs = (logits[place - 1] / 1.3).softmax(-1)
            above = probs[probs > probs[ids[place]] + 1e-5]  # float32 noise between the two forwards
            assert len(above) < 2 if "top_k" in changes else above.sum() < 0.5


def test_an_unknown_rule_and_an_absent_device_are_said_in_one_line(backend: ReferenceBackend) -> None:
    with pytest.raises(ValueError, match="expected an acceptance rule of block"):
        backend.generate(request(rule="nonsense"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device cuda was requested, torch finds only a CPU"):
            checked_device("cuda")


def test_a_device_whose_number_is_too_high_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert checked_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device cuda:2 was requested, torch finds 2 of cuda, counted from 0"):
        checked_device("cuda:2")


def test_vocabulary_of_the_tiny_models_is_what_the_tests_assume(backend: ReferenceBackend) -> None:
    assert backend.vocab_size == VOCAB_SIZE
