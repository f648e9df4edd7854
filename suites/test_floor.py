"""How far are the forwards from their linear layers alone, and the arms from their forwards?

Decoding a token reads every weight once; the linear layers that do so are the floor. After every pair, bare forwards and their
floors are timed one after the other.
"""

DEFAULTS = {
    "smoke": {"temperatures": (1.0,), "instrument_every": 1},
    "quick": {"temperatures": (0.0, 1.0), "num_prompts": 8, "max_new_tokens": 24, "instrument_every": 1},
    "paper": {"temperatures": (0.0, 0.5, 1.0), "num_prompts": 24, "repeats": 1, "instrument_every": 1},
}


def test_floor(measure) -> None:
    measure()
