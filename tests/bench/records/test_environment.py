"""The environment record: what it holds, what it must not hold, and which two of them compare."""

from __future__ import annotations

import getpass
import os
import platform
import re
import subprocess
import sys

import pytest

from bench.errors import IncomparableResults
from bench.records import environment
from bench.records.decoding import Scalar
from bench.records.environment import COMPARABLE_KEYS, MACHINE_KEYS, check_comparable, machine_slug


@pytest.fixture(scope="module")
def captured() -> dict[str, Scalar]:
    return environment.capture("cpu")


def test_a_capture_is_flat_and_holds_what_a_reader_needs(captured: dict[str, Scalar]) -> None:
    assert all(value is None or isinstance(value, (str, int, float, bool)) for value in captured.values())
    assert captured["device_type"] == "cpu"
    assert captured["python"] == platform.python_version()
    assert captured["cpu_model"]
    assert captured["num_usable_cores"] == len(os.sched_getaffinity(0))
    assert {"num_logical_cores", "ram_gib", "ld_preload", "numpy", "harness_commit", "harness_dirty"} <= captured.keys()
    assert "timer" in captured  # from pyperf


def test_a_capture_names_no_folder_no_user_and_no_host(captured: dict[str, Scalar]) -> None:
    for key, value in captured.items():
        words = re.split(r"[\s=:,;]+", str(value))
        assert not any(word.startswith("/") for word in words), key
        assert platform.node() not in words, key
        assert getpass.getuser() not in words, key


def test_capturing_imports_no_torch() -> None:
    code = "import sys, bench.records.environment; bench.records.environment.capture('cuda'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("env", "slug"),
    [
        ({"cpu_model": "AMD EPYC", "num_physical_cores": 2, "device_type": "cpu"}, "amd-epyc-2c"),
        (
            {"cpu_model": "Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz", "num_physical_cores": 56} | {"device_type": "cpu"},
            "intel-xeon-platinum-8480-56c",
        ),
        (
            {"cpu_model": "AMD EPYC 9B14 96-Core Processor", "num_physical_cores": None, "num_logical_cores": 8}
            | {"device_type": "cpu"},
            "amd-epyc-9b14-8c",
        ),
        (
            {"cpu_model": "AMD EPYC", "num_physical_cores": 2, "device_type": "cpu", "cpu_vectors": "avx512_bf16"},
            "amd-epyc-2c",
        ),
        (
            {"cpu_model": "AMD EPYC", "num_physical_cores": 2, "device_type": "cpu", "cpu_vectors": "avx2"},
            "amd-epyc-2c-avx2",
        ),
        ({"gpu_name": "NVIDIA H200", "cpu_model": "AMD EPYC", "device_type": "cuda"}, "nvidia-h200"),
        ({"cpu_model": "AMD EPYC", "num_physical_cores": 2, "device_type": "cuda"}, "amd-epyc-2c-cuda"),
    ],
)
def test_a_machine_has_a_short_folder_name(env: dict[str, Scalar], slug: str) -> None:
    assert machine_slug(env) == slug


def test_an_environment_compares_with_itself_and_with_other_library_versions(captured: dict[str, Scalar]) -> None:
    check_comparable(captured, captured)
    check_comparable(captured, captured | {"torch": "1.0", "load_avg_1min": 99.0})


@pytest.mark.parametrize("key", COMPARABLE_KEYS)
def test_a_difference_in_any_comparable_key_is_refused_with_both_values(key: str, captured: dict[str, Scalar]) -> None:
    with pytest.raises(IncomparableResults, match=rf"{key} \(.* against other\)$"):
        check_comparable(captured, captured | {key: "other"})


def test_a_missing_key_is_a_difference() -> None:
    with pytest.raises(IncomparableResults, match=r"gpu_name \(NVIDIA H200 against absent\)"):
        check_comparable({"gpu_name": "NVIDIA H200"}, {})


def test_two_backends_compare_on_one_machine_whatever_they_preload(captured: dict[str, Scalar]) -> None:
    check_comparable(captured, captured | {"ld_preload": "libiomp5.so"}, keys=MACHINE_KEYS)
