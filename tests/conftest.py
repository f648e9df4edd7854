"""Tests that start pytest themselves must not look like a worker of pytest-xdist to it: it would measure nothing."""

import os

for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
    os.environ.pop(name, None)
