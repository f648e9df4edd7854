"""How much of "temperature hurts" is the rule that judges a draft token? The same models under every rule, over temperatures.

`typical` is lossy by design: its gamma is shown, marked, and never the best.
"""

from bench.measurement.suite_run import SuiteRun

RULES = ("rejection", "one_hot", "exact_match", "block", "typical")
DEFAULTS = {
    "smoke": {"rules": ("rejection", "exact_match"), "temperatures": (1.0,)},
    "quick": {"rules": RULES, "temperatures": (1.0,), "num_prompts": 8},
    "paper": {"rules": RULES},
}


def test_acceptance_rules(benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int) -> None:
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=num_draft_tokens)
