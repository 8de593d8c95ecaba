"""The watch: counters of this machine where it has them, words for what disturbs, and no crash elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vexport.bench import cgroup, nvml, watch
from vexport.bench.nvml import Gpu, GpuState
from vexport.bench.watch import Conditions, Reading, Watch, between, summarise, why_disturbed


def spin(seconds: float) -> None:
    import time

    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux tells processor times in /proc/stat")
def test_own_work_is_not_the_load_of_others() -> None:
    reader = Watch()
    before = reader.read()
    spin(0.5)
    found = between(before, reader.read())
    assert found.own_s == pytest.approx(0.5, abs=0.1)
    assert found.others_s is not None
    assert -0.1 < found.others_s < found.wall_s * found.cores - 0.4
    assert reader.cost_ms > 0


def test_a_system_that_tells_nothing_still_has_its_own_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, name in ((watch, "PROC"), (watch, "CPUS"), (cgroup, "ROOT")):
        monkeypatch.setattr(module, name, tmp_path / "none")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    reader = Watch()
    found = between(reader.read(), reader.read())
    assert found.wall_s >= 0
    assert (found.others_s, found.steal_s, found.cpu_mhz, found.cpu_throttles, found.quota_s) == (None,) * 5
    assert why_disturbed([found]) == []


def write_machine(folder: Path, *, busy: int, steal: int, throttled_us: int, mhz: int, hot: int) -> None:
    """Two usable cores, a third that is not ours; ticks of 10 ms."""
    lines = [f"cpu{index} {busy} 0 0 900 5 0 0 {steal} 0 0" for index in range(3)]
    (folder / "stat").write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5 0"]), encoding="ascii")
    (folder / "cpu.stat").write_text(f"usage_usec 5\nthrottled_usec {throttled_us}\n", encoding="ascii")
    for index in range(3):
        core = folder / f"cpu{index}"
        (core / "cpufreq").mkdir(parents=True, exist_ok=True)
        (core / "cpufreq" / "scaling_cur_freq").write_text(f"{mhz}000\n", encoding="ascii")
        (core / "thermal_throttle").mkdir(exist_ok=True)
        (core / "thermal_throttle" / "core_throttle_count").write_text(f"{hot}\n", encoding="ascii")


def test_counters_are_read_where_linux_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, name in ((watch, "PROC"), (watch, "CPUS"), (cgroup, "ROOT")):
        monkeypatch.setattr(module, name, tmp_path)
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "none")
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1}, raising=False)
    monkeypatch.setattr("os.sysconf", lambda _name: 100)
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    own = iter([0.0, 4.0])
    monkeypatch.setattr("time.process_time", lambda: next(own))
    reader = Watch()
    write_machine(tmp_path, busy=100, steal=0, throttled_us=0, mhz=3000, hot=1)
    before = reader.read()
    write_machine(tmp_path, busy=500, steal=50, throttled_us=2_500_000, mhz=2400, hot=3)
    found = between(before, reader.read())
    assert (found.wall_s, found.own_s, found.cores) == (10, 4, 2)
    assert (found.cpu_mhz, found.cpu_throttles, found.quota_s) == (2400, 4, 2.5)
    assert found.others_s == pytest.approx(4)
    assert found.steal_s == pytest.approx(1)
    assert why_disturbed([found]) == [
        "throttling: the processor was slowed down for heat, 4 times",
        "throttling: the container's limit held back 38% of the processor time asked for",
        "load: other processes kept 0.4 of 2 cores busy",
        "load: the virtual machine's host took 5% of the processor time",
    ]


def test_a_frequency_is_read_from_cpuinfo_where_there_is_no_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watch, "PROC", tmp_path)
    monkeypatch.setattr(watch, "CPUS", tmp_path)
    (tmp_path / "cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2000.5\n\nprocessor\t: 1\ncpu MHz\t: 1000.5\n")
    assert watch.cpu_mhz([0, 1]) == 2000.5
    assert watch.cpu_mhz([1]) == 1000.5
    (tmp_path / "cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2000.5\n\nprocessor\t: 4\ncpu MHz\t: 1000.5\n")
    assert watch.cpu_mhz([4]) == 1000.5  # cores 1 to 3 are offline
    assert watch.cpu_mhz([1]) is None


def test_cores_that_rest_do_not_make_a_frequency(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One of four cores works, at 3 GHz; the others are at 800 MHz, or at 2 GHz since somebody used them."""
    monkeypatch.setattr(watch, "PROC", tmp_path)
    monkeypatch.setattr(watch, "CPUS", tmp_path)
    seen = []
    for resting in (800, 2000):
        for index in range(4):
            folder = tmp_path / f"cpu{index}" / "cpufreq"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "scaling_cur_freq").write_text(f"{3000 if index == 2 else resting}000\n", encoding="ascii")
        seen.append(Conditions(1.0, 1.0, 4, cpu_mhz=watch.cpu_mhz(range(4))))
    assert [one.cpu_mhz for one in seen] == [3000, 3000]
    assert why_disturbed(seen) == []


