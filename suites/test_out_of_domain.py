"""The same draft on other domains: is one of them easier at every temperature? `--prompts` names the domains, twice or more."""

from bench.measurement.suite_run import SuiteRun

DOMAINS = ("instructions", "word_problems")
DEFAULTS = {
    "smoke": {"prompts": DOMAINS, "temperatures": (1.0,)},
    "quick": {"prompts": DOMAINS, "temperatures": (0.0, 1.0), "num_prompts": 8},
    "paper": {"prompts": DOMAINS},
}


def test_out_of_domain(benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int) -> None:
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=num_draft_tokens)
