"""The conformance kit: what any backend must show before its numbers are believed.

A backend's test module inherits `BackendConformance` and says how a checkpoint is loaded. Engines are seen from outside:
checkpoint folders in, token ids and rounds out. They are judged by forwards of the same checkpoints that keep no cache.

The models are Llamas unless a class names another architecture of `backends.conformance.tiny_pairs`.

A check that an engine cannot pass is named in its `Capabilities.gaps` (the test's name without `test_`, with or without
`[rule]`) and becomes a strict xfail. An ability that it declares to lack skips what needs it. Sampled checks draw with
fixed seeds; were seeds free, each would fail a sound engine at most 1 time in 50 (the certificate: 1 in 100 LOSSY and
as often INCONCLUSIVE) or in 1,000 a comparison (everything else).

Shape letters: T tokens of a text, N of them tested, V vocabulary.
"""

from __future__ import annotations

import gc
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from backends.acceptance.rules import RULES
from backends.conformance.judge import (
    NUM_DRAFT_TOKENS,
    PROMPTS,
    FreshForwards,
    Tested,
    block_efficiency,
    chance_p,
    pooled,
    pooled_transforms,
    rare_p,
    tested_places,
    unbalanced,
    uniform_p,
)
from backends.conformance.tiny_pairs import END_TOKENS, RELATIONS, Relation, tiny_pair
from bench.protocols import Backend, Concurrent, Replayable
from bench.records.decoding import AUTOREGRESSIVE, DecodeRequest, Generation, ModelPair, Round, is_rejection
from bench.statistics.intervals import self_normalised_z, two_sided_p

ALLOWED_P = 0.001  # false alarms of one comparison

# Acceptance probability at a position where draft and target have the same distribution.
CLOSED_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "rejection": lambda probs_NV: torch.ones(len(probs_NV)),
    "block": lambda probs_NV: torch.ones(len(probs_NV)),
    "one_hot": lambda probs_NV: probs_NV.amax(-1),
    "exact_match": lambda probs_NV: probs_NV.square().sum(-1),
}


def changes_random_state(backend: Backend, request: DecodeRequest) -> bool:
    """Whether a call changes the global random state of torch, numpy or random. Afterwards it is as it was before."""
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    (
        torch.rand(1),
        np.random.random(),
        random.random(),
    )  # a state that was just seeded could be seeded alike and not show
    before = _random_states()
    backend.generate(request)
    changed = _random_states() != before
    torch.random.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    return changed


def _random_states() -> bytes:
    return pickle.dumps((torch.random.get_rng_state().tolist(), np.random.get_state(), random.getstate()))


