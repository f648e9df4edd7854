"""Gamma and alpha over decoding temperatures, for every requested backend, acceptance rule and draft length."""

from bench.options.settings import Stopping

# On the embedded pair this gives each gamma to 5 %. 24 prompts have enough tokens for LOSSLESS.
DEFAULTS = {
    "quick": {
        "num_prompts": 56,
        "max_new_tokens": 48,
        "baseline_prompts": 24,
        "stopping": Stopping(precision=0.05, least_prompts=24),
    }
}


def test_temperature_grid(measure) -> None:
    measure()
