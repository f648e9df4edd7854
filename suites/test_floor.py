"""How far are the forwards from their linear layers alone, and the arms from their forwards?

Decoding a token reads every weight once; the linear layers that do so are the floor. Behind every pair bare forwards and their
floors are timed one beside the other.
"""

from bench.measurement.suite_run import SuiteRun

DEFAULTS = {
    "smoke": {"temperatures": (1.0,), "instrument_every": 1},
    "quick": {"temperatures": (0.0, 1.0), "num_prompts": 8, "max_new_tokens": 24, "instrument_every": 1},
    "paper": {"temperatures": (0.0, 0.5, 1.0), "num_prompts": 24, "repeats": 1, "instrument_every": 1},
}


def test_floor(benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int) -> None:
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=num_draft_tokens)
