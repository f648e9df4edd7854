"""What a machine reports: threads and cores, memory within a container's limit, and the GPU that CUDA uses."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench.records import machine
from bench.records.runs import Conditions


class FakeNvmlError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stands in for NVML on a machine of two cards, the second of which reports neither its limit nor its clocks."""

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
    machine.nvml.cache_clear()
    yield fake
    machine.nvml.cache_clear()


def test_preloaded_libraries_are_recorded_without_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/somewhere/libiomp5.so:/usr/lib/libtcmalloc.so.4")
    assert machine.threads()["ld_preload"] == "libiomp5.so libtcmalloc.so.4"


def test_the_number_of_threads_is_read_from_torch_only_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert "torch_num_threads" not in machine.threads()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 3))
    assert machine.threads()["torch_num_threads"] == 3


@pytest.mark.parametrize(("cores", "written"), [((0,), "0"), ((0, 1), "0-1"), ((0, 2, 3, 4, 7), "0,2-4,7"), ((5, 6), "5-6")])
def test_affinity_is_written_as_ranges(cores: tuple[int, ...], written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
    assert machine.processor()["cpu_affinity"] == written
    assert machine.processor()["num_usable_cores"] == len(cores)


@pytest.mark.usefixtures("nvml")
def test_a_gpu_is_described_by_nvml() -> None:
    assert machine.gpu("cuda") == {
        "gpu_name": "NVIDIA H200",
        "gpu_driver": "570.1",
        "gpu_sm_clock_mhz": 1980,
        "gpu_sm_clock_max_mhz": 1980,
        "gpu_memory_clock_mhz": 1980,
        "gpu_power_limit_w": 700.0,
        "gpu_temperature_c": 41,
    }


@pytest.mark.usefixtures("nvml")
def test_readings_that_a_card_does_not_support_are_left_out() -> None:
    expected = {"gpu_name": "NVIDIA A100-SXM4-40GB", "gpu_driver": "570.1", "gpu_temperature_c": 41}
    assert machine.gpu("cuda:1") == expected
    assert machine.throttle_reasons("cuda:1") == ()


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize("visible", ["1", "1,0", "GPU-b"])
def test_the_card_is_the_one_that_cuda_sees(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpu("cuda:0")["gpu_name"] == "NVIDIA A100-SXM4-40GB"


@pytest.mark.usefixtures("nvml")
def test_throttle_reasons_leave_out_idleness() -> None:
    assert machine.throttle_reasons("cuda") == ("power cap", "thermal (hardware)")
    assert machine.throttle_reasons("cpu") == ()


@pytest.mark.usefixtures("nvml")
def test_conditions_hold_the_clock_and_the_throttling_of_a_gpu_that_reports_them() -> None:
    assert machine.conditions_since(None, "cuda") == Conditions(clock_mhz=1980, throttle=("power cap", "thermal (hardware)"))
    assert machine.conditions_since(None, "cuda:1") == Conditions()
    assert machine.conditions_since(None, "cpu") == Conditions()


def test_load_and_steal_are_differences_of_the_kernels_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of 10 ms: user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(psutil, "Process", OwnProcess)

    def reading(own_s: float, *ticks: int) -> machine.CpuUse | None:
        OwnProcess.seconds = own_s
        (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, ticks))} 7 0\ncpu0 1 2 3\n")
        return machine.cpu_use()

    before = reading(1.0, 100, 0, 100, 1000, 50, 0, 0, 10)
    assert before == pytest.approx((12.6, 2.0, 0.1, 1.0))
    reading(1.5, 160, 20, 110, 1080, 60, 5, 5, 30)  # 200 ticks later; 100 of them busy, of which 50 are ours
    assert machine.conditions_since(before, "cpu") == Conditions(cpu_s=2.1, steal_s=0.2, others_s=0.5)
    reading(2.5, 160, 20, 110, 1080, 60, 5, 5, 30)
    assert machine.conditions_since(before, "cpu").others_s == 0.0


class OwnProcess:
    """Stands in for this process and a child that has used a fifth as much."""

    seconds = 0.0

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def children(self, recursive: bool) -> list[OwnProcess]:
        return [OwnProcess(0.0)]

    def cpu_times(self) -> tuple[float, ...]:
        return (self.share * self.seconds / 2, self.share * self.seconds / 4, self.share * self.seconds / 4, 0.0, 99.0)


def test_without_the_kernels_counts_only_the_load_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert machine.cpu_use() is None
    assert machine.conditions_since(None, "cpu") == Conditions()


def test_without_nvml_nothing_is_recorded_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    machine.nvml.cache_clear()
    assert machine.gpu("cuda") == {}
    assert machine.throttle_reasons("cuda") == ()


def test_available_memory_respects_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    unlimited = machine.available_memory_bytes()
    assert unlimited > 0
    for name, content in (("max", "5000"), ("current", "3000"), ("stat", "anon 1\ninactive_file 700\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert machine.available_memory_bytes() == 2700
    (tmp_path / "memory.max").write_text("max\n")
    # Half, because other processes take and give memory between the two calls.
    assert machine.available_memory_bytes() > unlimited / 2
