"""Profiles of engines: layers that name their nodes, timed by a fake engine anywhere and by a real one on a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.run.test_cuda import FakeTorch
from vexport.bench.engine_times import mentioned_labels, profile_engine
from vexport.bench.layer_times import LayerTimes
from vexport.bench.roofline import make_roofline
from vexport.engine import plan
from vexport.engine.target import find_devices
from vexport.errors import EngineError
from vexport.graph.fused import count_fused

from .tiny_layers import PEAKS, tiny


def test_layers_of_an_engine_name_their_nodes() -> None:
    labels = {name: name for name in ("cls.0", "cls.2", "a", "b", "c", "d", "stages.0.conv", "stages.0.conv.relu")}
    assert mentioned_labels("cls.0 + cls.2", labels) == ("cls.0", "cls.2")
    assert mentioned_labels("Reformatting CopyNode for Input Tensor 0 to cls.2", labels) == ("cls.2",)
    assert mentioned_labels("{ForeignNode[b...d]}", labels) == ("b", "c", "d")
    assert mentioned_labels("__myl_Res_myl0_1 [ONNX Layer: stages.0.conv]", labels) == ("stages.0.conv",)
    assert mentioned_labels("stages.0.convolution", labels) == ()


def test_an_engine_needs_a_gpu(tmp_path: Path) -> None:
    if find_devices():
        pytest.skip("there is one")
    path = tmp_path / "x.engine"
    path.write_bytes(b"vtrt" + bytes(100))
    with pytest.raises(EngineError):
        profile_engine(path, np.zeros((1, 3, 16, 16), "f"), {}, trust=True)


# As TensorRT's inspector reports an engine built with detailed verbosity: a convolution with its ReLU, a kernel of
# several nodes that only its metadata names, and a change of format.
REPORT = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to a + a.relu",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "x'", "Format/Datatype": "Channel major FP16 format"}],
            "Metadata": "",
        },
        {
            "Name": "a + a.relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x'", "Format/Datatype": "Channel major FP16 format"}],
            "Outputs": [{"Name": "a.relu", "Format/Datatype": "Channel major FP16 format"}],
            "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16",
            "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: a.relu]",
        },
        {
            "Name": "__myl_ConvAddRelu_myl0_1",
            "LayerType": "kgen",
            "Inputs": [{"Name": "a.relu", "Format/Datatype": "Half"}],
            "Outputs": [{"Name": "b.relu", "Format/Datatype": "Half"}],
            "Metadata": "[ONNX Layer: b]\x1e[ONNX Layer: b.add]\x1e[ONNX Layer: b.relu]",
        },
        "pool",
    ]
}


class FakeEngine:
    """What an ICudaEngine and its context do for a profile: every run tells its layers and their times."""

    def __init__(self, reports: bool = True) -> None:
        self.num_io_tensors, self.profiler, self.runs, self.shape, self.addresses = 2, None, 0, (), {}
        self.reports = reports

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "x" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "DataType.FLOAT" if name == "x" else "DataType.HALF"

    def create_execution_context(self) -> FakeEngine:
        return self

    def create_engine_inspector(self) -> FakeEngine:
        return self

    def get_engine_information(self, _format: object) -> str:
        return json.dumps(REPORT)

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape if name == "x" else (self.shape[0], 5)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, _stream: int) -> bool:
        self.runs += 1
        slow = 100.0 if self.runs <= 2 else 1.0  # the first runs compile kernels
        for layer, ms in (("Reformatting CopyNode for Input Tensor 0 to a + a.relu", 0.01), ("a + a.relu", 0.2),
                          ("__myl_ConvAddRelu_myl0_1", 0.3), ("pool", 0.02)):  # fmt: skip
            if self.reports:
                self.profiler.report_layer_time(layer, ms * slow)  # type: ignore[attr-defined]
        return True


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """An engine that `profile_engine` opens, on a GPU that is the CPU."""

    class Profiler:
        def __init__(self) -> None: ...

    class Stream:
        cuda_stream = 7

        def wait_stream(self, _other: object) -> None: ...

        def synchronize(self) -> None: ...

    found, fake = FakeEngine(), FakeTorch()
    fake.Stream = Stream  # type: ignore[assignment]
    fake.from_numpy = torch.from_numpy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", fake)
    trt = SimpleNamespace(
        IProfiler=Profiler,
        TensorIOMode=SimpleNamespace(INPUT="in"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )
    runtime = SimpleNamespace(load=lambda: trt, name="tensorrt", version="10.9")
    monkeypatch.setattr(plan, "open_plan", lambda _path, *, trust: (found, runtime, None))
    return found


def test_layers_of_an_engine_are_timed(fake_engine: FakeEngine, tmp_path: Path) -> None:
    model = tiny()
    cost = count_fused(model, batch=2)
    found = profile_engine(tmp_path / "x.engine", np.ones((2, 3, 16, 16), "f"), cost.labels, runs=4, warmup=2)
    assert fake_engine.runs == 6
    assert set(fake_engine.addresses) == {"x", "y"}
    assert (found.source, found.runs, found.run_ms) == ("tensorrt 10.9", 4, None)
    assert found.sum_ms == pytest.approx(0.53), "the first runs do not count"
    assert [(one.nodes, one.ms) for one in found.kernels] == [
        (("a", "a.relu"), 0.01),
        (("a", "a.relu"), 0.2),
        (("b", "b.add", "b.relu"), 0.3),
        (("pool",), 0.02),
    ]
    together = count_fused(model, batch=2, together=found.together)
    layers = make_roofline("tiny", together, PEAKS, times=found).layers
    assert {layer.layer.name: layer.time_ms for layer in layers if layer.time_ms} == {
        "a": pytest.approx(0.21),
        "b": pytest.approx(0.3),
        "pool": pytest.approx(0.02),
    }


def test_an_engine_whose_profiler_is_silent_is_refused(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine.reports = False
    with pytest.raises(EngineError, match="its profiler reports no layer"):
        profile_engine(tmp_path / "x.engine", np.ones((2, 3, 16, 16), "f"), {})


@pytest.mark.gpu
def test_an_engine_is_profiled(small_checkpoint: Path, tmp_path: Path) -> None:
    from vexport.graph.inspect import read_graph
    from vexport.pipeline.build import build_engine
    from vexport.pipeline.export import export_graph
    from vexport.workspace import Workspace

    workspace = Workspace(tmp_path / "out")
    graph = export_graph(small_checkpoint, workspace=workspace).artifact.path
    engine = build_engine(graph, workspace=workspace, precision="fp16").artifact.path
    model = read_graph(graph)
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype("float32")
    found: LayerTimes = profile_engine(engine, images, count_fused(model).labels)
    assert found.sum_ms > 0
    assert any(one.nodes for one in found.kernels)
    cost = count_fused(model, batch=1, together=found.together)
    layers = make_roofline("small", cost, PEAKS, times=found).layers
    assert any(layer.time_ms for layer in layers)
