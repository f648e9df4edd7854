"""The best draft length for each temperature: gamma over k, and what one k for all temperatures gives away."""

from bench.suite_run import SuiteRun

DEFAULTS = {
    "smoke": {"num_draft_tokens": (1, 3), "temperatures": (1.0,)},
    "quick": {"num_draft_tokens": (1, 2, 3, 4), "temperatures": (0.0, 1.0), "num_prompts": 8, "max_new_tokens": 48},
    "paper": {"num_draft_tokens": (1, 2, 3, 4, 5, 6, 8), "temperatures": (0.0, 0.25, 0.5, 0.75, 1.0)},
}


def test_draft_length(benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int) -> None:
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=num_draft_tokens)
