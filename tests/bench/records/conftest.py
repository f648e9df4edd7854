"""What tests of stored records share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that lets the disk take so many more bytes: of the last write a part, then nothing."""

    def fill(room: int) -> None:
        write, left = os.write, [room]

        def limited(file: int, content: bytes) -> int:
            taken = min(left[0], len(content))
            if taken == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= taken
            return write(file, content[:taken])

        monkeypatch.setattr(os, "write", limited)

    return fill
