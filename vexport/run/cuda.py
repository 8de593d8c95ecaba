"""What the runners on a GPU share: a stream with its buffers, recorded launches, and errors in words."""

from __future__ import annotations

import re
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from vexport.errors import EngineError
from vexport.run.runner import Array, times

# What a device call (`runner.prepare`) covers, for whoever reads a device time.
DEVICE_INCLUDES = ("the network",)
DEVICE_EXCLUDES = ("images to the device, and to the type and layout that the network takes", "logits to host memory")
WARMUP_LAUNCHES = 3  # before a recording: libraries choose their kernels and allocate in the first ones
# How messages of a failing GPU begin, where PyTorch raises them as a plain RuntimeError.
_GPU_FAILED = re.compile(
    r"CUDA (driver )?error|CUDA out of memory|cuDNN error|.*(CUDNN|CUBLAS|NVML)_\w+", re.IGNORECASE
)


def why_no_gpu() -> str | None:
    """The reason why PyTorch cannot use a GPU here; None where it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch warns of, it fails with as well
        if torch.cuda.is_available():
            return None
        if torch.version.cuda is None:
            return "this PyTorch is built without CUDA"
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # it says why by failing
        except (RuntimeError, AssertionError) as error:
            return str(error).strip().partition("\n")[0].partition(". ")[0]
    return "no GPU is visible"


def why_gpu_fails() -> str | None:
    """The reason why the GPU does not compute, tried on a few numbers; None where it does.

    To be asked in a process of its own: one that has lost its GPU keeps saying so, and one that has it keeps it.
    """
    if reason := why_no_gpu():
        return reason
    try:
        total = float(torch.ones(1024, device="cuda").sum())
    except RuntimeError as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return None if total == 1024 else f"it adds up 1024 ones to {total:g}"


@contextmanager
def mapped_gpu_errors(name: str) -> Iterator[None]:
    """Turn what PyTorch raises of a failing GPU into an EngineError; other errors pass.

    Args:
        name: What runs, for the message.

    Raises:
        EngineError: the GPU has no memory left, or has failed.
    """
    try:
        yield
    except RuntimeError as error:
        mapped = gpu_error(error, name)
        if mapped is None:
            raise
        raise mapped from error


def gpu_error(error: Exception, name: str) -> EngineError | None:
    """The EngineError for an exception that tells of a failing GPU; None where it tells of something else."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    first = lines[0][:300] if lines else type(error).__name__
    theirs = isinstance(error, (torch.AcceleratorError, torch.OutOfMemoryError))
    if not theirs and not _GPU_FAILED.match(first):
        return None
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in first.lower():
        hint = "take a smaller batch, or end what else uses the GPU (`nvidia-smi` lists it)"
        return EngineError(f"the GPU has no memory left for {name}", details=[first], hint=hint)
    hint = "this process cannot use the GPU any more: see with `nvidia-smi` whether it is there, then run again"
    return EngineError(f"the GPU failed while it ran {name}", details=[first], hint=hint)


