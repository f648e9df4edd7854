"""The environment record: what it holds, what it must not hold, and which two of them compare."""

from __future__ import annotations

import getpass
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.errors import IncomparableResults
from bench.records import environment
from bench.records.decoding import Scalar
from bench.records.environment import (
    COMPARABLE_KEYS,
    MACHINE_KEYS,
    available_memory_bytes,
    check_comparable,
    machine_slug,
)


@pytest.fixture(scope="module")
def captured() -> dict[str, Scalar]:
    return environment.capture("cpu")


class FakeNvmlError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stands in for NVML on a machine of two cards, of which the second tells neither its limit nor its clocks."""

    def unsupported(*_: object) -> int:
        raise FakeNvmlError

    fake = SimpleNamespace(
        NVMLError=FakeNvmlError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-a": 0, "GPU-b": 1}[uuid],
        nvmlDeviceGetName=lambda handle: (b"NVIDIA H200", "NVIDIA A100-SXM4-40GB")[handle],
        nvmlSystemGetDriverVersion=lambda: b"570.1",
        nvmlDeviceGetClockInfo=lambda handle, clock: 1980 if handle == 0 else unsupported(),
        nvmlDeviceGetMaxClockInfo=lambda handle, clock: 1980 if handle == 0 else unsupported(),
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000 if handle == 0 else unsupported(),
        nvmlDeviceGetTemperature=lambda handle, sensor: 41,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x1 | 0x4 | 0x40 if handle == 0 else unsupported(),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment._nvml.cache_clear()
    yield fake
    environment._nvml.cache_clear()


def git(folder: Path, *arguments: str) -> None:
    identity = {f"GIT_{who}_{what}": "x@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | identity
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=environ)


def make_checkout(folder: Path) -> None:
    (folder / "results").mkdir(parents=True)
    for name in ("code.py", "results/table.md"):
        (folder / name).write_text("first")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")


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


def test_preloaded_libraries_are_recorded_without_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/somewhere/libiomp5.so:/usr/lib/libtcmalloc.so.4")
    assert environment._threads()["ld_preload"] == "libiomp5.so libtcmalloc.so.4"


def test_threads_are_asked_of_torch_only_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert "torch_num_threads" not in environment._threads()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 3))
    assert environment._threads()["torch_num_threads"] == 3


@pytest.mark.parametrize(
    ("cores", "written"), [((0,), "0"), ((0, 1), "0-1"), ((0, 2, 3, 4, 7), "0,2-4,7"), ((5, 6), "5-6")]
)
def test_affinity_is_written_as_ranges(cores: tuple[int, ...], written: str) -> None:
    assert ",".join(environment._ranges(cores)) == written


def test_the_commit_is_that_of_the_checkout_and_dirty_after_an_edit(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    clean = environment._commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{10}", str(clean["harness_commit"]))
    assert clean["harness_dirty"] is False
    (tmp_path / "code.py").write_text("second")
    assert environment._commit(tmp_path) == clean | {"harness_dirty": True}


def test_new_results_do_not_make_a_checkout_dirty(tmp_path: Path) -> None:
    make_checkout(tmp_path)
    (tmp_path / "results/table.md").write_text("second")
    (tmp_path / "results/new.json").write_text("{}")
    assert environment._commit(tmp_path)["harness_dirty"] is False


def test_the_commit_is_unknown_without_a_repository_and_inside_another_one(tmp_path: Path) -> None:
    unknown = {"harness_commit": "unknown", "harness_dirty": None}
    installed = tmp_path / "site-packages"
    installed.mkdir()
    assert environment._commit(installed) == unknown
    make_checkout(tmp_path)
    assert environment._commit(installed) == unknown


def test_the_commit_is_unknown_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._commit(tmp_path)["harness_commit"] == "unknown"


def test_backends_of_another_checkout_have_a_commit_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkout(tmp_path)
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "__init__.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "backends")
    monkeypatch.setitem(sys.modules, "backends", SimpleNamespace(__file__=str(tmp_path / "backends/__init__.py")))
    (tmp_path / "code.py").write_text("of no matter here")
    commit = environment._commit(tmp_path)["harness_commit"]
    assert environment._foreign_backends() == {"backends_commit": commit, "backends_dirty": False}
    (tmp_path / "backends" / "__init__.py").write_text("changed")
    assert environment._foreign_backends() == {"backends_commit": commit, "backends_dirty": True}


def test_our_own_backends_have_no_commit_beside_that_of_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    own = environment.REPOSITORY / "backends" / "__init__.py"
    monkeypatch.setitem(sys.modules, "backends", SimpleNamespace(__file__=str(own)))
    assert environment._foreign_backends() == {}
    monkeypatch.delitem(sys.modules, "backends")
    assert environment._foreign_backends() == {}


@pytest.mark.parametrize(
    ("env", "slug"),
    [
        ({"cpu_model": "AMD EPYC", "num_physical_cores": 2, "device_type": "cpu"}, "amd-epyc-2c"),
        (
            {"cpu_model": "Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz", "num_physical_cores": 56}
            | {"device_type": "cpu"},
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


@pytest.mark.usefixtures("nvml")
def test_a_gpu_is_described_by_nvml() -> None:
    assert environment._gpu("cuda") == {
        "gpu_name": "NVIDIA H200",
        "gpu_driver": "570.1",
        "gpu_sm_clock_mhz": 1980,
        "gpu_sm_clock_max_mhz": 1980,
        "gpu_memory_clock_mhz": 1980,
        "gpu_power_limit_w": 700.0,
        "gpu_temperature_c": 41,
    }


@pytest.mark.usefixtures("nvml")
def test_what_a_card_does_not_tell_is_left_out() -> None:
    expected = {"gpu_name": "NVIDIA A100-SXM4-40GB", "gpu_driver": "570.1", "gpu_temperature_c": 41}
    assert environment._gpu("cuda:1") == expected
    assert environment.throttle_reasons("cuda:1") == ()


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize("visible", ["1", "1,0", "GPU-b"])
def test_the_card_is_the_one_that_cuda_sees(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment._gpu("cuda:0")["gpu_name"] == "NVIDIA A100-SXM4-40GB"


@pytest.mark.usefixtures("nvml")
def test_throttle_reasons_leave_out_idleness() -> None:
    assert environment.throttle_reasons("cuda") == ("power cap", "thermal (hardware)")
    assert environment.throttle_reasons("cpu") == ()


def test_without_nvml_a_gpu_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    environment._nvml.cache_clear()
    assert environment._gpu("cuda") == {}
    assert environment.throttle_reasons("cuda") == ()


def test_available_memory_respects_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_CGROUP", tmp_path)
    unlimited = available_memory_bytes()
    assert unlimited > 0
    for name, content in (("max", "5000"), ("current", "3000"), ("stat", "anon 1\ninactive_file 700\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert available_memory_bytes() == 2700
    (tmp_path / "memory.max").write_text("max\n")
    # Half, because other processes take and give memory between the two calls.
    assert available_memory_bytes() > unlimited / 2
