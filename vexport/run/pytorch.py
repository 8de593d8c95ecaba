"""PyTorch, eager: the reference that every other backend is compared with."""

from __future__ import annotations

import copy
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vexport.deps import tool_versions
from vexport.errors import InputError
from vexport.run.runner import (
    CALL_EXCLUDES,
    CALL_INCLUDES,
    Array,
    require_images,
    require_logits,
    require_threads,
)

PRECISIONS = {torch.float64: "FP64", torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16"}


class TorchRunner:
    """A module in evaluation mode, without gradients.

    The module given is never changed: where it trains, or has another dtype or device, a copy is taken.

    Args:
        module: Images (N, C, H, W) to logits (N, classes).
        input_size: C, H and W.
        name: For reports.
        device: Where to compute.
        dtype: What to compute in; logits are float64 for float64, else float32.
        threads: Of this process while it computes; None leaves PyTorch's. `close` puts back what was.

    Raises:
        InputError: no such dtype, device or thread count here.
    """

    def __init__(
        self,
        module: nn.Module,
        input_size: tuple[int, int, int],
        *,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
    ) -> None:
        require_threads(threads)
        if dtype not in PRECISIONS:
            raise InputError(f"cannot compute in {dtype}", hint="float32, float64, float16 and bfloat16 are known")
        self.name, self.dtype, self.threads = name, dtype, threads
        self.device = _require_device(device)
        self.input_shape: tuple[int | None, ...] = (None, *input_size)
        where = "" if self.device.type == "cpu" else f" {self.device}"
        self.backend = f"pytorch eager {PRECISIONS[dtype]}{where}"
        self._takes = ("float64", "float32") if dtype == torch.float64 else ("float32",)
        self._gives = np.float64 if dtype == torch.float64 else np.float32
        self._module: nn.Module | None = _ready(module, self.device, dtype)
        self._threads_before: int | None = None

    def __call__(self, images: Array) -> Array:
        """Logits (N, classes) of images (N, C, H, W).

        Raises:
            InputError: the images are not what the network takes, or the runner is closed.
        """
        if self._module is None:
            raise InputError(f"{self.name} is closed", hint="open it again")
        require_images(images, self.input_shape, self._takes)
        if self.threads is not None and torch.get_num_threads() != self.threads:
            self._threads_before = self._threads_before or torch.get_num_threads()
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            logits = self._module(_as_tensor(images).to(self.device, self.dtype))
        if isinstance(logits, Tensor):
            logits = logits.to("cpu", torch.float64 if self.dtype == torch.float64 else torch.float32).numpy()
        return require_logits(logits, len(images), self.name)

    def describe(self) -> dict[str, Any]:
        """Version, device and threads in use, and what a call covers."""
        return {
            "name": self.name,
            "backend": self.backend,
            "precision": PRECISIONS[self.dtype],
            "input_shape": list(self.input_shape),
            "device": str(self.device),
            "threads": self.threads or torch.get_num_threads(),
            "versions": tool_versions("torch"),
            "includes": list(CALL_INCLUDES),
            "excludes": list(CALL_EXCLUDES),
        }

    def close(self) -> None:
        """Let go of the module and put PyTorch's thread count back."""
        self._module = None
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_device(device: str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"PyTorch cannot compute on {device} here", details=[reason], hint="cpu always works"
        ) from error
    return found


def _ready(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    fits = all(t.device == device and (t.dtype == dtype or not t.is_floating_point()) for t in tensors)
    if fits and not any(part.training for part in module.modules()):
        return module
    return copy.deepcopy(module).to(device, dtype).eval()


def _as_tensor(images: Array) -> Tensor:
    """Share memory where PyTorch can: it takes neither negative strides nor read-only arrays."""
    images = np.ascontiguousarray(images)
    return torch.from_numpy(images if images.flags.writeable else images.copy())
