"""The reference backend conforms: every check in float32, and in bf16 with one rule: all rules get the same dtype."""

from __future__ import annotations

import pytest

from backends.conformance.kit import BackendConformance
from backends.engines import reference
from bench.protocols import Backend, Capabilities
from bench.records.decoding import ModelPair

pytest_plugins = ("pytester",)


ONE_RULE = Capabilities(rules=frozenset({"rejection"}))


class TestReferenceFloat32(BackendConformance):
    backend = reference.ReferenceBackend

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return reference.load(pair, device="cpu", options={})


class TestReferenceBfloat16(TestReferenceFloat32):
    dtype = "bfloat16"
    capabilities = ONE_RULE


class TestReferenceOnTransformersForward(BackendConformance):
    backend = reference.ReferenceBackend
    capabilities = ONE_RULE

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return reference.load(pair, device="cpu", options={"forward": "transformers"})


FORGETFUL = """
from dataclasses import replace
from backends.conformance.kit import BackendConformance
from backends.engines import reference
from bench.protocols import Capabilities

class Forgetful(reference.ReferenceBackend):
    calls = 0
    capabilities = Capabilities(
        rules=frozenset({"rejection"}),
        gaps={"seed[rejection]": "draws are not seeded", "books": "it never balances", "nonsense": "none"},
    )

    def generate(self, request):
        self.calls += 1
        return super().generate(replace(request, seed=self.calls))

class TestForgetful(BackendConformance):
    backend = Forgetful

    @classmethod
    def load(cls, pair):
        models = reference.load(pair, device="cpu", options={})
        return Forgetful(models.target.model, models.draft.model)
"""


def test_a_declared_gap_is_a_strict_xfail_and_must_name_a_check(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_kit=FORGETFUL)
    result = pytester.runpytest_inprocess("-rxf", "-k", "rejection and (test_seed or test_books) or test_declared_gaps")
    result.assert_outcomes(xfailed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*XFAIL*test_seed?rejection?*draws are not seeded*", "*FAILED*declared*", "*FAILED*books*XPASS(strict)*"]
    )


def test_checks_of_undeclared_rules_and_abilities_are_not_generated(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_kit=FORGETFUL)
    listed = pytester.runpytest_inprocess("--collect-only", "-q").stdout.str()
    assert "test_distribution[rejection]" in listed
    assert "test_distribution[block]" not in listed
    assert "test_adaptive_draft_length" not in listed
    assert "test_together" not in listed


def test_an_ability_that_only_the_running_engine_shows_skips_instead(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_kit=FORGETFUL.replace("backend = Forgetful", "pass"))
    result = pytester.runpytest_inprocess("-rs", "-k", "test_seed and block or test_adaptive")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*needs an adaptive draft length*", "*needs the rule block*"])