QUIET = Conditions(1.0, 1.0, 4, 0.1, 0.0, 3000.0, 0, 0.0)


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ([QUIET, QUIET], []),
        ([], []),
        ([Conditions(1.0, 0.5)], []),  # nothing is known
        # Ticks of 10 ms: one turn may look negative, all together do not.
        ([Conditions(0.1, 0.1, 1, -0.01), Conditions(0.1, 0.1, 1, 0.01)], []),
        ([QUIET, Conditions(1.0, 1.0, 4, 2.0)], ["load: other processes kept 1.1 of 4 cores busy"]),
        # Of 64 cores three that others use are few, unless we use all the others.
        ([Conditions(1.0, 4.0, 64, 3.0)], []),
        ([Conditions(1.0, 61.0, 64, 3.0)], ["load: other processes kept 3.0 of 64 cores busy"]),
        ([Conditions(1.0, 63.5, 64, 0.4)], []),
        ([Conditions(1.0, 1.93, 2, 0.05)], []),
        ([Conditions(1.0, 1.85, 2, 0.15)], ["load: other processes kept 0.1 of 2 cores busy"]),
        # Two threads on a machine of 64 cores, at half of their speed by a limit.
        (
            [Conditions(10.0, 10.0, 64, 0.0, quota_s=10.0)],
            ["throttling: the container's limit held back 50% of the processor time asked for"],
        ),
        ([Conditions(10.0, 10.0, 64, 0.0, quota_s=0.1)], []),
        ([Conditions(10.0, 0.0, 64, 0.0, quota_s=0.0)], []),
        (
            [QUIET, Conditions(1.0, 1.0, 4, 0.1, cpu_mhz=2500.0)],
            ["frequency: the processor's clock lay between 2500 and 3000 MHz"],
        ),
        (
            [Conditions(1.0, 1.0, gpu=GpuState(1980)), Conditions(1.0, 1.0, gpu=GpuState(1200))],
            ["frequency: the GPU's clock lay between 1200 and 1980 MHz"],
        ),
        (
            [
                Conditions(1.0, 1.0, gpu=GpuState(reasons=("idle", "application clocks", "power cap"))),
                Conditions(1.0, 1.0, gpu=GpuState(reasons=("power cap", "thermal slowdown by hardware"))),
                Conditions(1.0, 1.0, gpu=GpuState(processes=3)),
            ],
            [
                "throttling: the GPU's power cap in 2 of 3 rounds",
                "throttling: the GPU's thermal slowdown by hardware in 1 of 3 rounds",
                "load: 3 processes use the GPU",
                "watch: the GPU told nothing of itself in 2 of 3 rounds",
            ],
        ),
        (
            [Conditions(1.0, 1.0, gpu=GpuState(1980)), Conditions(1.0, 1.0, gpu=GpuState(reasons=("idle",)))],
            ["watch: the GPU told nothing of itself in 1 of 2 rounds"],
        ),
        ([Conditions(1.0, 1.0, gpu=GpuState()), Conditions(1.0, 1.0, gpu=GpuState())], []),  # it never did
    ],
)
def test_disturbances_in_words(conditions: list[Conditions], said: list[str]) -> None:
    assert why_disturbed(conditions) == said


