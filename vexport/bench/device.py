"""GPU candidates: the device's own time by CUDA events, apart from the host's, from launching and from copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vexport.bench.clock import Candidate
from vexport.run.runner import Array, Runner, prepare

ENQUEUE = "enqueue"  # the host's time until everything is launched
DEVICE = "device"  # between events around the work: kernels, and gaps where the device waits for launches
RESIDENT = "resident"  # the host's time from launching to the end, on data that is on the device already
COPY_IN = "copy_in"  # images to the device, between events
COPY_OUT = "copy_out"  # logits to the host, likewise

WAITS_FOR_HOST = 0.9  # of the device's time: from here on launching takes as long as the work


class CudaCandidate:
    """A candidate for the clock that tells device time apart. Events resolve about half a microsecond.

    Args:
        call: The whole of it, from images in host memory to logits in host memory, done on return.
        enqueue: Launches the network on data that is on the device already, and returns without waiting.
        stream: The torch.cuda.Stream that `enqueue` launches on; None for PyTorch's current one.
        copy_in: Launches the copy of images to the device on that stream.
        copy_out: Launches the copy of logits to the host on that stream.
    """

    def __init__(
        self,
        call: Callable[[], object],
        enqueue: Callable[[], object],
        *,
        stream: Any = None,
        copy_in: Callable[[], object] | None = None,
        copy_out: Callable[[], object] | None = None,
    ) -> None:
        import torch

        self.call, self._enqueue = call, enqueue
        self._stream: Any = stream if stream is not None else torch.cuda.current_stream()
        self._copies = {name: copy for name, copy in ((COPY_IN, copy_in), (COPY_OUT, copy_out)) if copy is not None}
        self._first: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._last: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def parts(self) -> dict[str, int]:
        """Nanoseconds of each part, of one run on resident data and of one copy each way."""
        self._stream.synchronize()
        begun = time.perf_counter_ns()
        self._first.record(self._stream)
        launching = time.perf_counter_ns()
        self._enqueue()
        launched = time.perf_counter_ns()
        self._last.record(self._stream)
        self._last.synchronize()
        done = time.perf_counter_ns()
        found = {ENQUEUE: launched - launching, DEVICE: self._between_events(), RESIDENT: done - begun}
        for name, copy in self._copies.items():
            self._first.record(self._stream)
            copy()
            self._last.record(self._stream)
            self._last.synchronize()
            found[name] = self._between_events()
        return found

    def _between_events(self) -> int:
        elapsed_ms = float(self._first.elapsed_time(self._last))
        return round(elapsed_ms * 1e6)


def as_candidate(runner: Runner, images: Array) -> Candidate:
    """A runner on one batch: told apart where its backend lets one look inside a call, else the call alone.

    Args:
        runner: Stays open as long as the candidate is used.
        images: float32 (N, C, H, W).

    Raises:
        InputError: the images are not what the network takes, or the runner is closed.
        EngineError: the device fails.
    """

    def call() -> object:
        return runner(images)

    work = prepare(runner, images)
    if work is None:
        return call
    return CudaCandidate(call, work.launch, stream=work.stream, copy_in=work.upload, copy_out=work.download)


def queued(enqueue: Callable[[], object], synchronize: Callable[[], object], depth: int) -> Callable[[], object]:
    """A candidate that launches several times and waits once, as a server that is never idle: for throughput.

    Args:
        enqueue: Launches once.
        synchronize: Waits until all is done.
        depth: Launches per call; `Samples.per_second(batch * depth)` is the throughput in images.
    """

    def call() -> None:
        for _ in range(depth):
            enqueue()
        synchronize()

    return call


def waits_for_host(enqueue_ns: float, device_ns: float) -> bool:
    """Whether launching takes about as long as the work: the device's time is then the host's in disguise."""
    return enqueue_ns >= WAITS_FOR_HOST * device_ns
