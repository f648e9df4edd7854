"""Gamma and alpha over decoding temperatures, for every requested backend, acceptance rule and draft length."""

# Enough for a gamma to 5 % and for LOSSLESS, on the embedded pair.
DEFAULTS = {"quick": {"num_prompts": 56, "max_new_tokens": 48, "baseline_prompts": 24}}


def test_temperature_grid(measure) -> None:
    measure()