def test_a_summary_adds_up() -> None:
    gpu = GpuState(1980, 2619, 50, 300.0, 1, ("power cap",))
    found = summarise([QUIET, Conditions(3.0, 1.0, 4, 0.7, 0.8, 2900.0, 2, 0.0, gpu)])
    assert found["turns"] == 2
    assert found["own_cores"] == 0.5
    assert found["other_cores"] == pytest.approx(0.2)
    assert found["steal"] == pytest.approx(0.05)
    assert found["cpu_mhz"] == [2900, 3000]
    assert found["cpu_throttles"] == 2
    assert (found["gpu_sm_mhz"], found["gpu_power_w"], found["gpu_reasons"]) == (
        [1980, 1980],
        [300, 300],
        {"power cap": 1},
    )


def test_counters_that_stand_still_are_no_quiet_machine() -> None:
    """Sandboxes show a /proc/stat that never changes: others would have taken minus our own time."""
    found = summarise([Conditions(1.0, 0.9, 2, -0.9, 0.0), Conditions(1.0, 0.9, 2, -0.9, 0.0)])
    assert (found["other_cores"], found["steal"], found["own_cores"]) == (None, None, 0.9)
    told = summarise([Conditions(1.0, 0.9, 2, -0.01, 0.0)])
    assert (told["other_cores"], told["steal"]) == (0, 0)


def test_a_reason_at_either_end_of_a_turn_counts() -> None:
    before = Reading(0.0, 0.0, gpu=GpuState(reasons=("idle",)))
    after = Reading(1.0, 1.0, gpu=GpuState(1500, reasons=("power cap",)))
    found = between(before, after).gpu
    assert found is not None
    assert (found.sm_mhz, found.reasons) == (1500, ("idle", "power cap"))
    assert between(Reading(0.0, 0.0), after).gpu == after.gpu


class FakeNvml:
    """NVIDIA's binding, as far as it is used, on a GPU that is power capped and tells no temperature."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gone = False

    def nvmlInit(self) -> None:  # noqa: N802
        if self.gone:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        if self.gone:
            raise self.NVMLError("GPU is lost")
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return {1: 2100, 2: 2619}[kind]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 310_500

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[object]:  # noqa: N802
        return [object()]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return 0x4 | 0x2

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "999.1"

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return "Example GPU"


class TestGpu:
    def test_what_it_refuses_is_none(self) -> None:
        library = FakeNvml()
        gpu = Gpu(library, "handle")
        assert gpu.read() == GpuState(1980, 2619, None, 310.5, 1, ("application clocks", "power cap"))
        # The fake has no nvmlDeviceGetEnforcedPowerLimit, as an older binding may have none.
        facts: dict[str, Any] = gpu.describe()
        assert facts == {
            "name": "Example GPU",
            "driver": "999.1",
            "sm_mhz_most": 2100,
            "memory_mhz_most": 2619,
            "power_limit_w": None,
        }
        library.gone = True
        assert gpu.read().sm_mhz is None

    def test_older_drivers_know_the_reasons_by_another_name(self) -> None:
        class Older(FakeNvml):
            def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
                raise self.NVMLError("Function Not Found")

            def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
                return 0x20

        assert Gpu(Older(), "handle").read().reasons == ("thermal slowdown by software",)

    def test_a_gpu_that_fails_costs_the_watch_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(_index: int) -> None:
            raise RuntimeError("CUDA error: device not ready")

        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", fails)
        assert nvml.open_gpu() == (None, "the GPU does not answer: CUDA error: device not ready")

    def test_it_is_found_by_uuid(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = FakeNvml()
        monkeypatch.setitem(sys.modules, "pynvml", library)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: SimpleNamespace(uuid="12ab"))
        gpu, why_not = nvml.open_gpu()
        assert gpu is not None
        assert why_not is None
        assert library.asked == ["GPU-12ab"]
        assert Watch(gpu).read().gpu == gpu.read()
        library.gone = True
        assert nvml.open_gpu() == (None, "NVIDIA's management library: Driver Not Loaded")

    def test_without_the_binding_or_a_gpu_there_is_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert nvml.open_gpu() == (None, "PyTorch sees no GPU")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert nvml.open_gpu() == (None, "pip install nvidia-ml-py to watch the GPU")
