"""One measuring run at a time on a machine: a lock file that every run of this user holds while it measures.

The file has a line for each run that measures now: its process and when it started. A run alone empties the file first. So
two lines or more mean that runs overlapped. Processes that a run starts inherit its lock through the environment.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

VARIABLE = "SPECHEAT_LOCK"  # in the environment: another lock file
HOLDER = "SPECHEAT_LOCK_HOLDER"  # in the environment of what a run starts: the lock file that this run holds

# The descriptor of the run's lock. Closing any other descriptor of this file in this process would release the lock.
_held: int | None = None


class MachineInUse(ValueError):
    """Another run measures on this machine. The message names it and the two ways out."""


def lock_file() -> Path:
    """Return where the lock of this machine and user lies; it does not depend on the checkout."""
    return Path(os.environ.get(VARIABLE) or Path(tempfile.gettempdir(), f"specheat-{os.getuid()}", "measuring"))


@contextmanager
def measuring(*, shared: bool = False) -> Iterator[None]:
    """Hold the machine's lock. A process that a run started has it already.

    Args:    shared: measure beside another run; the records of both are marked
    Raises:  MachineInUse: another run holds it
    """
    global _held
    path = lock_file()
    if os.environ.get(HOLDER) == str(path):
        yield
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
        except BlockingIOError:
            if not shared:
                raise MachineInUse(_in_use(_lines(file))) from None
        # Shared from here on: it keeps others from the exclusive lock, and lets those join that accept a shared machine.
        fcntl.lockf(file, fcntl.LOCK_SH)
        os.write(file, f"{os.getpid()} {datetime.now():%H:%M:%S}\n".encode())
        _held, os.environ[HOLDER] = file, str(path)
        yield
    finally:
        if _held == file:
            _held = None
            del os.environ[HOLDER]
            with suppress(BlockingIOError):  # another run still measures
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(file, 0)
        os.close(file)


def num_runs() -> int:
    """Return how many runs have measured at the same time as this one, itself included; 1 without a lock."""
    if _held is not None:
        return max(1, len(_lines(_held)))
    path = lock_file()
    if os.environ.get(HOLDER) != str(path) or not path.exists():
        return 1
    return max(1, len(path.read_bytes().splitlines()))


def _lines(file: int) -> list[bytes]:
    return os.pread(file, 1 << 16, 0).splitlines()


def _in_use(lines: list[bytes]) -> str:
    who = next((f" (pid {pid}, started {at})" for pid, _, at in (line.decode().partition(" ") for line in lines)), "")
    return (
        f"another Specheat run measures on this machine{who}: two runs at once would disturb each other's times; "
        "wait for it, or pass --shared-machine"
    )
