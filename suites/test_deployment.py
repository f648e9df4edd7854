"""What a user of the draft sees: whole calls with their prefill, time to first token, and when training it has paid for itself.

The tables give, for each draft whose card says what it cost, the generated tokens after which the seconds saved exceed the
seconds of sampling and training. Engines that decode several texts at once do so (`--concurrency`), others one.
"""

import pytest

from bench.measurement.suite_run import SuiteRun
from bench.protocols import Concurrent

DEFAULTS = {
    "smoke": {"temperatures": (1.0,)},
    "quick": {"temperatures": (0.0, 1.0), "num_prompts": 8, "max_new_tokens": 64},
    "paper": {"temperatures": (0.0, 0.5, 1.0), "max_new_tokens": 256},
}


def test_deployment(
    benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int, concurrency: int
) -> None:
    alone = not isinstance(suite_run.backend, Concurrent)
    if alone and concurrency > 1:
        pytest.skip(f"{suite_run.backend.name} decodes one text at a time")
    suite_run.measure(
        benchmark,
        temperature=temperature,
        rule=rule,
        num_draft_tokens=num_draft_tokens,
        options={"concurrency": concurrency},
    )
