"""The order of steps on a GPU, on a device that only writes down what it is told; tests/gpu has the real one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from vexport.errors import EngineError
from vexport.run import cuda
from vexport.run.cuda import WARMUP_LAUNCHES, Lane, Lanes, gpu_error, prepared, why_gpu_fails, why_no_gpu

from .tiny import SIZE, images


class FakeStream:
    def wait_stream(self, other: object) -> None: ...

    def synchronize(self) -> None: ...


class FakeGraph:
    """What was enqueued while it was recorded is done again by a replay, into the same memory."""

    def __init__(self) -> None:
        self.lane: MeanLane | None = None

    def replay(self) -> None:
        assert self.lane is not None
        self.lane.log.append("replay")
        self.lane.answer_into()


class FakeTorch:
    """PyTorch, whose GPU is the CPU."""

    def __init__(self) -> None:
        self.cuda = self
        self.Stream = lambda device: FakeStream()
        self.CUDAGraph = FakeGraph
        self.recording: FakeGraph | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *shape: Any, pin_memory: bool = False, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.empty(*shape, **options)

    def zeros(self, *shape: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*shape, **options)

    def current_stream(self, device: Any = None) -> FakeStream:
        return FakeStream()

    @contextlib.contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def graph(self, graph: FakeGraph, **_: Any) -> Iterator[None]:
        self.recording = graph
        yield
        self.recording = None


class MeanLane(Lane):
    """A network that answers with the mean of each channel."""

    def __init__(self, fake: FakeTorch, most: int, **options: Any) -> None:
        super().__init__("mean", (most, *SIZE), torch.float32, **options)
        self.log: list[str] = []
        self._fake = fake
        self._logits = torch.zeros(most, SIZE[0])

    def answer_into(self) -> None:
        self._logits[: self._count] = self._in[: self._count].mean((2, 3))

    def enqueue(self) -> torch.Tensor:
        recording = self._fake.recording
        self.log.append("record" if recording else "enqueue")
        if recording:
            recording.lane = self
        else:
            self.answer_into()
        return self._logits


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTorch:
    found = FakeTorch()
    monkeypatch.setattr(cuda, "torch", found)
    return found


def test_every_call_launches_anew_without_a_graph(fake: FakeTorch) -> None:
    lane = MeanLane(fake, 4)
    for count in (1, 4, 2):
        x = images(count, *SIZE) + count
        np.testing.assert_allclose(lane.run(x), x.mean((2, 3)), atol=1e-6)
    assert lane.log == ["enqueue"] * 3


def test_a_graph_is_recorded_once_for_each_batch_in_a_row(fake: FakeTorch) -> None:
    lane = MeanLane(fake, 4, cuda_graph=True)
    for count in (2, 2, 3):
        x = images(count, *SIZE) * count
        np.testing.assert_allclose(lane.run(x), x.mean((2, 3)), atol=1e-6)
    once = ["enqueue"] * WARMUP_LAUNCHES + ["record"]
    assert lane.log == [*once, "replay", "replay", *once, "replay"]


def test_an_answer_is_a_copy(fake: FakeTorch) -> None:
    lane = MeanLane(fake, 1)
    first = lane.run(images(1, *SIZE))
    kept = first.copy()
    lane.run(images(1, *SIZE) + 5)
    np.testing.assert_array_equal(first, kept)


def test_prepared_work_has_its_images_and_its_recording(fake: FakeTorch) -> None:
    x = images(2, *SIZE)
    work = prepared(MeanLane(fake, 4, cuda_graph=True), x)
    before = list(work.log)
    np.testing.assert_allclose(work.answer(), x.mean((2, 3)), atol=1e-6)
    work.launch()
    work.download()
    work.synchronize()
    np.testing.assert_allclose(work.answer(), x.mean((2, 3)), atol=1e-6)
    assert work.log[len(before) :] == ["replay"]  # nothing is recorded any more


def test_prepare_refuses_what_is_not_a_classifier(fake: FakeTorch) -> None:
    lane = MeanLane(fake, 2)
    lane._logits = torch.zeros(2, 3, 1)
    lane.answer_into = lambda: None  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="mean answers 2 images with 2x3x1"):
        prepared(lane, images(2, *SIZE))


def test_each_thread_has_a_lane_of_its_own(fake: FakeTorch) -> None:
    lanes: Lanes[MeanLane] = Lanes(lambda count: MeanLane(fake, count), exact=True)
    mine = lanes.get(2)
    assert lanes.get(2) is mine
    assert lanes.get(3) is not mine
    others: list[MeanLane] = []
    thread = threading.Thread(target=lambda: others.append(lanes.get(3)))
    thread.start()
    thread.join()
    assert others[0] is not lanes.get(3)
    shared: Lanes[MeanLane] = Lanes(lambda _: MeanLane(fake, 8), exact=False)
    assert shared.get(2) is shared.get(5)
    before = shared.get(1)
    shared.clear()
    assert shared.get(1) is not before


@pytest.mark.parametrize("step", ["upload", "launch", "download", "synchronize"])
def test_a_gpu_that_fails_in_any_step_is_an_engine_error(
    fake: FakeTorch, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    lane = prepared(MeanLane(fake, 1), images(1, *SIZE))

    def fail(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nmore")

    if step == "synchronize":
        monkeypatch.setattr(lane.stream, "synchronize", fail, raising=False)
    else:
        monkeypatch.setattr(fake, "stream", fail)
    with pytest.raises(EngineError, match="the GPU failed while it ran mean") as caught:
        getattr(lane, step)()
    assert caught.value.details == ("CUDA error: unspecified launch failure",)


def test_only_failures_of_the_gpu_are_mapped() -> None:
    assert gpu_error(RuntimeError("shape mismatch"), "x") is None
    assert gpu_error(RuntimeError(""), "x") is None
    assert gpu_error(RuntimeError("CUDA out of memory."), "x") is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_reason_without_a_gpu_is_one_line() -> None:
    reason = why_no_gpu()
    assert reason
    assert "\n" not in reason


def test_a_gpu_that_is_asked_computes(fake: FakeTorch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "why_no_gpu", lambda: "no GPU is visible")
    assert why_gpu_fails() == "no GPU is visible"
    monkeypatch.setattr(cuda, "why_no_gpu", lambda: None)
    fake.ones = lambda count, device: torch.ones(count)  # type: ignore[attr-defined]
    assert why_gpu_fails() is None
    fake.ones = lambda count, device: torch.zeros(count)  # type: ignore[attr-defined]
    assert why_gpu_fails() == "it adds up 1024 ones to 0"

    def fails(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: device lost\nmore")

    fake.ones = fails  # type: ignore[attr-defined]
    assert why_gpu_fails() == "CUDA error: device lost"
