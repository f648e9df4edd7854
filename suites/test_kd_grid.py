"""KD temperature against decode temperature: gamma and counted alpha of drafts that were distilled at several temperatures.

`--draft` names the drafts, twice or more; for the default pair those that come with it. The full matrix of alpha, every decode
temperature on every draft and seed, is analytic and cheaper: `specheat kd-matrix`.
"""

import pytest

from bench.measurement.suite_run import SuiteRun

START = "embedded:smollm2/draft"
OFFLINE, ONLINE = (
    tuple(f"embedded:smollm2/{arm}-t{temperature}" for temperature in ("0", "0.2", "0.4", "0.6", "0.8", "1"))
    for arm in ("offline", "online")
)
DEFAULTS = {
    "smoke": {"drafts": (START, OFFLINE[0]), "temperatures": (1.0,)},
    "quick": {
        "drafts": (START, OFFLINE[0], OFFLINE[-1]),
        "temperatures": (0.0, 1.0),
        "num_prompts": 8,
    },
    "paper": {"drafts": (START, *OFFLINE, *ONLINE)},
}


def test_kd_grid(benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int) -> None:
    if len(suite_run.settings.drafts) < 2:
        pytest.skip("compares drafts: name at least two with --draft (`specheat kd-matrix` trains them)")
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=num_draft_tokens)
