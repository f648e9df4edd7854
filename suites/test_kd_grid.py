"""KD temperature against decode temperature: gamma and counted alpha of drafts that were distilled at several temperatures.

`--draft` names at least two drafts; the default pair comes with some. The full matrix of alpha (every decode temperature, draft
and seed) is computed without a decoder and is cheaper: `specheat kd-matrix`.
"""

import pytest

from bench.options.settings import Settings

START = "embedded:smollm2/draft"
OFFLINE, ONLINE = (
    tuple(f"embedded:smollm2/{arm}-t{temperature}" for temperature in ("0", "0.2", "0.4", "0.6", "0.8", "1"))
    for arm in ("offline", "online")
)
DEFAULTS = {
    "smoke": {"drafts": (START, OFFLINE[0]), "temperatures": (1.0,)},
    "quick": {"drafts": (START, OFFLINE[0], OFFLINE[-1]), "temperatures": (0.0, 1.0), "num_prompts": 8},
    "paper": {"drafts": (START, *OFFLINE, *ONLINE)},
}


def test_kd_grid(measure, settings: Settings) -> None:
    if len(settings.drafts) < 2:
        pytest.skip("compares drafts: name at least two with --draft (`specheat kd-matrix` trains them)")
    measure()
