"""The same pair, prompts, temperatures and draft length on several backends: how fast is each, and is it lossless?"""

import pytest


@pytest.mark.compares_backends
def test_backends(measure) -> None:
    measure()
