"""What a latency was measured on. Whatever this system does not tell is None."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from vexport.bench.cgroup import limit_cores
from vexport.bench.nvml import open_gpu
from vexport.bench.watch import cpu_mhz
from vexport.deps import installed_version, tool_versions

CPUINFO = Path("/proc/cpuinfo")
CPUS = Path("/sys/devices/system/cpu")
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")

# Backends that need not be installed: told where they are.
OPTIONAL = ("tensorrt", "tensorrt-rtx", "openvino", "nvidia-ml-py")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_TF32_OVERRIDE",
)


def describe_environment() -> dict[str, Any]:
    """CPU, operating system, versions, load and GPUs, as plain values."""
    return {
        "cpu": cpu_name(),
        "logical_cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "cpu_quota_cores": limit_cores(),
        "cpu_mhz": cpu_mhz(range(os.cpu_count() or 1)),
        "cpu_governor": _read(CPUS / "cpu0" / "cpufreq" / "scaling_governor"),
        "smt": {"0": False, "1": True}.get(_read(CPUS / "smt" / "active") or ""),
        "virtual_machine": is_virtual_machine(),
        "clock_source": _read(CLOCK_SOURCE),  # others than tsc cost a call into the kernel each time
        "torch_threads": _torch_threads(),
        "variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": tool_versions("torch", "onnxruntime", "numpy", *_installed(OPTIONAL)),
        "load_average": load_average(),
        "gpus": gpu_names(),
        "gpu": _gpu_facts(),
    }


def cpu_name() -> str | None:
    """Name of the processor, as the system gives it."""
    try:
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "hardware") and value.strip():
                return value.strip()
    except OSError:
        pass  # not Linux
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            name = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            name = ""
        if name:
            return name
    return platform.processor() or platform.machine() or None


def is_virtual_machine() -> bool | None:
    """Whether a hypervisor stands between us and the processor: frequencies are then often nominal ones."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return None if flags is None else "hypervisor" in flags


def usable_cores() -> int | None:
    """Logical cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count()


def load_average() -> list[float] | None:
    """Runnable processes over the last 1, 5 and 15 minutes."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def gpu_names() -> list[str]:
    """CUDA devices that PyTorch can use."""
    try:
        import torch

        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except (ImportError, OSError, RuntimeError, AssertionError):
        return []  # a broken driver is no reason to fail a CPU measurement


def _torch_threads() -> int | None:
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch.get_num_threads()


def _gpu_facts() -> dict[str, Any] | None:
    """Driver, limits and CUDA versions of the first GPU; None without one."""
    try:
        import torch

        if not torch.cuda.is_available():
            return None
        gpu, why_not = open_gpu()
        facts = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    except (ImportError, OSError, RuntimeError, AssertionError):
        return None
    return {**facts, **(gpu.describe() if gpu else {"not_watched": why_not})}


def _installed(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if installed_version(name) != "missing"]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