# The checks
class BackendConformance:
    """Inherit, and implement `load`. The attributes may be overridden; docs/conformance.md has an example."""

    architecture = "llama"  # or another of `backends.conformance.tiny_pairs`
    dtype = "float32"
    num_tokens = 4500  # for one certificate; LOSSLESS takes a lossless engine 3,120, and some texts end early

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        """The engine under test, holding this pair of checkpoint folders."""
        raise NotImplementedError

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
    def near(cls, pairs: dict[Relation, ModelPair]) -> Iterator[Backend]:
        yield from cls._opened(pairs["near"])

    @pytest.fixture(scope="class")
    @classmethod
    def same(cls, pairs: dict[Relation, ModelPair]) -> Iterator[Backend]:
        yield from cls._opened(pairs["same"])

    @pytest.fixture(scope="class")
    @classmethod
    def disjoint(cls, pairs: dict[Relation, ModelPair]) -> Iterator[Backend]:
        if "disjoint" not in pairs:
            pytest.skip("disjoint models are made of Llamas only")
        yield from cls._opened(pairs["disjoint"])

    @pytest.fixture(scope="class")
    @classmethod
    def near_fresh(cls, pairs: dict[Relation, ModelPair]) -> FreshForwards:
        return FreshForwards.of_pair(pairs["near"])

    @pytest.fixture(scope="class")
    @classmethod
    def same_fresh(cls, pairs: dict[Relation, ModelPair]) -> FreshForwards:
        return FreshForwards.of_pair(pairs["same"])

    @classmethod
    def _opened(cls, pair: ModelPair) -> Iterator[Backend]:
        backend = cls.load(pair)
        yield backend
        backend.close()

    @pytest.fixture(autouse=True)
    def _declared_gap(self, request: pytest.FixtureRequest, near: Backend) -> None:
        gaps = near.capabilities.gaps or {}
        check = request.node.name.removeprefix("test_")
        reason = gaps.get(check, gaps.get(check.partition("[")[0]))
        if reason:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @property
    def _exact(self) -> bool:
        return self.dtype == "float32"

    @property
    def _tolerance(self) -> float:
        """How far from its closed form an acceptance may be: k + 1 tokens a forward round otherwise than one."""
        return 1e-4 if self._exact else 0.02

    def test_declared_gaps_and_rules_exist(self, near: Backend) -> None:
        checks = {name.removeprefix("test_") for name in dir(self) if name.startswith("test_")}
        assert {gap.partition("[")[0] for gap in near.capabilities.gaps or {}} <= checks
        assert near.capabilities.rules <= set(RULES)
        assert near.capabilities.rules

    @pytest.mark.parametrize("k", [1, 4])
    def test_greedy_equals_autoregressive(self, k: int, near: Backend, near_fresh: FreshForwards) -> None:
        """In float32 token for token; in any dtype both texts are the target's own choice, near-ties apart."""
        asked = _requests(near, 240, temperature=0.0, num_draft_tokens=k)
        speculative = [near.generate(request) for request in asked]
        plain = [near.generate(replace(request, num_draft_tokens=AUTOREGRESSIVE)) for request in asked]
        if self._exact:
            assert [g.token_ids for g in speculative] == [g.token_ids for g in plain]
        verdict = near_fresh.certificate([*zip(asked * 2, speculative + plain, strict=True)])
        assert verdict.verdict == "LOSSLESS", verdict.words

    @pytest.mark.parametrize("rule", ["autoregressive", *sorted(rule for rule in RULES if RULES[rule].lossless)])
    def test_distribution(self, rule: str, near: Backend, near_fresh: FreshForwards) -> None:
        """The certificate, over temperatures, truncation, draft temperatures and texts that end on their own."""
        able = near.capabilities
        changes: list[dict[str, Any]] = [{"temperature": 0.7}, {"temperature": 1.0, "eos_token_ids": END_TOKENS}]
        if able.truncation:
            changes += [{"top_p": 0.9}, {"temperature": 1.0, "top_k": 12}]
        if able.draft_temperature:
            changes += [{"temperature": 0.9, "draft_temperature": 0.5}]
        if rule == "autoregressive":
            asked = _requests(near, self.num_tokens, num_draft_tokens=AUTOREGRESSIVE)
        else:
            _need_rule(near, rule)
            asked = _requests(near, self.num_tokens, rule=rule)
        asked = tuple(replace(r, **changes[i // len(PROMPTS) % len(changes)]) for i, r in enumerate(asked))
        verdict = near_fresh.certificate([(r, near.generate(r)) for r in asked])
        assert verdict.verdict == "LOSSLESS", verdict.words

    def test_adaptive_draft_length(self, near: Backend, near_fresh: FreshForwards) -> None:
        """Rounds of several lengths, none above k; greedy text and distribution are the target's all the same."""
        _need(near.capabilities.adaptive_draft_length, "an adaptive draft length")
        asked = _requests(near, self.num_tokens, draft_length="adaptive", num_draft_tokens=4)
        asked = tuple(replace(request, temperature=(0.0, 0.7, 1.0)[i % 3]) for i, request in enumerate(asked))
        texts = [(request, near.generate(request)) for request in asked]
        for greedy in (True, False):
            verdict = near_fresh.certificate([(r, text) for r, text in texts if (r.temperature == 0) == greedy])
            assert verdict.verdict == "LOSSLESS", verdict.words
        if near.capabilities.reports_rounds:
            drafted = {round_.drafted for _, text in texts for round_ in text.rounds or ()}
            assert {1, 4} < drafted <= {0, 1, 2, 3, 4}

    @pytest.mark.parametrize("arm", ["autoregressive", "speculative"])
    def test_together(self, arm: str, near: Backend, near_fresh: FreshForwards) -> None:
        """Texts decoded at once, at several temperatures and of several lengths, each follow the target."""
        if not isinstance(near, Concurrent):
            pytest.skip("needs several texts at once")
        changes = {} if arm == "speculative" else {"num_draft_tokens": AUTOREGRESSIVE}
        asked = [
            replace(request, temperature=(0.7, 1.0)[i % 2], max_new_tokens=request.max_new_tokens - i % 3)
            for i, request in enumerate(_requests(near, self.num_tokens, **changes))
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
        verdict = near_fresh.certificate([*zip(asked, texts, strict=True)])
        assert verdict.verdict == "LOSSLESS", verdict.words

    @pytest.mark.parametrize("rule", sorted(RULES))
    def test_acceptance(self, rule: str, near: Backend, near_fresh: FreshForwards) -> None:
        """As often as both models say along the emitted text; greedy in float32, exactly so."""
        _need_rule(near, rule)
        _need(near.capabilities.reports_rounds, "rounds")
        for temperature in (0.0, 0.8) if self._exact else (0.8,):
            asked = _requests(near, 900, rule=rule, temperature=temperature, num_draft_tokens=_k(rule))
            tested = pooled(near_fresh.acceptance(request, near.generate(request)) for request in asked)
            assert chance_p(tested) > ALLOWED_P, f"T={temperature}: {_means(tested)}"

    def test_end_token_frequency(self, near: Backend, near_fresh: FreshForwards) -> None:
        """Texts end as often as the target says: the certificate pools over all tokens and hardly sees one missing."""
        asked = _requests(near, 2400, eos_token_ids=END_TOKENS)
        ends = pooled(near_fresh.ends(request, near.generate(request)) for request in asked)
        assert rare_p(ends) > ALLOWED_P, _means(ends)

    def test_accepted_and_recovered(self, near: Backend, near_fresh: FreshForwards) -> None:
        """Under `rejection` accepted tokens follow min(p, q), recovered ones the residual, bonus tokens p."""
        _need_rule(near, "rejection")
        _need(near.capabilities.reports_rounds, "rounds")
        transforms = pooled_transforms(near_fresh.transforms(r, near.generate(r)) for r in _requests(near, 1800))
        for kind, values in transforms.items():
            assert uniform_p(values) > ALLOWED_P, f"{kind} tokens"

    @pytest.mark.parametrize("rule", sorted(RULES))
    def test_replay(self, rule: str, near: Backend, near_fresh: FreshForwards) -> None:
        """It repeats the text, and its acceptance probabilities are those of uncached forwards."""
        _need_rule(near, rule)
        if not isinstance(near, Replayable):
            pytest.skip("the engine offers no replay")
        joint: list[tuple[int, float]] = []
        probs: list[float] = []
        expected: list[float] = []
        for request in _requests(near, 480, rule=rule):
            generation, replay = near.generate(request), near.replay(request)
            if near.capabilities.seeded:
                assert (replay.token_ids, replay.rounds) == (generation.token_ids, generation.rounds)
            if replay.joint_length is not None:
                joint += zip((r.accepted for r in replay.rounds), replay.joint_length, strict=True)
            else:
                replayed = Generation(replay.token_ids, generation.finish_reason, replay.rounds, None)
                probs += [prob for round_probs in replay.acceptance_probs for prob in round_probs]
                expected += near_fresh.acceptance(request, replayed)[1]
        if RULES[rule].jointly:
            assert two_sided_p(self_normalised_z(*zip(*joint, strict=True))) > ALLOWED_P
        else:
            assert len(probs) == len(expected)
            assert np.mean(probs) == pytest.approx(np.mean(expected), abs=self._tolerance)

    @pytest.mark.parametrize("rule", sorted(CLOSED_FORMS))
    def test_draft_equal_to_target(self, rule: str, same: Backend, same_fresh: FreshForwards) -> None:
        """Acceptance is the rule's closed form: 1 (rejection, block), E[max p] (one_hot), E[sum p^2] (exact_match)."""
        _need_rule(same, rule)
        _need(same.capabilities.reports_rounds, "rounds")
        passed: list[bool] = []
        closed_form: list[float] = []
        uncut: list[Round] = []
        asked = _requests(same, 600, rule=rule)
        for request in asked:
            generation = same.generate(request)
            places, outcomes = tested_places(generation)
            passed += outcomes
            closed_form += CLOSED_FORMS[rule](same_fresh.probs(request, generation.token_ids)[0][places]).tolist()
            uncut += (generation.rounds or ())[:-1]
        if set(closed_form) == {1.0}:
            assert np.mean(passed) == pytest.approx(1, abs=self._tolerance)
            assert block_efficiency(uncut) == pytest.approx(NUM_DRAFT_TOKENS + 1, rel=self._tolerance)
            return
        assert chance_p((passed, closed_form)) > ALLOWED_P, _means((passed, closed_form))
        if isinstance(same, Replayable) and same.capabilities.seeded:
            replays = (same.replay(request) for request in asked)
            expected = [prob for replay in replays for probs in replay.acceptance_probs for prob in probs]
            assert np.mean(expected) == pytest.approx(np.mean(closed_form), abs=self._tolerance)

    @pytest.mark.parametrize("rule", sorted(RULES))
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_disjoint_support(self, rule: str, temperature: float, disjoint: Backend) -> None:
        """No draft token passes: one token a round."""
        _need_rule(disjoint, rule)
        _need(disjoint.capabilities.reports_rounds, "rounds")
        for request in _requests(disjoint, 120, rule=rule, temperature=temperature):
            generation = disjoint.generate(request)
            assert block_efficiency(generation.rounds or ()) == 1
            assert not list(unbalanced(request, generation))

    @pytest.mark.parametrize("rule", sorted(RULES))
    def test_books(self, rule: str, near: Backend) -> None:
        """Rounds add up to the text, with and without end tokens, greedy and sampled, for short and long drafts."""
        _need_rule(near, rule)
        for temperature, k, end_tokens in product((0.0, 1.0), (AUTOREGRESSIVE, 1, 2, 7), ((), END_TOKENS)):
            changes = {"temperature": temperature, "num_draft_tokens": k, "eos_token_ids": end_tokens}
            for request in _requests(near, 60, rule=rule, **changes):
                generation = near.generate(request)
                assert not list(unbalanced(request, generation)), request
                if k:
                    assert (generation.rounds is not None) == near.capabilities.reports_rounds

    @pytest.mark.parametrize(("end", "k"), [("accepted", 6), ("bonus", 1), ("recovered", 3)])
    def test_end_token(self, end: str, k: int, request: pytest.FixtureRequest) -> None:
        """A text ends right behind its end token, whichever way that token came."""
        backend: Backend = request.getfixturevalue("disjoint" if end == "recovered" else "same")
        found = 0
        for asked in _requests(backend, 240, temperature=0.0, num_draft_tokens=k):
            whole = backend.generate(asked)
            text = whole.token_ids
            before = len(text) - sum(r.emitted for r in whole.rounds or ())  # tokens that belong to no round
            # The last round may be cut short by the limit; before it all rounds are alike.
            for place in range(1, len(text) - k - 1):
                if text[place] in text[:place] or (
                    end != "recovered" and ((place - before) % (k + 1) == k) != (end == "bonus")
                ):
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
                if found % 3 == 0:
                    break
        assert found, f"no text has a new token in a place where it would be {end}"

    @pytest.mark.parametrize("limit", range(1, 10))
    def test_token_limit(self, limit: int, same: Backend) -> None:
        """Wherever in a round it falls, the text has just as many tokens, and they are those of a longer text."""
        for request in _requests(same, 120, temperature=0.0, num_draft_tokens=4):
            cut = replace(request, max_new_tokens=limit)
            generation = same.generate(cut)
            assert len(generation.token_ids) == limit
            assert generation.finish_reason == "length"
            assert not list(unbalanced(cut, generation))
            if self._exact:
                assert generation.token_ids == same.generate(request).token_ids[:limit]

    @pytest.mark.parametrize("rule", sorted(RULES))
    def test_seed(self, rule: str, near: Backend) -> None:
        """Same seed, same text and rounds; other seed, other text; the baseline has a seed too."""
        _need_rule(near, rule)
        _need(near.capabilities.seeded, "a seed")
        for k in (AUTOREGRESSIVE, NUM_DRAFT_TOKENS):
            for request in _requests(near, 60, rule=rule, num_draft_tokens=k):
                first, again, other = (near.generate(replace(request, seed=seed)) for seed in (5, 5, 6))
                assert (first.token_ids, first.rounds) == (again.token_ids, again.rounds)
                assert first.token_ids != other.token_ids

    def test_global_random_state(self, near: Backend) -> None:
        """Those of torch, numpy and random stay as they are."""
        assert not any(changes_random_state(near, request) for request in _requests(near, 60))

    def test_cache_after_a_rejection(self, near: Backend, pairs: dict[Relation, ModelPair]) -> None:
        """Cut right behind a rejection and given as a prompt, a greedy text goes on the same."""
        _need(pairs["near"].family == "causal", "a model that reads its prompt and its text alike")
        _need(near.capabilities.reports_rounds, "rounds")
        _need(self._exact, "float32, near-ties decide otherwise")
        found = 0
        for request in _requests(near, 240, temperature=0.0):
            generation = near.generate(request)
            end = len(generation.token_ids) - sum(r.emitted for r in generation.rounds or ())
            enough = found + 5
            for round_ in generation.rounds or ():
                end += round_.emitted
                if is_rejection(round_) and end < len(generation.token_ids) and found < enough:
                    rest = generation.token_ids[end:]
                    prompt = (*request.prompt_ids, *generation.token_ids[:end])
                    fresh = replace(request, prompt_ids=prompt, max_new_tokens=len(rest))
                    assert near.generate(fresh).token_ids == rest
                    found += 1
        assert found

    def test_inputs_are_not_mutated(self, pairs: dict[Relation, ModelPair]) -> None:
        """The checkpoint folders stay as they are, byte for byte."""
        before = _contents(pairs["near"])
        backend = self.load(pairs["near"])
        for request in _requests(backend, 60):
            backend.generate(request)
        backend.close()
        assert _contents(pairs["near"]) == before

    def test_two_loads_in_one_process(self, near: Backend, pairs: dict[Relation, ModelPair]) -> None:
        """Neither disturbs the other, alive or closed."""
        asked = _requests(near, 120, temperature=0.0)
        alone = [near.generate(request).token_ids for request in asked]
        second = self.load(pairs["near"])
        for request, text in zip(asked, alone, strict=True):
            assert second.generate(request).token_ids == near.generate(request).token_ids == text
        second.close()
        assert [near.generate(request).token_ids for request in asked] == alone

    def test_close_frees_memory(self, pairs: dict[Relation, ModelPair]) -> None:
        """No tensors stay in this process and no process stays behind."""
        tensors, processes = _live_tensor_bytes(), _child_processes()
        backend = self.load(pairs["near"])
        for request in _requests(backend, 60):
            backend.generate(request)
        loaded = _live_tensor_bytes() - tensors
        backend.close()
        left = _live_tensor_bytes() - tensors
        assert left <= 0.05 * loaded, f"{left} of {loaded} bytes are still there"
        assert _child_processes() <= processes


def _requests(backend: Backend, num_tokens: int, **changes: Any) -> tuple[DecodeRequest, ...]:
    """Enough requests of 60 new tokens for so many tokens, over all prompts, each with a seed of its own."""
    length = min(60, num_tokens)
    base = DecodeRequest(PROMPTS[0], length, NUM_DRAFT_TOKENS, temperature=0.8, rule=_any_rule(backend))
    return tuple(
        replace(base, **{"prompt_ids": PROMPTS[i % len(PROMPTS)], "seed": i, **changes})
        for i in range(-(-num_tokens // length))
    )


def _any_rule(backend: Backend) -> str:
    rules = backend.capabilities.rules
    return "rejection" if "rejection" in rules else min(rules)


def _k(rule: str) -> int:
    """Draft tokens for which every position has an acceptance probability of its own."""
    return 1 if RULES[rule].jointly else NUM_DRAFT_TOKENS


def _need(able: bool, what: str) -> None:
    if not able:
        pytest.skip(f"needs {what}")


def _need_rule(backend: Backend, rule: str) -> None:
    _need(rule in backend.capabilities.rules, f"the rule {rule}")


def _means(tested: Tested) -> str:
    return f"{np.mean(tested[0]):.4f} of {len(tested[0])}, expected {np.mean(tested[1]):.4f}"


def _contents(pair: ModelPair) -> dict[Path, bytes]:
    files = (file for folder in (pair.target, pair.draft) for file in Path(folder).rglob("*") if file.is_file())
    return {file: file.read_bytes() for file in files}


def _live_tensor_bytes() -> int:
    gc.collect()
    # type() and not isinstance(), which asks every object for its class, so that lazy modules would import things. Subclasses
    # are a compiler's stand-ins, which have no memory.
    tensors = [
        thing for thing in gc.get_objects() if type(thing) in (Tensor, Parameter) and thing.layout == torch.strided
    ]
    storages = {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _child_processes() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}
