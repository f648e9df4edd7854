"""Gamma under load: several prompts decoded at once, by engines that can. The seconds of each last to its own last token.

The more prompts share a forward, the less idle hardware is left for speculation, and gamma falls. Only the hottest of the
requested temperatures is measured: the others would show the same, at sixteen times the price.
"""

import pytest

from bench.measurement.suite_run import SuiteRun
from bench.protocols import Concurrent


def test_concurrency(benchmark, suite_run: SuiteRun, rule: str, num_draft_tokens: int, concurrency: int) -> None:
    if not isinstance(suite_run.backend, Concurrent):
        pytest.skip(f"{suite_run.backend.name} decodes one prompt at a time")
    hottest = max(suite_run.settings.temperatures)
    suite_run.measure(benchmark, temperature=hottest, rule=rule, num_draft_tokens=num_draft_tokens, concurrency=concurrency)
