"""Is the autoregressive arm as fast as the engine's own plain decode? If not, every gamma over it is inflated."""

from bench.measurement.suite_run import SuiteRun


def test_baseline_strength(benchmark, suite_run: SuiteRun) -> None:
    suite_run.measure_baseline(benchmark)
