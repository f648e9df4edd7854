"""The same pair, prompts, temperatures and draft length on several backends: how fast is each, and is it lossless?"""

import pytest

from bench.options.settings import PRESETS

# Without the pair's own options, such as a restricted head of the draft: all engines are to draft alike.
DEFAULTS = {preset: {"backend_options": ()} for preset in PRESETS}


@pytest.mark.compares_backends
def test_backends(measure) -> None:
    measure()
