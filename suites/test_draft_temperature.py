"""The draft at another temperature than the target: the free alternative to distilling a draft for each decode temperature."""

DEFAULTS = {
    "smoke": {"temperatures": (1.0,), "draft_temperatures": (0.7, 1.0)},
    "quick": {"temperatures": (1.0,), "draft_temperatures": (0.5, 1.0, 1.25), "num_prompts": 8},
    "paper": {"temperatures": (0.25, 0.5, 0.75, 1.0, 1.5), "draft_temperatures": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)},
}


def test_draft_temperature(measure, draft_temperature: float | None) -> None:
    measure(draft_temperature=draft_temperature)
