"""PyTorch, eager or as a recorded CUDA graph: the reference that every other backend is compared with."""

from __future__ import annotations

import copy
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vexport.deps import tool_versions
from vexport.errors import InputError
from vexport.run.cuda import DEVICE_EXCLUDES, DEVICE_INCLUDES, Lane, Lanes, mapped_gpu_errors, prepared
from vexport.run.runner import (
    CALL_EXCLUDES,
    CALL_INCLUDES,
    Array,
    require_images,
    require_logits,
    require_threads,
    times,
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
        channels_last: Keep images and weights in that layout, which convolutions of several libraries prefer.
        cuda_graph: Record the launches of a batch size once and replay them; needs a GPU. cuDNN then tries its kernels
            first and takes the fastest, which eager PyTorch does not.

    Raises:
        InputError: no such dtype, device or thread count here, or a CUDA graph without a GPU.
        EngineError: the GPU fails.
    """

    how = "eager"

    def __init__(
        self,
        module: nn.Module,
        input_size: tuple[int, int, int],
        *,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
        channels_last: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        require_threads(threads)
        if dtype not in PRECISIONS:
            raise InputError(f"cannot compute in {dtype}", hint="float32, float64, float16 and bfloat16 are known")
        self.name, self.dtype, self.threads = name, dtype, threads
        self.channels_last, self.cuda_graph = channels_last, cuda_graph
        self.device = _require_device(device)
        if cuda_graph and self.device.type != "cuda":
            raise InputError(f"{self.device} records no CUDA graphs", hint="take device cuda, or no CUDA graph")
        self.input_shape: tuple[int | None, ...] = (None, *input_size)
        self.backend = self._title()
        self._takes = ("float64", "float32") if dtype == torch.float64 else ("float32",)
        self._gives = torch.float64 if dtype == torch.float64 else torch.float32
        with mapped_gpu_errors(name):
            self._module: nn.Module | None = _ready(module, self.device, dtype, channels_last)
        self._lanes: Lanes[TorchLane] = Lanes(lambda count: TorchLane(self, count), exact=True)
        self._threads_before: int | None = None

    def _title(self) -> str:
        where = "" if self.device.type == "cpu" else str(self.device)
        parts = (
            f"pytorch {self.how} {PRECISIONS[self.dtype]}",
            where,
            "channels-last" if self.channels_last else "",
            "with CUDA graph" if self.cuda_graph else "",
        )
        return " ".join(part for part in parts if part)

    def __call__(self, images: Array) -> Array:
        """Logits (N, classes) of images (N, C, H, W).

        Raises:
            InputError: the images are not what the network takes, or the runner is closed.
            EngineError: the GPU fails.
        """
        self._require_open(images)
        self._set_threads()
        with mapped_gpu_errors(self.name), torch.inference_mode():
            if self.device.type == "cuda":
                return require_logits(self._lanes.get(len(images)).run(images), len(images), self.name)
            logits = self.forward(self._as_input(images))
        if isinstance(logits, Tensor):
            logits = logits.to("cpu", self._gives).numpy()
        return require_logits(logits, len(images), self.name)

    def forward(self, images: Tensor) -> Any:
        """What the network gives for images that are on its device, in its type and layout."""
        assert self._module is not None
        return self._module(images)

    def prepare(self, images: Array) -> TorchLane | None:
        """See `vexport.run.runner.prepare`; None on a CPU."""
        self._require_open(images)
        if self.device.type != "cuda":
            return None
        with mapped_gpu_errors(self.name):
            return prepared(TorchLane(self, len(images)), images)

    def _require_open(self, images: Array) -> None:
        if self._module is None:
            raise InputError(f"{self.name} is closed", hint="open it again")
        require_images(images, self.input_shape, self._takes)

    def _set_threads(self) -> None:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            self._threads_before = self._threads_before or torch.get_num_threads()
            torch.set_num_threads(self.threads)

    def _as_input(self, images: Array) -> Tensor:
        tensor = _as_tensor(images).to(self.device, self.dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if self.channels_last else tensor

    def describe(self) -> dict[str, Any]:
        """Version, device, layout and threads in use, and what a call covers."""
        said = {
            "name": self.name,
            "backend": self.backend,
            "precision": PRECISIONS[self.dtype],
            "memory_format": _layout(self.channels_last),
            "input_shape": list(self.input_shape),
            "device": str(self.device),
            "threads": self.threads or torch.get_num_threads(),
            "versions": tool_versions("torch"),
            "includes": list(CALL_INCLUDES),
            "excludes": list(CALL_EXCLUDES),
        }
        return said | self._describe_gpu() if self.device.type == "cuda" else said

    def _describe_gpu(self) -> dict[str, Any]:
        return {
            "device_name": torch.cuda.get_device_name(self.device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "cuda_graph": self.cuda_graph,
            "cudnn_benchmark": self.cuda_graph or torch.backends.cudnn.benchmark,
            # FP32 may mean TF32 on a GPU; PyTorch's own default allows it in convolutions.
            "tf32": {
                "convolutions": torch.backends.cudnn.allow_tf32,
                "matmuls": torch.backends.cuda.matmul.allow_tf32,
            },
            "device_call": {
                "input": f"{str(self.dtype).removeprefix('torch.')} {_layout(self.channels_last)}",
                "includes": list(DEVICE_INCLUDES),
                "excludes": list(DEVICE_EXCLUDES),
            },
        }

    def close(self) -> None:
        """Let go of the module and put PyTorch's thread count back."""
        self._module = None
        self._lanes.clear()
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


def _ready(module: nn.Module, device: torch.device, dtype: torch.dtype, channels_last: bool) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    fits = all(t.device == device and (t.dtype == dtype or not t.is_floating_point()) for t in tensors)
    if fits and not channels_last and not any(part.training for part in module.modules()):
        return module
    found = copy.deepcopy(module).to(device, dtype).eval()
    if not channels_last:
        return found
    return found.to(memory_format=torch.channels_last)


def _layout(channels_last: bool) -> str:
    return "channels-last (NHWC)" if channels_last else "contiguous (NCHW)"


def _as_tensor(images: Array) -> Tensor:
    """Share memory where PyTorch can: it takes neither negative strides nor read-only arrays."""
    images = np.ascontiguousarray(images)
    return torch.from_numpy(images if images.flags.writeable else images.copy())


class TorchLane(Lane):
    """The buffers of one batch size, and the module between them."""

    def __init__(self, runner: TorchRunner, count: int) -> None:
        shape = (count, *(side or 0 for side in runner.input_shape[1:]))
        self._runner = runner
        host = torch.float64 if runner.dtype == torch.float64 else torch.float32
        super().__init__(
            runner.name,
            shape,
            runner.dtype,
            host_dtype=host,
            channels_last=runner.channels_last,
            cuda_graph=runner.cuda_graph,
            device=runner.device,
        )

    def enqueue(self) -> Tensor:
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark
        cudnn.benchmark = before or self.cuda_graph
        try:
            with torch.inference_mode():
                logits = self._runner.forward(self._in)
        finally:
            cudnn.benchmark = before
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            kind = times(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise InputError(
                f"{self.name} answers with {kind}", hint="only classifiers with one output (images, classes) can be run"
            )
        return logits