class Lane(ABC):
    """A stream, buffers for images and logits on both sides, and a network to launch between them.

    Subclasses say what `enqueue` does. Everything lies in one stream, so that what is enqueued runs in order.

    Args:
        name: Of what runs, for messages.
        shape: N, C, H and W of the largest batch.
        dtype: What the network takes.
        host_dtype: Of the arrays that come and go.
        channels_last: Whether the network takes its images in that layout.
        cuda_graph: Record the launches once and replay them.
        device: Where; `cuda` is PyTorch's current GPU.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        host_dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        cuda_graph: bool = False,
        device: torch.device | str = "cuda",
    ) -> None:
        self.name, self.cuda_graph = name, cuda_graph
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self._host_in = torch.empty(shape, dtype=host_dtype, pin_memory=True)
        # Zeros: an empty buffer may hold NaN, on which a network is launched before the first images come.
        self._in = torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=layout)
        self._out: torch.Tensor | None = None
        self._host_out: torch.Tensor | None = None
        self._host_dtype = host_dtype
        self._count = shape[0]
        self._graph: Any = None
        self.stream.wait_stream(torch.cuda.current_stream(device))

    @abstractmethod
    def enqueue(self) -> torch.Tensor:
        """Launch the network on `_in` in PyTorch's current stream; return what holds its answer."""

    def set_count(self, count: int) -> None:
        """Take so many images from now on, at most the largest batch."""
        if count != self._count:
            self._count = count
            self._graph = None  # recorded for another shape

    def run(self, images: Array) -> Array:
        """Logits of images in host memory, ready when it returns."""
        self.set_count(len(images))
        self.load(images)
        self.upload()
        self.launch()
        self.download()
        return self.answer()

    def load(self, images: Array) -> None:
        """Put images into pinned memory."""
        self._host_in[: self._count].numpy()[...] = images

    def upload(self) -> None:
        """Images from pinned host memory to the device, to the type and layout that the network takes."""
        with mapped_gpu_errors(self.name), torch.cuda.stream(self.stream):
            self._in[: self._count].copy_(self._host_in[: self._count], non_blocking=True)

    def launch(self) -> None:
        """The network alone, on the images that lie on the device."""
        try:  # no context manager: what stands here is timed as the host's share
            with torch.cuda.stream(self.stream):
                if not self.cuda_graph:
                    self._out = self.enqueue()
                    return
                if self._graph is None:
                    self._record()
                self._graph.replay()
        except RuntimeError as error:
            if (mapped := gpu_error(error, self.name)) is None:
                raise
            raise mapped from error

    def download(self) -> None:
        """Logits to pinned host memory."""
        assert self._out is not None, "nothing was launched"
        out = self._out[: self._count] if self._out.ndim else self._out
        if self._host_out is None or self._host_out.shape != out.shape:
            self._host_out = torch.empty(out.shape, dtype=self._host_dtype, pin_memory=True)
        with mapped_gpu_errors(self.name), torch.cuda.stream(self.stream):
            self._host_out.copy_(out, non_blocking=True)

    def synchronize(self) -> None:
        """Wait until all is done."""
        with mapped_gpu_errors(self.name):
            self.stream.synchronize()

    def answer(self) -> Array:
        """Logits (N, classes) of the last download; waits for it."""
        assert self._host_out is not None, "nothing was downloaded"
        self.synchronize()
        logits: Array = np.array(self._host_out.numpy())
        return logits

    def _record(self) -> None:
        for _ in range(WARMUP_LAUNCHES):  # lazy allocations must not fall into the recording
            self.enqueue()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: what they do is not part of the recording.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self._out = self.enqueue()
        self._graph = graph


L = TypeVar("L", bound=Lane)


class Lanes(Generic[L]):
    """A lane for each thread that calls.

    Args:
        make: A new lane for a batch of that size.
        exact: Whether a lane serves no batch but the one it was made for.
    """

    def __init__(self, make: Callable[[int], L], *, exact: bool) -> None:
        self._make, self._exact = make, exact
        self._local = threading.local()

    def get(self, count: int) -> L:
        """This thread's lane."""
        lane: L | None = getattr(self._local, "lane", None)
        if lane is None or (self._exact and self._local.count != count):
            self._local.lane = None  # the old buffers go before the new ones come
            lane = self._make(count)
            self._local.lane, self._local.count = lane, count
        return lane

    def clear(self) -> None:
        """Let go of all of them."""
        self._local = threading.local()


def prepared(lane: L, images: Array) -> L:
    """A lane whose images lie on the device and that has been launched: its answer is right, its recording done.

    Raises:
        EngineError: the network answers with something else than one row of class scores per image.
    """
    lane.set_count(len(images))
    lane.load(images)
    lane.upload()
    for _ in range(WARMUP_LAUNCHES):
        lane.launch()
    lane.download()
    logits = lane.answer()
    if logits.ndim != 2 or len(logits) != len(images):
        raise EngineError(
            f"{lane.name} answers {len(images)} images with {times(logits.shape)}",
            hint="only classifiers (images, classes) can be run",
        )
    return lane
