"""The conformance kit: what any backend must show before its numbers are believed.

A test class inherits `BackendConformance`, names the backend's class and loads a checkpoint. Engines are seen from outside:
checkpoint folders in, token ids and rounds out. They are judged by forwards of the same checkpoints that keep no cache.

A check is generated only if the declared `Capabilities` have the rule and the ability that it needs. A check that an engine
should pass and cannot is named in its `Capabilities.gaps` (the test's name without `test_`, with or without `[rule]`) and
becomes a strict xfail. Sampled checks draw with fixed seeds; were seeds free, each would fail a sound engine at most 1 time in
50 (the certificate: 1 in 100 LOSSY and as often INCONCLUSIVE) or in 1,000 a comparison (everything else).

Shape letters: N rows, V vocabulary.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from backends.acceptance.rules import RULES
from backends.conformance import judge
from backends.conformance.judge import NUM_DRAFT_TOKENS, PROMPTS, FreshForwards, Output, Tested, unbalanced
from backends.conformance.tiny_pairs import END_TOKENS, RELATIONS, Relation, family_of, tiny_pair
from bench.protocols import Backend, Capabilities
from bench.records.decoding import AUTOREGRESSIVE, DecodeRequest, Generation, ModelPair, Round, num_tested, placed_rounds
from bench.statistics.intervals import self_normalised_z, two_sided_p

ALLOWED_P = 0.001  # false alarms of one comparison
LENGTH = 60  # new tokens of an output that does not end earlier
Check = TypeVar("Check", bound=Callable[..., None])
Sampled = Callable[[str], list[Output]]  # from a rule, or BASELINE

BASELINE = "autoregressive"
ALL_RULES = tuple(sorted(RULES))
LOSSLESS_RULES = tuple(rule for rule in ALL_RULES if RULES[rule].lossless)

# Acceptance probability at a position where draft and target have the same distribution.
CLOSED_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "block": lambda probs_NV: torch.ones(len(probs_NV)),
    "exact_match": lambda probs_NV: probs_NV.square().sum(-1),
    "one_hot": lambda probs_NV: probs_NV.amax(-1),
    "rejection": lambda probs_NV: torch.ones(len(probs_NV)),
}

# What a check may need, given the capabilities, the backend or its class, and the test class.
NEEDS: dict[str, Callable[[Capabilities, object, type[BackendConformance]], bool]] = {
    "rounds": lambda able, backend, tests: able.reports_rounds,
    "a seed": lambda able, backend, tests: able.seeded,
    "an adaptive draft length": lambda able, backend, tests: able.adaptive_draft_length,
    "the rule rejection": lambda able, backend, tests: "rejection" in able.rules,
    "a replay": lambda able, backend, tests: hasattr(backend, "replay"),
    "several requests at once": lambda able, backend, tests: hasattr(backend, "generate_together"),
    "advancing step by step": lambda able, backend, tests: hasattr(backend, "start"),
    "float32": lambda able, backend, tests: tests.dtype == "float32",
    "disjoint models": lambda able, backend, tests: tests.architecture == "llama",
    "a causal model": lambda able, backend, tests: family_of(tests.architecture) == "causal",
}


def check(*needs: str, rules: Sequence[str] = ()) -> Callable[[Check], Check]:
    """Declare what a check needs (keys of NEEDS), and the rules (or BASELINE) for each of which it runs."""

    def declared(test: Check) -> Check:
        test.needs, test.rules = needs, tuple(rules)  # type: ignore[attr-defined]
        return test

    return declared


def _loaded(relation: Relation) -> Any:
    """Return a fixture: the backend under test with one of the pairs, closed at the end."""

    @pytest.fixture(scope="class")  # type: ignore[misc]
    @classmethod
    def backend(cls: type[BackendConformance], pairs: dict[Relation, ModelPair]) -> Iterator[Backend]:
        backend = cls.load(pairs[relation])
        yield backend
        backend.close()

    return backend


def _uncached(relation: Relation) -> Any:
    """Return a fixture: forwards of one of the pairs that keep no cache."""

    @pytest.fixture(scope="class")  # type: ignore[misc]
    @classmethod
    def fresh(cls: type[BackendConformance], pairs: dict[Relation, ModelPair]) -> FreshForwards:
        return FreshForwards.of_pair(pairs[relation])

    return fresh


class BackendConformance:
    """Inherit, name the backend's class, and implement `load`; docs/backends.md has an example."""

    backend: ClassVar[Any] = None  # declares what is generated; None: everything is, and checks skip once the engine runs
    capabilities: ClassVar[Capabilities | None] = None  # what is checked, if not all that the backend declares
    architecture = "llama"  # or another of `backends.conformance.tiny_pairs`
    dtype = "float32"
    num_tokens = 3300  # for one certificate, at least; more than `tokens_for_lossless`

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        """Return the backend under test, holding this pair of checkpoint folders."""
        raise NotImplementedError

    # Collecting only what applies
    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, test in vars(BackendConformance).items():
            # pytest collects no attribute that is None. A subclass may declare more than the class that it inherits from.
            if name.startswith("test_") and getattr(cls, name) in (test, None):
                rules = getattr(test, "rules", ())
                applies = not cls._unmet(test, cls.backend) and (not rules or cls._applicable(rules))
                setattr(cls, name, test if applies else None)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Generate a check for each rule that is declared."""
        if rules := getattr(metafunc.function, "rules", ()):
            metafunc.parametrize("rule", self._applicable(rules))

    @pytest.fixture(autouse=True)
    def _as_declared(self, request: pytest.FixtureRequest, near: Backend) -> None:
        """Mark a declared gap. Skip what the declaration promised and the running engine lacks, or could not promise."""
        unmet = self._unmet(request.function, near)
        rule = getattr(getattr(request.node, "callspec", None), "params", {}).get("rule", BASELINE)
        if rule not in (BASELINE, *self._able(near).rules):
            unmet = [*unmet, f"the rule {rule}"]
        if unmet:
            pytest.skip(f"needs {', '.join(unmet)}")
        gaps = near.capabilities.gaps or {}
        name = request.node.name.removeprefix("test_")
        if reason := gaps.get(name, gaps.get(name.partition("[")[0])):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @classmethod
    def _able(cls, backend: Any) -> Any:
        """Return the capabilities under test, given a backend or its class; None: they show once the engine runs."""
        return cls.capabilities or getattr(backend, "capabilities", None)

    @classmethod
    def _applicable(cls, rules: Sequence[str]) -> list[str]:
        able = cls._able(cls.backend)
        return [rule for rule in rules if able is None or rule in (BASELINE, *able.rules)]

    @classmethod
    def _unmet(cls, test: Any, backend: Any) -> list[str]:
        able = cls._able(backend)
        return [need for need in getattr(test, "needs", ()) if able and not NEEDS[need](able, backend, cls)]

    # What the checks share
    near, same, disjoint = _loaded("near"), _loaded("same"), _loaded("disjoint")
    near_fresh, same_fresh = _uncached("near"), _uncached("same")

    @pytest.fixture(scope="class")
    @classmethod
    def pairs(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[Relation, ModelPair]:
        folder = tmp_path_factory.mktemp("tiny_pairs")
        return {
            relation: tiny_pair(folder / relation, relation, architecture=cls.architecture, dtype=cls.dtype)
            for relation in RELATIONS
            if relation != "disjoint" or cls.architecture == "llama"
        }

    @pytest.fixture(scope="class")
    @classmethod
    def sampled(cls, near: Backend) -> Sampled:
        """Return a function that gives the sampled outputs of a rule or of BASELINE, decoded once for all checks.

        They vary in temperature, truncation and draft temperature, and some end on their own.
        """
        able = cls._able(near)
        variants: list[dict[str, Any]] = [{"temperature": 0.7}, {"temperature": 1.0, "eos_token_ids": END_TOKENS}]
        if able.truncation:
            variants += [{"top_p": 0.9, "eos_token_ids": END_TOKENS}, {"temperature": 1.0, "top_k": 12}]
        if able.draft_temperature:
            variants.append({"temperature": 0.9, "draft_temperature": 0.5, "eos_token_ids": END_TOKENS})
        return cache(lambda rule: _decoded(near, cls.num_tokens, *(_arm(rule) | variant for variant in variants)))

    @property
    def _exact(self) -> bool:
        return self.dtype == "float32"

    @property
    def _tolerance(self) -> float:
        """How far from its closed form an acceptance may be: forwards of k + 1 tokens and of one token round differently."""
        return 1e-4 if self._exact else 0.02

    # The checks
    def test_declared_gaps_and_rules_exist(self, near: Backend) -> None:
        checks = {name.removeprefix("test_") for name in dir(self) if name.startswith("test_")}
        assert {gap.partition("[")[0] for gap in near.capabilities.gaps or {}} <= checks
        assert near.capabilities.rules <= set(RULES)
        assert near.capabilities.rules
        declared = getattr(self.backend, "capabilities", near.capabilities)
        assert near.capabilities == declared, "the class declares other capabilities than the loaded backend has"

    @pytest.mark.parametrize("k", [1, 4])
    def test_greedy_equals_autoregressive(self, k: int, near: Backend, near_fresh: FreshForwards) -> None:
        """In float32 token for token; in any dtype both outputs are the target's own choice, near-ties apart."""
        asked = _requests(near, 240, temperature=0.0, num_draft_tokens=k)
        speculative = [near.generate(request) for request in asked]
        plain = [near.generate(replace(request, num_draft_tokens=AUTOREGRESSIVE)) for request in asked]
        if self._exact:
            assert [g.token_ids for g in speculative] == [g.token_ids for g in plain]
        _assert_lossless(near_fresh, [*zip(asked * 2, speculative + plain, strict=True)])

    @check(rules=(BASELINE, *LOSSLESS_RULES))
    def test_distribution(self, rule: str, sampled: Sampled, near_fresh: FreshForwards) -> None:
        """The certificate, over temperatures, truncation, draft temperatures and outputs that end on their own."""
        _assert_lossless(near_fresh, sampled(rule))

    @check("an adaptive draft length")
    def test_adaptive_draft_length(self, near: Backend, near_fresh: FreshForwards) -> None:
        """Rounds of several lengths, none above k; greedy outputs and the distribution are the target's all the same."""
        adaptive: dict[str, Any] = {"draft_length": "adaptive", "num_draft_tokens": 4}
        greedy = _decoded(near, 480, adaptive | {"temperature": 0.0})
        hot = _decoded(near, self.num_tokens, adaptive | {"temperature": 0.7}, adaptive | {"temperature": 1.0})
        _assert_lossless(near_fresh, greedy)
        _assert_lossless(near_fresh, hot)
        if near.capabilities.reports_rounds:
            drafted = {round_.drafted for _, text in greedy + hot for round_ in text.rounds or ()}
            assert {1, 4} < drafted <= {0, 1, 2, 3, 4}

    @check("several requests at once")
    @pytest.mark.parametrize("arm", [BASELINE, "speculative"])
    def test_together(self, arm: str, near: Any, near_fresh: FreshForwards) -> None:
        """Requests decoded at once, at several temperatures and lengths: each output follows the target."""
        asked = [
            replace(request, temperature=(0.7, 1.0)[i % 2], max_new_tokens=LENGTH - i % 3)
            for i, request in enumerate(_requests(near, 1.02 * self.num_tokens, **_arm(arm)))
        ]
        together = min(4, near.max_concurrency)
        texts: list[Generation] = []
        for start in range(0, len(asked), together):
            texts += near.generate_together(asked[start : start + together])
        for request, text in zip(asked, texts, strict=True):
            assert len(text.token_ids) == request.max_new_tokens
            assert text.first_token_s is not None
            assert text.last_token_s is not None
            assert 0 < text.first_token_s <= text.last_token_s
        _assert_lossless(near_fresh, [*zip(asked, texts, strict=True)])

    @check("advancing step by step", "a seed")
    def test_in_turns(self, near: Any) -> None:
        """A generation that advances in turn with another gives what it gives alone, and tells how far it is."""
        for speculative, plain in zip(_requests(near, 200), _requests(near, 200, num_draft_tokens=AUTOREGRESSIVE), strict=True):
            decodings = [near.start(speculative), near.start(plain)]
            running = list(decodings)
            while running:
                decoding = min(running, key=lambda each: each.num_tokens)
                if decoding.advance():
                    running.remove(decoding)
            for request, decoding in zip((speculative, plain), decodings, strict=True):
                alone, found = near.generate(request), decoding.generation()
                assert (found.token_ids, found.rounds) == (alone.token_ids, alone.rounds)
                assert found.finish_reason == alone.finish_reason
        begun = near.start(_requests(near, 1)[0])
        begun.advance()
        begun.close()
        near.generate(_requests(near, 1)[0])  # it works after one that was given up

    @check("rounds", rules=ALL_RULES)
    def test_acceptance(self, rule: str, near: Backend, sampled: Sampled, near_fresh: FreshForwards) -> None:
        """As often as both models give along the emitted tokens; greedy in float32, exactly so."""
        # Judged jointly, a position has an acceptance probability only if a round drafts one token.
        jointly = RULES[rule].jointly
        arm: dict[str, Any] = {"rule": rule, "num_draft_tokens": 1 if jointly else NUM_DRAFT_TOKENS}
        hot = _decoded(near, 900, arm) if jointly else sampled(rule)
        greedy = _decoded(near, 300, arm | {"temperature": 0.0}) if self._exact else []
        for outputs in filter(None, (hot, greedy)):
            tested = judge.pooled(near_fresh.acceptance(*output) for output in outputs)
            assert judge.chance_p(tested) > ALLOWED_P, _means(tested)

    def test_end_token_frequency(self, near: Backend, sampled: Sampled, near_fresh: FreshForwards) -> None:
        """Outputs end as often as the target's probabilities give. The certificate pools all tokens and hardly sees this."""
        endable = [output for output in sampled(_any_rule(near)) if output[0].eos_token_ids]
        ends = judge.pooled(near_fresh.ends(*output) for output in endable)
        assert judge.rare_p(ends) > ALLOWED_P, _means(ends)

    @check("the rule rejection", "rounds")
    def test_accepted_and_recovered(self, sampled: Sampled, near_fresh: FreshForwards) -> None:
        """Under `rejection` accepted tokens follow min(p, q), recovered ones the residual, bonus tokens p."""
        transforms = judge.pooled_transforms(near_fresh.transforms(*output) for output in sampled("rejection"))
        for kind, values in transforms.items():
            assert judge.uniform_p(values) > ALLOWED_P, f"{kind} tokens"

    @check("a replay", rules=ALL_RULES)
    def test_replay(self, rule: str, near: Any, sampled: Sampled, near_fresh: FreshForwards) -> None:
        """It repeats the output, and its acceptance probabilities are those of uncached forwards."""
        joint: list[tuple[int, float]] = []
        probs: list[float] = []
        expected: list[float] = []
        for request, generation in sampled(rule)[:12]:
            replay = near.replay(request)
            if near.capabilities.seeded:
                assert (replay.token_ids, replay.rounds) == (generation.token_ids, generation.rounds)
            if replay.joint_length is not None:
                joint += zip((r.accepted for r in replay.rounds), replay.joint_length, strict=True)
            else:
                replayed = Generation(replay.token_ids, generation.finish_reason, replay.rounds, None)
                probs += itertools.chain(*replay.acceptance_probs)
                expected += near_fresh.acceptance(request, replayed)[1]
        if RULES[rule].jointly:
            assert two_sided_p(self_normalised_z(*zip(*joint, strict=True))) > ALLOWED_P
        else:
            assert len(probs) == len(expected)
            assert np.mean(probs) == pytest.approx(np.mean(expected), abs=self._tolerance)

    @check("rounds", rules=tuple(CLOSED_FORMS))
    def test_draft_equal_to_target(self, rule: str, same: Any, same_fresh: FreshForwards) -> None:
        """Acceptance is the rule's closed form: 1 (rejection, block), E[max p] (one_hot), E[sum p^2] (exact_match)."""
        passed: list[bool] = []
        closed_form: list[float] = []
        uncut: list[Round] = []
        asked = _requests(same, 600, rule=rule)
        for request in asked:
            generation = same.generate(request)
            places, outcomes = judge.tested_places(generation)
            passed += outcomes
            closed_form += CLOSED_FORMS[rule](same_fresh.probs(request, generation.token_ids)[0][places]).tolist()
            uncut += (generation.rounds or ())[:-1]
        if set(closed_form) == {1.0}:  # certain events have no variance to test with
            assert np.mean(passed) == pytest.approx(1, abs=self._tolerance)
            assert judge.block_efficiency(uncut) == pytest.approx(NUM_DRAFT_TOKENS + 1, rel=self._tolerance)
            return
        assert judge.chance_p((passed, closed_form)) > ALLOWED_P, _means((passed, closed_form))
        if hasattr(same, "replay") and same.capabilities.seeded:
            replays = (same.replay(request) for request in asked)
            expected = [prob for replay in replays for probs in replay.acceptance_probs for prob in probs]
            assert np.mean(expected) == pytest.approx(np.mean(closed_form), abs=self._tolerance)

    @check("disjoint models", "rounds", rules=ALL_RULES)
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_disjoint_support(self, rule: str, temperature: float, disjoint: Backend) -> None:
        """No draft token passes: one token per round."""
        for request in _requests(disjoint, 120, rule=rule, temperature=temperature):
            generation = disjoint.generate(request)
            assert judge.block_efficiency(generation.rounds or ()) == 1
            assert not list(unbalanced(request, generation))

    @check(rules=(BASELINE, *ALL_RULES))
    def test_books(self, rule: str, near: Backend) -> None:
        """Rounds add up to the output, with and without end tokens, greedy and sampled, for short and long drafts."""
        arms = [_arm(rule)] if rule == BASELINE else [_arm(rule) | {"num_draft_tokens": k} for k in (1, 2, 7)]
        for arm, temperature, end_tokens in itertools.product(arms, (0.0, 1.0), ((), END_TOKENS)):
            for request in _requests(near, LENGTH, temperature=temperature, eos_token_ids=end_tokens, **arm):
                generation = near.generate(request)
                assert not list(unbalanced(request, generation)), request
                if rule != BASELINE:
                    assert (generation.rounds is not None) == near.capabilities.reports_rounds

    @pytest.mark.parametrize(("end", "k"), [("accepted", 6), ("bonus", 1)])
    def test_end_token(self, end: str, k: int, same: Backend) -> None:
        """An output ends with its end token, whichever way that token came."""
        self._check_ends(same, k, end)

    @check("disjoint models")
    def test_recovered_end_token(self, disjoint: Backend) -> None:
        """The same if every draft token is rejected."""
        self._check_ends(disjoint, 3, "recovered")

    def _check_ends(self, backend: Backend, k: int, end: str) -> None:
        """Decode greedy outputs again, with one of their tokens as the end token: one that came as `end` says."""
        found = 0
        for asked in _requests(backend, 240, temperature=0.0, num_draft_tokens=k):
            whole = backend.generate(asked)
            text = whole.token_ids
            before = len(text) - sum(r.emitted for r in whole.rounds or ())  # tokens that belong to no round
            # The last round may be cut short by the limit; before it all rounds are alike.
            for place in range(1, len(text) - k - 1):  # token 0 may belong to no round
                is_bonus = (place - before) % (k + 1) == k
                if text[place] in text[:place] or (end != "recovered" and is_bonus != (end == "bonus")):
                    continue
                ending = replace(asked, eos_token_ids=(text[place],))
                generation = backend.generate(ending)
                assert generation.token_ids == text[: place + 1]
                assert generation.finish_reason == "stop"
                assert not list(unbalanced(ending, generation))
                if generation.rounds and self._exact:
                    last = generation.rounds[-1]
                    assert last.emitted == last.accepted + (end != "accepted")
                found += 1
                if found % 3 == 0:  # three of each output are enough
                    break
        assert found, f"no output has a new token in a place where it would be {end}"

    def test_token_limit(self, same: Backend) -> None:
        """Wherever in a round it falls, the output has just as many tokens, and they are those of a longer output."""
        for request in _requests(same, 120, temperature=0.0, num_draft_tokens=4):
            whole = same.generate(request).token_ids
            for limit in range(1, 10):
                cut = replace(request, max_new_tokens=limit)
                generation = same.generate(cut)
                assert (len(generation.token_ids), generation.finish_reason) == (limit, "length")
                assert not list(unbalanced(cut, generation))
                if self._exact:
                    assert generation.token_ids == whole[:limit]

    @check("a seed", rules=(BASELINE, *ALL_RULES))
    def test_seed(self, rule: str, near: Backend) -> None:
        """Same seed, same output and rounds; other seed, other output; the baseline has a seed too."""
        (request,) = _requests(near, LENGTH, **_arm(rule))
        first, again, other = (near.generate(replace(request, seed=seed)) for seed in (5, 5, 6))
        assert (first.token_ids, first.rounds) == (again.token_ids, again.rounds)
        assert first.token_ids != other.token_ids

    def test_global_random_state(self, near: Backend) -> None:
        """The states of torch, numpy and random stay as they are."""
        assert not any(changes_random_state(near, request) for request in _requests(near, LENGTH))

    @check("a causal model", "rounds", "float32")  # elsewhere near-ties decide otherwise
    def test_cache_after_a_rejection(self, near: Backend) -> None:
        """Cut after a rejection and given as a prompt, a greedy output continues the same."""
        found = 0
        for request in _requests(near, 240, temperature=0.0):
            token_ids, rounds = (generation := near.generate(request)).token_ids, generation.rounds or ()
            ends = [start + r.emitted for start, r in placed_rounds(rounds, len(token_ids)) if num_tested(r) > r.accepted]
            for end in [end for end in ends if end < len(token_ids)][:5]:
                prompt, rest = (*request.prompt_ids, *token_ids[:end]), token_ids[end:]
                assert near.generate(replace(request, prompt_ids=prompt, max_new_tokens=len(rest))).token_ids == rest
                found += 1
        assert found

    def test_inputs_are_not_mutated(self, pairs: dict[Relation, ModelPair]) -> None:
        """The checkpoint folders stay as they are, byte for byte."""
        before = _contents(pairs["near"])
        backend = self.load(pairs["near"])
        for request in _requests(backend, LENGTH):
            backend.generate(request)
        backend.close()
        assert _contents(pairs["near"]) == before

    def test_two_loads_in_one_process(self, near: Backend, pairs: dict[Relation, ModelPair]) -> None:
        """Neither disturbs the other, open or closed."""
        asked = _requests(near, 120, temperature=0.0)
        alone = [near.generate(request).token_ids for request in asked]
        second = self.load(pairs["near"])
        for request, text in zip(asked, alone, strict=True):
            assert second.generate(request).token_ids == near.generate(request).token_ids == text
        second.close()
        assert [near.generate(request).token_ids for request in asked] == alone

    def test_close_frees_memory(self, pairs: dict[Relation, ModelPair]) -> None:
        """No tensors stay in this process, and no process stays alive."""
        processes = _child_processes()
        gc.collect()
        gc.freeze()  # hides all that exists already from the collector, so that only new tensors are counted
        try:
            backend = self.load(pairs["near"])
            for request in _requests(backend, LENGTH):
                backend.generate(request)
            loaded = _live_tensor_bytes()
            backend.close()
            left = _live_tensor_bytes()
        finally:
            gc.unfreeze()
        assert left <= 0.05 * loaded, f"{left} of {loaded} bytes are still there"
        assert _child_processes() <= processes


