"""The backends on a GPU: they agree, compute where they say, and can be timed step by step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vexport.bench.device import CudaCandidate
from vexport.engine.build import BuildOptions
from vexport.engine.runtime import MODULES, describe_runtime
from vexport.errors import EngineError, MissingDependencyError
from vexport.pipeline.build import build_engine
from vexport.pipeline.export import export_graph
from vexport.run import BACKENDS, DeviceWork, Runner, open_runner, prepare
from vexport.run.compare import compare, random_batches
from vexport.run.pytorch import TorchRunner
from vexport.workspace import Workspace

pytestmark = pytest.mark.gpu

SIZE = (3, 64, 64)
# FP32 on a GPU may be TF32 in convolutions, as PyTorch's and ONNX Runtime's defaults allow.
TOLERANCES = {"pytorch-cuda": 5e-3, "onnxruntime-cuda": 5e-3, "onnxruntime-tensorrt": 5e-3}
HALF = 2e-2
WITH_DEVICE_TIME = ("pytorch-cuda", "pytorch-fp16", "torch-compile-fp16")
ON_GPU = [name for name, backend in BACKENDS.items() if backend.device == "gpu" and backend.takes != "engine"]


@pytest.fixture
def graph(small_checkpoint: Path, tmp_path: Path) -> Path:
    return export_graph(small_checkpoint, workspace=Workspace(tmp_path / "out"), batch=2).artifact.path


def opened(name: str, checkpoint: Path, graph: Path) -> Runner:
    if reason := BACKENDS[name].why_not_here():
        pytest.skip(reason)
    if BACKENDS[name].takes == "graph":
        return open_runner(graph, backend=name)
    return open_runner(checkpoint, backend=name, input_size=SIZE)


@pytest.mark.parametrize("name", ON_GPU)
def test_each_agrees_with_the_cpu(name: str, small_checkpoint: Path, graph: Path) -> None:
    batches = random_batches(SIZE, (2, 2, 2))
    with opened(name, small_checkpoint, graph) as runner, open_runner(graph) as reference:
        parity = compare(reference, runner, batches, TOLERANCES.get(name, HALF))
        said = runner.describe()
    assert parity.passed, parity
    assert "CPU" not in runner.backend
    if name.startswith("onnxruntime"):
        assert CPU_PROVIDER not in (said["nodes_by_provider"] or {})
        assert said["providers"][0] != CPU_PROVIDER
    else:
        assert said["device"] == "cuda"
        assert said["device_name"] == torch.cuda.get_device_name()


CPU_PROVIDER = "CPUExecutionProvider"


def test_an_fp16_runner_computes_in_fp16_and_channels_last(small_checkpoint: Path, graph: Path) -> None:
    with opened("pytorch-fp16", small_checkpoint, graph) as runner:
        assert isinstance(runner, TorchRunner)
        assert runner._module is not None
        assert {tensor.dtype for tensor in runner._module.parameters()} == {torch.float16}
        said = runner.describe()
    assert said["device_call"]["input"] == "float16 channels-last (NHWC)"
    assert (said["cuda_graph"], said["precision"]) == (True, "FP16")


@pytest.mark.parametrize("name", ["pytorch-fp16", "torch-compile-fp16"])
def test_a_recorded_graph_answers_new_images_at_every_batch(name: str, small_checkpoint: Path, graph: Path) -> None:
    with (
        opened(name, small_checkpoint, graph) as runner,
        open_runner(small_checkpoint, input_size=SIZE) as reference,
    ):
        assert compare(reference, runner, random_batches(SIZE, (1, 1, 4, 4, 1)), HALF).passed


@pytest.mark.parametrize("name", WITH_DEVICE_TIME)
def test_the_steps_of_a_call(name: str, small_checkpoint: Path, graph: Path) -> None:
    x, other = random_batches(SIZE, (2, 2))
    with opened(name, small_checkpoint, graph) as runner:
        work = prepare(runner, x)
        assert work is not None
        hold_together(runner, work, x, other)
        parts = CudaCandidate(
            lambda: runner(x), work.launch, stream=work.stream, copy_in=work.upload, copy_out=work.download
        ).parts()
    assert all(parts[part] > 0 for part in ("enqueue", "device", "resident", "copy_in", "copy_out"))


def hold_together(runner: Runner, work: DeviceWork, x: np.ndarray, other: np.ndarray) -> None:
    """The work answers for its own images, whatever the runner is asked meanwhile."""
    expected = runner(x)
    np.testing.assert_allclose(work.answer(), expected, rtol=0, atol=1e-2 * np.abs(expected).max())
    runner(other)
    work.launch()
    work.download()
    np.testing.assert_allclose(work.answer(), expected, rtol=0, atol=1e-2 * np.abs(expected).max())


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_steps_of_an_engine(small_checkpoint: Path, tmp_path: Path, cuda_graph: bool) -> None:
    workspace = Workspace(tmp_path / "out")
    path = export_graph(small_checkpoint, workspace=workspace).artifact.path
    for runtime in MODULES:
        try:
            describe_runtime(runtime)
        except MissingDependencyError:
            continue
        break
    else:
        pytest.skip("no TensorRT is installed")
    engine = build_engine(path, workspace=workspace, runtime=runtime, options=BuildOptions("fp16")).artifact.path
    x, other = random_batches(SIZE, (2, 2))
    with open_runner(engine, backend=runtime, cuda_graph=cuda_graph) as runner:
        work = prepare(runner, x)
        assert work is not None
        hold_together(runner, work, x, other)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_tensorrt_in_onnx_runtime_takes_typed_graphs(dtype: str, graph: Path, tmp_path: Path) -> None:
    from vexport.pipeline.bench_artifacts import quantize_for_latency
    from vexport.pipeline.convert import convert_graph
    from vexport.pipeline.graphs import find_graph

    if reason := BACKENDS["onnxruntime-tensorrt"].why_not_here():
        pytest.skip(reason)
    workspace = Workspace(tmp_path / "typed")
    if dtype == "fp16":
        typed = convert_graph(find_graph(graph, workspace=workspace), "fp16", workspace=workspace).artifact.path
    else:
        typed = quantize_for_latency(graph, workspace, SIZE[1])[0].path
    batches = random_batches(SIZE, (2, 2))
    with open_runner(typed, backend="onnxruntime-tensorrt") as runner, open_runner(typed) as reference:
        assert compare(reference, runner, batches, HALF if dtype == "fp16" else 0.2).passed
        assert CPU_PROVIDER not in (runner.describe()["nodes_by_provider"] or {})


def test_a_gpu_that_is_asked_answers() -> None:
    from vexport.run.cuda import why_gpu_fails

    assert why_gpu_fails() is None


def test_a_gpu_without_memory_is_an_engine_error(small_checkpoint: Path) -> None:
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(1e-4)
        with pytest.raises(EngineError, match="no memory left"):
            open_runner(small_checkpoint, backend="pytorch-cuda", input_size=SIZE)(random_batches(SIZE, (512,))[0])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


FAILS = """
import torch
from torch import nn
from vexport.errors import EngineError
from vexport.run.compare import random_batches
from vexport.run.pytorch import TorchRunner

class OutOfBounds(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, torch.full((5,), 10**6, device=x.device)]

runner = TorchRunner(OutOfBounds(), (3, 8, 8), name="bad", device="cuda")
for _ in range(2):  # a process that has lost its GPU keeps saying so
    try:
        runner(random_batches((3, 8, 8), (1,))[0])
    except EngineError as error:
        print(error.message)
runner.close()
"""


def test_a_gpu_that_fails_meanwhile_is_an_engine_error() -> None:
    """In a process of its own: a kernel that fails takes the process's GPU with it."""
    done = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["the GPU failed while it ran bad"] * 2, done.stderr
