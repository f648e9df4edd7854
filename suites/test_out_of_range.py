"""Decoding hotter than 1: does acceptance fall further, level out or rise again, and is the output still text?

Besides gamma and alpha, the tables show how degenerate the output is: repeated 4-grams, distinct tokens, the share that ends.
"""

DEFAULTS = {
    "smoke": {"temperatures": (1.0, 2.0)},
    "quick": {"temperatures": (0.0, 0.5, 1.0, 1.5, 2.0), "num_prompts": 8},
    "paper": {"temperatures": tuple(step / 4 for step in range(13))},
}


def test_out_of_range(measure) -> None:
    measure()
