"""Gamma under load: several texts decoded at once, by engines that can. The seconds of a text run to its own last token.

The more texts share a forward, the less idle the machine is that speculation would use, and gamma falls. Only at the
hottest temperature asked for: the others would show the same, at a sixteenfold price.
"""

import pytest

from bench.measurement.suite_run import SuiteRun
from bench.protocols import Concurrent


def test_concurrency(benchmark, suite_run: SuiteRun, rule: str, num_draft_tokens: int, concurrency: int) -> None:
    if not isinstance(suite_run.backend, Concurrent):
        pytest.skip(f"{suite_run.backend.name} decodes one text at a time")
    suite_run.measure(
        benchmark,
        temperature=max(suite_run.settings.temperatures),
        rule=rule,
        num_draft_tokens=num_draft_tokens,
        options={"concurrency": concurrency},
    )
