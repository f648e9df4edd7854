"""How much of "temperature hurts" is the rule that judges a draft token? The same models under every rule, over temperatures.

`typical` is lossy by design: its gamma is shown, marked, and never the best.
"""

RULES = ("rejection", "one_hot", "exact_match", "block", "typical")
DEFAULTS = {
    "smoke": {"rules": ("rejection", "exact_match"), "temperatures": (1.0,)},
    "quick": {"rules": RULES, "temperatures": (1.0,), "num_prompts": 8},
    "paper": {"rules": RULES},
}


def test_acceptance_rules(measure) -> None:
    measure()
