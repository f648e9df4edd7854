"""The same pair, prompts, temperatures and draft length on every backend asked for: who is how fast, and is it lossless?"""

import pytest

from bench.measurement.suite_run import SuiteRun


@pytest.mark.compares_backends
def test_backends(benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int) -> None:
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=num_draft_tokens)
