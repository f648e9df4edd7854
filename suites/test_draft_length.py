"""The best draft length for each temperature: gamma over k, what one k for all temperatures loses, and a k that adapts.

The adaptive k changes from round to round: longer after full acceptance, shorter after a rejection. It is at most the largest
requested.
"""

from bench.measurement.suite_run import SuiteRun

DEFAULTS = {
    "smoke": {"num_draft_tokens": (1, 3), "temperatures": (1.0,)},
    "quick": {"num_draft_tokens": (1, 2, 3), "temperatures": (0.0, 1.0), "num_prompts": 8},
    "paper": {"num_draft_tokens": (1, 2, 3, 4, 5, 6, 8), "temperatures": (0.0, 0.25, 0.5, 0.75, 1.0)},
}


def test_draft_length(measure) -> None:
    measure()


def test_adaptive_draft_length(benchmark, suite_run: SuiteRun, temperature: float, rule: str) -> None:
    longest = max(suite_run.settings.num_draft_tokens)
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=longest, draft_length="adaptive")
