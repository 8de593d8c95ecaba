"""The environment: plain values here, and no crash elsewhere."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from vexport.bench import cgroup, environment, watch


def test_it_is_plain_values() -> None:
    said = json.loads(json.dumps(environment.describe_environment(), allow_nan=False))
    assert said["usable_cores"] >= 1
    assert said["torch_threads"] == torch.get_num_threads()
    assert said["python"] == platform.python_version()
    assert {"vexport", "torch", "onnxruntime", "numpy"} <= set(said["versions"])
    assert "missing" not in said["versions"].values()
    assert (said["gpu"] is None) == (not torch.cuda.is_available())
    assert len(said["gpus"]) == torch.cuda.device_count()


@pytest.mark.parametrize("system", ["Darwin", "Windows", ""])
def test_it_never_crashes_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "none")
    monkeypatch.setattr(environment, "CPUS", tmp_path / "none")
    monkeypatch.setattr(environment, "CLOCK_SOURCE", tmp_path / "none")
    monkeypatch.setattr(watch, "PROC", tmp_path / "none")
    monkeypatch.setattr(watch, "CPUS", tmp_path / "none")
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "")
    monkeypatch.setattr(subprocess, "run", fails)
    monkeypatch.setattr(torch.cuda, "device_count", fails)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    said = environment.describe_environment()
    assert said["cpu"] is None
    assert said["load_average"] is None
    assert said["cpu_quota_cores"] is None
    assert said["gpus"] == []
    assert [said[name] for name in ("cpu_mhz", "cpu_governor", "smt", "virtual_machine")] == [None] * 4
    assert said["clock_source"] is None
    assert said["usable_cores"] == os.cpu_count()


def test_the_processor_is_read_from_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Example CPU @ 2.0GHz: rev 1\n", encoding="utf-8")
    monkeypatch.setattr(environment, "CPUINFO", info)
    assert environment.cpu_name() == "Example CPU @ 2.0GHz: rev 1"


def test_governor_threads_and_hypervisor_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu0" / "cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0" / "cpufreq" / "scaling_governor").write_text("powersave\n", encoding="ascii")
    (tmp_path / "smt").mkdir()
    (tmp_path / "smt" / "active").write_text("1\n", encoding="ascii")
    (tmp_path / "cpuinfo").write_text("model name\t: Example\nflags\t\t: fpu hypervisor sse\n", encoding="utf-8")
    monkeypatch.setattr(environment, "CPUS", tmp_path)
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "clock").write_text("hpet\n", encoding="ascii")
    monkeypatch.setattr(environment, "CLOCK_SOURCE", tmp_path / "clock")
    (tmp_path / "cpu.max").write_text("150000 100000\n", encoding="ascii")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "none")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    said = environment.describe_environment()
    assert (said["cpu_governor"], said["smt"], said["virtual_machine"]) == ("powersave", True, True)
    assert (said["clock_source"], said["cpu_quota_cores"]) == ("hpet", 1.5)
    assert said["variables"]["OMP_NUM_THREADS"] == "3"
    (tmp_path / "cpuinfo").write_text("model name\t: Example\nflags\t\t: fpu sse\n", encoding="utf-8")
    assert environment.is_virtual_machine() is False
