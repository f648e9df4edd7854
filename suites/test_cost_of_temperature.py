"""Why is speculation slower when it is hot: do rounds cost more, or do they yield fewer tokens?

All generations have the same length, so that every temperature decodes at the same context lengths. The seconds per round of
each phase (draft, verify, accept, other) come from the replays. They and block efficiency explain the slow-down.
"""

DEFAULTS = {
    "smoke": {"temperatures": (0.0, 1.0), "end_token": "ignored", "instrument_every": 1},
    "quick": {"temperatures": (0.0, 0.5, 1.0), "end_token": "ignored", "num_prompts": 8, "instrument_every": 1},
    "paper": {"end_token": "ignored", "instrument_every": 1},
}


def test_cost_of_temperature(measure) -> None:
    measure()
