"""How long the parts of a run take against each other, for plans and for the remaining time."""

from __future__ import annotations

from bench.options.settings import Settings

ARMS_PER_PAIR = 1.8  # AR and SD, in units of one AR generation
INSTRUMENTS_PER_PAIR = 1.2  # the replay, and bare forwards
ARMS_PER_BASELINE = 3.8  # AR, AR again, the engine's own, which is often slower
SCORING_PER_PAIR = 0.1  # for the certificate, in pairs


def arms_per_pair(settings: Settings) -> float:
    """Return how long a pair takes with its share of the instruments, in AR generations."""
    return ARMS_PER_PAIR + (INSTRUMENTS_PER_PAIR / settings.instrument_every if settings.instrument_every else 0.0)


def baseline_work(settings: Settings, num_prompts: int) -> float:
    """Return how long the baseline of a record takes, in pairs."""
    return min(num_prompts, settings.baseline_prompts or num_prompts) * triple_work(settings)


def triple_work(settings: Settings) -> float:
    """Return how long a prompt of the baseline takes, in pairs."""
    return ARMS_PER_BASELINE / arms_per_pair(settings)
