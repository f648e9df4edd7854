"""Why is speculation slower when it is hot: do rounds cost more, or do they give fewer tokens?

Texts of fixed length, so that every temperature decodes behind the same contexts' lengths. The seconds per round of each phase
(draft, verify, accept, other) come from the replays, the shares of the slow-down from them and from block efficiency.
"""

from bench.measurement.suite_run import SuiteRun

DEFAULTS = {
    "smoke": {"temperatures": (0.0, 1.0), "end_token": "ignored", "instrument_every": 1},
    "quick": {"temperatures": (0.0, 0.5, 1.0), "end_token": "ignored", "num_prompts": 8, "instrument_every": 1},
    "paper": {"end_token": "ignored", "instrument_every": 1},
}


def test_cost_of_temperature(
    benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int
) -> None:
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=num_draft_tokens)
