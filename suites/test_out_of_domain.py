"""The same draft on other domains: is one of them easier at every temperature? `--prompts` names at least two domains."""

DOMAINS = ("instructions", "word_problems")
DEFAULTS = {
    "smoke": {"prompts": DOMAINS, "temperatures": (1.0,)},
    "quick": {"prompts": DOMAINS, "temperatures": (0.0, 1.0), "num_prompts": 8},
    "paper": {"prompts": DOMAINS},
}


def test_out_of_domain(measure) -> None:
    measure()
