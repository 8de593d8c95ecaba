"""The state of an NVIDIA GPU, by NVIDIA's management library, read only.

nvidia-ml-py is NVIDIA's own binding and has no dependencies; without it, or without a driver, there is no GPU to read.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Bits of nvmlClocksEventReasons (nvml.h). Idle, application clocks, sync boost and display clocks are no throttling.
REASONS = {
    0x01: "idle",
    0x02: "application clocks",
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability limit",
}
THROTTLING = frozenset(name for bit, name in REASONS.items() if bit not in (0x01, 0x02, 0x10, 0x100))


@dataclass(frozen=True)
class GpuState:
    """A GPU at one moment; None for what it does not tell.

    Args:
        sm_mhz: Clock of its processors.
        memory_mhz: Clock of its memory.
        temperature_c: Of the chip.
        power_w: Drawn.
        processes: That compute on it, this one too.
        reasons: Why its clocks are not higher, of REASONS.
    """

    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    processes: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def is_silent(self) -> bool:
        """Whether it told nothing at all, as a GPU that went away."""
        told = (self.sm_mhz, self.memory_mhz, self.temperature_c, self.power_w, self.processes)
        return all(value is None for value in told)


class Gpu:
    """One GPU.

    Args:
        library: The module pynvml, initialised.
        handle: NVML's, of the device.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def read(self) -> GpuState:
        """Its state of this moment. What it refuses to tell is None, for good or because it went away."""
        nvml, handle = self._library, self._handle
        power_mw = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        processes = self._ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        bits = self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        if bits is None:  # drivers before 535 know it by its old name only
            bits = self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return GpuState(
            sm_mhz=self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            memory_mhz=self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            temperature_c=self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            power_w=None if power_mw is None else power_mw / 1000,
            processes=None if processes is None else len(processes),
            reasons=tuple(name for bit, name in REASONS.items() if bit & (bits or 0)),
        )

    def describe(self) -> dict[str, Any]:
        """What does not change during a run: driver, limits."""
        nvml, handle = self._library, self._handle
        limit_mw = self._ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        return {
            "name": self._ask(lambda: nvml.nvmlDeviceGetName(handle)),
            "driver": self._ask(nvml.nvmlSystemGetDriverVersion),
            "sm_mhz_most": self._ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "memory_mhz_most": self._ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            "power_limit_w": None if limit_mw is None else limit_mw / 1000,
        }

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (self._library.NVMLError, AttributeError):  # AttributeError: a pynvml older than the question
            return None


def open_gpu(index: int = 0) -> tuple[Gpu | None, str | None]:
    """PyTorch's CUDA device of this number.

    Returns:
        The GPU; or None and the reason in words.
    """
    import torch

    if not torch.cuda.is_available():
        return None, "PyTorch sees no GPU"
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None, "pip install nvidia-ml-py to watch the GPU"
    try:
        # NVML numbers GPUs otherwise than CUDA, and knows nothing of CUDA_VISIBLE_DEVICES: only the UUID is sure.
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        library.nvmlInit()
        return Gpu(library, library.nvmlDeviceGetHandleByUUID(uuid)), None
    except RuntimeError as error:  # CUDA's
        return None, f"the GPU does not answer: {error}"
    except (library.NVMLError, OSError) as error:
        return None, f"NVIDIA's management library: {error}"
