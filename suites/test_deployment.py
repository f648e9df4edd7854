"""What a user of the draft gets: whole calls with their prefill, time to first token, and when training has paid for itself.

For each draft whose card records its cost, the tables show after how many generated tokens the seconds saved exceed the seconds
of sampling and training. Engines that decode several prompts at once do so (`--concurrency`), others decode one.
"""

import pytest

from bench.protocols import Backend, Concurrent

DEFAULTS = {
    "smoke": {"temperatures": (1.0,)},
    "quick": {"temperatures": (0.0, 1.0), "num_prompts": 8, "max_new_tokens": 48},
    "paper": {"temperatures": (0.0, 0.5, 1.0), "max_new_tokens": 256},
}


def test_deployment(measure, backend: Backend, concurrency: int) -> None:
    if concurrency > 1 and not isinstance(backend, Concurrent):
        pytest.skip(f"{backend.name} decodes one prompt at a time")
    measure(concurrency=concurrency)
