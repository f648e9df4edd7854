"""A temperature that changes in the middle of a generation: does acceptance follow the temperature of the moment?

Hot and cold are the hottest and the coldest requested temperature above 0. Changing schedules are compared with the constant
ones: the same places in the generation, at the same temperature, after another beginning.
"""

import pytest

from bench.measurement.suite_run import SuiteRun

DEFAULTS = {
    "smoke": {"temperatures": (0.25, 1.0)},
    "quick": {"temperatures": (0.25, 1.0), "num_prompts": 8, "num_draft_tokens": (2,), "instrument_every": 1},
    "paper": {"temperatures": (0.25, 1.0), "num_draft_tokens": (2, 4), "instrument_every": 1},
}
ORDERS = (("hot",), ("cold",), ("hot", "cold"), ("cold", "hot"))


@pytest.mark.parametrize("order", ORDERS, ids="_then_".join)
def test_dynamic_temperature(benchmark, suite_run: SuiteRun, order: tuple[str, ...], rule: str, num_draft_tokens: int) -> None:
    settings = suite_run.settings
    sampled = [temperature for temperature in settings.temperatures if temperature > 0]
    if len(sampled) < 2:
        pytest.skip("needs two temperatures above 0, because tokens at T = 0 have another kind of certificate")
    if settings.draft_temperatures != (None,):
        pytest.skip("the draft follows the temperature of the moment: leave --draft-temperature out")
    temperatures = {"hot": max(sampled), "cold": min(sampled)}
    switch = (settings.max_new_tokens + 1) // 2
    schedule = tuple((half * switch, temperatures[name]) for half, name in enumerate(order))
    hottest = max(temperature for _, temperature in schedule)
    suite_run.measure(benchmark, temperature=hottest, rule=rule, num_draft_tokens=num_draft_tokens, schedule=schedule)
