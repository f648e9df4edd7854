"""Generations that are advanced in turns give what each gives alone, and leave no trace in the process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from backends.engines.assisted import Assisted, PromptLookup
from backends.engines.reference import Options, ReferenceBackend
from bench.protocols import Decoding, Steppable
from bench.records.decoding import DecodeRequest, Generation
from tests.support.tiny_models import nearby, tiny_llama, tiny_t5

PROMPT = (5, 9, 2, 7, 3, 4)
SPECULATIVE = DecodeRequest(PROMPT, max_new_tokens=24, num_draft_tokens=3, temperature=0.8, seed=11)
REQUESTS = (
    SPECULATIVE,
    replace(SPECULATIVE, num_draft_tokens=0, seed=12),
    replace(SPECULATIVE, prompt_ids=(8, 3, 3), max_new_tokens=9, seed=13),
)


def reference_llama() -> ReferenceBackend:
    target = tiny_llama(seed=1)
    return ReferenceBackend(target, nearby(target, seed=2, noise=0.02))


def reference_transformers() -> ReferenceBackend:
    target = tiny_llama(seed=1)
    return ReferenceBackend(target, nearby(target, seed=2, noise=0.02), Options(forward="transformers"))


def reference_t5() -> ReferenceBackend:
    target = tiny_t5(seed=1)
    return ReferenceBackend(target, nearby(target, seed=2, noise=0.02))


def assisted() -> Assisted:
    target = tiny_llama(seed=1)
    return Assisted(target, nearby(target, seed=2, noise=0.02))


def assisted_t5() -> Assisted:
    target = tiny_t5(seed=1)
    return Assisted(target, nearby(target, seed=2, noise=0.02))


def prompt_lookup() -> PromptLookup:
    return PromptLookup(tiny_llama(seed=1))


ENGINES = (reference_llama, reference_transformers, reference_t5, assisted, assisted_t5, prompt_lookup)


def without_seconds(generation: Generation) -> Generation:
    return replace(generation, first_token_s=None)


def in_turns(decodings: list[Decoding]) -> list[Generation]:
    left = list(decodings)
    while left:
        left = [decoding for decoding in left if not decoding.advance()]
    return [without_seconds(decoding.generation()) for decoding in decodings]


@pytest.mark.parametrize("make", ENGINES)
def test_generations_in_turns_are_those_of_each_alone(make: Callable[[], Steppable]) -> None:
    backend = make()
    rule = "exact_match" if isinstance(backend, PromptLookup) else "rejection"
    requests = [replace(request, rule=rule) for request in REQUESTS]
    alone = [without_seconds(backend.generate(request)) for request in requests]  # type: ignore[attr-defined]
    assert isinstance(backend, Steppable)
    for order in itertools.permutations(range(len(requests))):
        found = in_turns([backend.start(requests[place]) for place in order])
        assert found == [alone[place] for place in order]


@pytest.mark.parametrize("make", ENGINES)
def test_a_step_emits_one_token_and_a_round_up_to_k_and_one(make: Callable[[], Steppable]) -> None:
    backend = make()
    rule = "exact_match" if isinstance(backend, PromptLookup) else "rejection"
    for request, most in ((REQUESTS[1], 1), (REQUESTS[0], 4)):
        decoding = backend.start(replace(request, rule=rule))
        assert decoding.num_tokens == 0
        counts = [0]
        while not decoding.advance():
            counts.append(decoding.num_tokens)
        counts.append(decoding.num_tokens)
        assert counts[-1] == request.max_new_tokens
        assert all(1 <= after - before <= most for before, after in itertools.pairwise(counts))


@pytest.mark.parametrize("make", ENGINES)
def test_a_generation_that_is_given_up_leaves_the_engine_as_it_was(make: Callable[[], Steppable]) -> None:
    backend = make()
    rule = "exact_match" if isinstance(backend, PromptLookup) else "rejection"
    first, second = (replace(request, rule=rule) for request in REQUESTS[:2])
    expected = without_seconds(backend.generate(second))  # type: ignore[attr-defined]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    given_up, going_on = backend.start(first), backend.start(second)
    for decoding in (given_up, going_on, given_up, going_on):
        decoding.advance()
        assert torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), before)
    given_up.close()
    assert in_turns([going_on]) == [expected]
    assert without_seconds(backend.generate(second)) == expected  # type: ignore[attr-defined]


def test_the_checkpoints_generation_config_is_back_after_calls_in_turns() -> None:
    backend = assisted()
    own = backend.target.generation_config
    decodings = [backend.start(request) for request in REQUESTS]
    for _ in range(3):
        for decoding in decodings:
            decoding.advance()
            assert backend.target.generation_config is own
    in_turns([decodings[1]])
    decodings[0].close()
    decodings[2].close()
    assert backend.target.generation_config is own


def test_an_error_within_a_call_is_raised_where_it_is_advanced() -> None:
    with pytest.raises(ValueError, match="expected the rule rejection, got 'block'"):
        assisted().start(replace(SPECULATIVE, rule="block")).advance()
