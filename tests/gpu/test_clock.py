"""What the clock sees of a GPU: device time apart from the host's, launches apart from work, and the GPU's state."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from vexport.bench.clock import Clock, Timed
from vexport.bench.device import COPY_IN, COPY_OUT, DEVICE, ENQUEUE, RESIDENT, CudaCandidate, queued, waits_for_host
from vexport.bench.nvml import THROTTLING, open_gpu
from vexport.bench.watch import Watch

pytestmark = pytest.mark.gpu

SIDE = 4096


@pytest.fixture
def stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@pytest.fixture
def matrix() -> Tensor:
    found = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.float16)
    torch.cuda.synchronize()
    return found


def launcher(matrix: Tensor, stream: torch.cuda.Stream, times: int) -> Callable[[], object]:
    """Launches matrix products, of which one takes far longer than its launch."""
    out = torch.empty_like(matrix)

    def enqueue() -> None:
        with torch.cuda.stream(stream):
            for _ in range(times):
                torch.mm(matrix, matrix, out=out)

    return enqueue


def candidate(matrix: Tensor, stream: torch.cuda.Stream, times: int = 1) -> CudaCandidate:
    enqueue = launcher(matrix, stream, times)
    host_in, host_out = torch.empty(SIDE, SIDE, dtype=torch.float16).pin_memory(), torch.empty(1000).pin_memory()
    device_in, device_out = torch.empty_like(matrix), torch.empty(1000, device="cuda")

    def copy_in() -> None:
        with torch.cuda.stream(stream):
            device_in.copy_(host_in, non_blocking=True)

    def copy_out() -> None:
        with torch.cuda.stream(stream):
            host_out.copy_(device_out, non_blocking=True)

    def call() -> None:
        copy_in()
        enqueue()
        copy_out()
        stream.synchronize()

    return CudaCandidate(call, enqueue, stream=stream, copy_in=copy_in, copy_out=copy_out)


def test_parts_are_apart_and_add_up(matrix: Tensor, stream: torch.cuda.Stream) -> None:
    one = candidate(matrix, stream, times=8)
    assert isinstance(one, Timed)
    found = Clock(warmup_s=0.3, duration_s=0.5, rounds=5).measure({"products": one})["products"]
    assert found.error is None
    medians = {name: found.part(name).median_ms for name in found.parts_ns}  # type: ignore[union-attr]
    assert set(medians) == {ENQUEUE, DEVICE, RESIDENT, COPY_IN, COPY_OUT}
    assert medians[ENQUEUE] < medians[DEVICE] <= medians[RESIDENT] * 1.02
    assert medians[COPY_OUT] < medians[COPY_IN]  # 4 kB against 32 MB
    assert found.median_ms > medians[DEVICE] + medians[COPY_IN] / 2
    assert not waits_for_host(medians[ENQUEUE], medians[DEVICE])


def test_twice_the_work_is_twice_the_device_time(matrix: Tensor, stream: torch.cuda.Stream) -> None:
    work = {str(times): candidate(matrix, stream, times) for times in (10, 20)}
    found = Clock(warmup_s=0.3, duration_s=0.5, rounds=5).measure(work)
    ten, twenty = (found[name].part(DEVICE) for name in ("10", "20"))
    assert ten is not None
    assert twenty is not None
    assert twenty.median_ms / ten.median_ms == pytest.approx(2, rel=0.1)


def test_queued_launches_are_no_slower_than_single_ones(matrix: Tensor, stream: torch.cuda.Stream) -> None:
    enqueue = launcher(matrix, stream, 1)
    work = {str(depth): queued(enqueue, stream.synchronize, depth) for depth in (1, 16)}
    found = Clock(warmup_s=0.3, duration_s=0.5, rounds=5).measure(work)
    single, deep = found["1"].per_second(1), found["16"].per_second(16)
    assert single is not None
    assert deep is not None
    assert deep.value > 0.98 * single.value


@pytest.mark.skipif(find_spec("pynvml") is None, reason="nvidia-ml-py is not installed")
def test_the_gpu_is_watched(matrix: Tensor, stream: torch.cuda.Stream) -> None:
    gpu, why_not = open_gpu()
    assert why_not is None
    assert gpu is not None
    assert gpu.describe()["driver"]
    watch = Watch(gpu)
    work = {"products": candidate(matrix, stream, 8)}
    found = Clock(warmup_s=0.3, duration_s=0.5, rounds=5, watch=watch).measure(work)["products"]
    states = [one.gpu for one in found.conditions]
    assert len(states) == 5
    for state in states:
        assert state is not None
        assert state.sm_mhz
        assert state.memory_mhz
        throttled = [why for why in found.unstable_because if why.startswith("throttling: the GPU's")]
        assert bool(throttled) == any(name in THROTTLING for one in states if one for name in one.reasons)
    assert watch.cost_ms < 1000
