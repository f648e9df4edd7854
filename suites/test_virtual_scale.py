"""Virtual scale: the acceptance of the pair at the cost of a larger target. `--inflate` names its shapes; none is one of them.

The inflated target computes the same distribution (docs/suites.md), so alpha stays and c falls: gamma against measured c.
"""

DEFAULTS = {
    "smoke": {"inflations": (None, "0.5b"), "temperatures": (1.0,), "instrument_every": 1},
    "quick": {
        "inflations": (None, "0.5b"),
        "temperatures": (0.0, 1.0),
        "num_prompts": 6,
        "max_new_tokens": 24,
        "instrument_every": 2,
    },
    "paper": {"inflations": (None, "0.5b", "1b"), "temperatures": (0.0, 0.5, 1.0), "num_prompts": 24, "repeats": 1},
}


def test_virtual_scale(measure) -> None:
    measure()
