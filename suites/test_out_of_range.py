"""Decoding hotter than 1: does acceptance fall on, level out, or rise again, and is what is decoded still a text?

Beside gamma and alpha the tables say how degenerate the texts are: repeated 4-grams, distinct tokens, the share that ends.
"""

from bench.measurement.suite_run import SuiteRun

DEFAULTS = {
    "smoke": {"temperatures": (1.0, 2.0)},
    "quick": {"temperatures": (0.0, 0.5, 1.0, 1.5, 2.0), "num_prompts": 8},
    "paper": {"temperatures": tuple(step / 4 for step in range(13))},
}


def test_out_of_range(benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int) -> None:
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=num_draft_tokens)
