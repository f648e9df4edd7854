"""What holds for the whole run of tests.

Tests that start pytest themselves must not look like a worker of pytest-xdist to it: it would measure nothing.
They measure under a lock of their own, so that neither another worker nor a run of this machine's user stops them.
"""

import os
import tempfile

for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
    os.environ.pop(name, None)

LOCKS = tempfile.TemporaryDirectory(prefix="specheat-tests-")  # removed when this process ends
os.environ["SPECHEAT_LOCK"] = os.path.join(LOCKS.name, "measuring")
