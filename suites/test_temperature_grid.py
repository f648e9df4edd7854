"""Gamma and alpha over decoding temperatures, for every backend, acceptance rule and draft length asked for."""

from bench.measurement.suite_run import SuiteRun


def test_temperature_grid(benchmark, suite_run: SuiteRun, temperature: float, rule: str, num_draft_tokens: int) -> None:
    suite_run.measure(benchmark, temperature=temperature, rule=rule, num_draft_tokens=num_draft_tokens)