def changes_random_state(backend: Backend, request: DecodeRequest) -> bool:
    """Return whether a call changes the global random state of torch, numpy or random; afterwards it is restored."""
    kept = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        # Draw first: a call that seeds the states again as they were seeded before would not show otherwise.
        torch.rand(1), np.random.random(), random.random()
        before = _random_states()
        backend.generate(request)
        changed = _random_states() != before
    np.random.set_state(kept[0])
    random.setstate(kept[1])
    return changed


def _random_states() -> tuple[object, ...]:
    return torch.random.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


def _assert_lossless(fresh: FreshForwards, outputs: Sequence[Output]) -> None:
    certificate = fresh.certificate(outputs)
    assert certificate.verdict == "LOSSLESS", certificate.words


def _arm(rule: str) -> dict[str, Any]:
    """Return what a request of this rule, of BASELINE or of any rule changes in the base request."""
    return {"num_draft_tokens": AUTOREGRESSIVE} if rule == BASELINE else {"rule": rule} if rule in RULES else {}


def _requests(backend: Backend, num_tokens: float, **changes: Any) -> tuple[DecodeRequest, ...]:
    """Return enough requests for so many tokens, over all prompts, each with its own seed."""
    base = DecodeRequest(PROMPTS[0], LENGTH, NUM_DRAFT_TOKENS, temperature=0.8, rule=_any_rule(backend))
    return tuple(
        replace(base, **{"prompt_ids": PROMPTS[i % len(PROMPTS)], "seed": i, **changes})
        for i in range(math.ceil(num_tokens / LENGTH))
    )


