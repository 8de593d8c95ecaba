"""The bookkeeping of GPU candidates, on a device made of counters."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from vexport.bench.clock import Clock, Timed
from vexport.bench.device import CudaCandidate, as_candidate, queued, waits_for_host

US = 1000


class FakeDevice:
    """A host clock and a stream: launched work ends later than its launch."""

    def __init__(self) -> None:
        self.host = self.done = 0

    def launch(self, host_us: int, device_us: int) -> Callable[[], None]:
        def run() -> None:
            self.host += host_us * US
            self.done = max(self.done, self.host) + device_us * US

        return run

    def synchronize(self) -> None:
        self.host = max(self.host, self.done)


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.device: FakeDevice | None = None
        self.at = 0

    def record(self, stream: FakeDevice) -> None:
        self.device, self.at = stream, max(stream.host, stream.done)

    def synchronize(self) -> None:
        assert self.device is not None
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) / 1e6


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    found = FakeDevice()
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: found)
    return found


def on_fake_time(monkeypatch: pytest.MonkeyPatch, device: FakeDevice) -> None:
    monkeypatch.setattr(time, "perf_counter_ns", lambda: device.host)


def test_device_enqueue_and_copies_are_apart(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    on_fake_time(monkeypatch, device)
    work, copy_in, copy_out = device.launch(20, 300), device.launch(2, 40), device.launch(2, 5)

    def call() -> None:
        copy_in()
        work()
        copy_out()
        device.synchronize()

    one = CudaCandidate(call, work, copy_in=copy_in, copy_out=copy_out)
    assert isinstance(one, Timed)
    assert one.parts() == {
        "enqueue": 20 * US,
        "device": 320 * US,  # an idle device waits for the launch
        "resident": 320 * US,
        "copy_in": 42 * US,
        "copy_out": 7 * US,
    }
    clock = Clock(warmup_s=0, duration_s=0.01, least_count=4, rounds=2, settle_s=0, now_ns=lambda: device.host)
    found = clock.measure({"gpu": one})["gpu"]
    assert found.error is None
    assert set(found.ns) == {(2 + 40 + 300 + 5) * US}
    assert set(found.parts_ns) == {"enqueue", "device", "resident", "copy_in", "copy_out"}


def test_work_that_is_under_way_is_waited_for(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    on_fake_time(monkeypatch, device)
    work = device.launch(20, 300)
    device.launch(0, 5000)()
    parts = CudaCandidate(lambda: None, work).parts()
    assert parts == {"enqueue": 20 * US, "device": 320 * US, "resident": 320 * US}


class FakeRunner:
    """A runner whose steps can be timed apart, or not."""

    def __init__(self, device: FakeDevice, *, looks_inside: bool) -> None:
        self.stream, self.seen = device, list[object]()
        self.upload, self.launch, self.download = (device.launch(2, us) for us in (40, 300, 5))
        if looks_inside:
            self.prepare = self._prepare

    def _prepare(self, images: object) -> FakeRunner:
        self.seen.append(images)
        return self

    def __call__(self, images: object) -> None:
        self.seen.append(images)
        self.upload()
        self.launch()
        self.download()
        self.stream.synchronize()


def test_runners_become_candidates(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    on_fake_time(monkeypatch, device)
    images = np.zeros((1, 3, 8, 8), np.float32)
    opaque, clear = FakeRunner(device, looks_inside=False), FakeRunner(device, looks_inside=True)
    call = as_candidate(opaque, images)  # type: ignore[arg-type]
    assert not isinstance(call, Timed)
    call()
    assert opaque.seen == [images]
    found = as_candidate(clear, images)  # type: ignore[arg-type]
    assert isinstance(found, Timed)
    found.call()
    assert clear.seen == [images, images]
    assert found.parts() == {
        "enqueue": 2 * US,
        "device": 302 * US,
        "resident": 302 * US,
        "copy_in": 42 * US,
        "copy_out": 7 * US,
    }


def test_queued_launches_wait_once(device: FakeDevice) -> None:
    call = queued(device.launch(20, 300), device.synchronize, 10)
    call()
    assert device.host == (20 + 10 * 300) * US


def test_launches_that_take_as_long_as_the_work_are_told() -> None:
    assert waits_for_host(95, 100)
    assert not waits_for_host(50, 100)