def _decoded(backend: Backend, num_tokens: int, *variants: dict[str, Any]) -> list[Output]:
    """Decode until there are so many tokens: every prompt with every variant in turn, each time with another seed."""
    outputs: list[Output] = []
    left, seeds = num_tokens, itertools.count()
    while left > 0:
        seed = next(seeds)
        prompt = PROMPTS[seed // len(variants) % len(PROMPTS)]
        (request,) = _requests(backend, 1, prompt_ids=prompt, seed=seed, **variants[seed % len(variants)])
        outputs.append((request, backend.generate(request)))
        left -= len(outputs[-1][1].token_ids)
    return outputs


def _any_rule(backend: Backend) -> str:
    rules = backend.capabilities.rules
    return "rejection" if "rejection" in rules else min(rules)


def _means(tested: Tested) -> str:
    return f"{np.mean(tested[0]):.4f} of {len(tested[0])}, expected {np.mean(tested[1]):.4f}"


def _contents(pair: ModelPair) -> dict[Path, bytes]:
    files = (file for folder in (pair.target, pair.draft) for file in Path(folder).rglob("*") if file.is_file())
    return {file: file.read_bytes() for file in files}


def _live_tensor_bytes() -> int:
    gc.collect()
    # type() and not isinstance(): that reads the class of every object, so that lazy modules would import things. Subclasses
    # are a compiler's stand-ins, which have no memory.
    things = (thing for thing in gc.get_objects() if type(thing) in (Tensor, Parameter))
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in things if t.layout == torch.strided)}
    return sum(storages.values())


def _child_processes() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}
