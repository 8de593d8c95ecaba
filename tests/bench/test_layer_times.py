"""Profiles: read from a recorded trace and from a live run, kernels given to the nodes that they compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.graph.graphs import Draft
from vexport.bench.engine_times import mentioned_labels, profile_engine
from vexport.bench.layer_times import LayerTimes, find_label, parse_ort_profile, profile_ort
from vexport.bench.roofline import make_roofline
from vexport.errors import EngineError, InputError
from vexport.graph.fused import count_fused


def node(name: str, operator: str, ts: int, dur: int) -> dict[str, Any]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": ts,
        "dur": dur,
        "args": {"op_name": operator, "provider": "CPUExecutionProvider", "node_index": "38"},
    }


def call(ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


# As ONNX Runtime 1.31 writes it: a call's event comes after those of its kernels.
TRACE = [
    {"cat": "Session", "name": "session_initialization", "ts": 13, "dur": 900, "args": {}},
    node("stem.0.relu_nchwc", "Conv", 1010, 700),
    node("ReorderOutput", "ReorderOutput", 1720, 80),
    {"cat": "Session", "name": "SequentialExecutor::Execute", "ts": 1005, "dur": 990, "args": {}},
    call(1000, 1000),
    node("stem.0.relu_nchwc", "Conv", 3010, 100),
    node("stem.1_nchwc", "Conv", 3120, 50),
    node("ReorderOutput", "ReorderOutput", 3180, 10),
    call(3000, 200),
    node("stem.0.relu_nchwc", "Conv", 4010, 300),
    node("stem.1_nchwc", "Conv", 4320, 60),
    node("stem.1_nchwc", "Conv", 4390, 30),
    node("ReorderOutput", "ReorderOutput", 4450, 10),
    call(4000, 480),
    node("stem.0.relu_nchwc", "Conv", 5010, 200),
    node("stem.1_nchwc", "Conv", 5220, 60),
    node("ReorderOutput", "ReorderOutput", 5290, 30),
    call(5000, 340),
]
LABELS = {"stem.0": "stem.0", "stem.0.relu": "stem.0.relu", "stem.1": "stem.1", "stem.10": "stem.10"}


def test_a_recorded_trace() -> None:
    found = parse_ort_profile(TRACE, LABELS, warmup=1)
    assert found.runs == 3
    assert [(one.name, one.nodes, one.ms) for one in found.kernels] == [
        ("stem.0.relu_nchwc", ("stem.0.relu",), 0.2),
        ("stem.1_nchwc", ("stem.1",), 0.06),
        ("ReorderOutput", (), 0.01),
    ]
    assert found.sum_ms == pytest.approx(0.29)  # medians of 0.16, 0.40, 0.29
    assert found.run_ms == pytest.approx(0.34)
    assert [one.name for one in found.unassigned] == ["ReorderOutput"]
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["unassigned_ms"] == pytest.approx(0.01)


def test_the_first_runs_can_be_left_in_but_not_all_out() -> None:
    assert parse_ort_profile(TRACE, LABELS).runs == 4
    with pytest.raises(InputError, match="no run"):
        parse_ort_profile(TRACE, LABELS, warmup=4)


@pytest.mark.parametrize(
    ("kernel", "operator", "label"),
    [
        ("stem.1", "Conv", "stem.1"),
        ("stem.10_nchwc", "Conv", "stem.10"),
        ("stem.1_token_24", "QLinearConv", "stem.1"),
        ("stem.1/MatMulScaleFusion/", "FusedMatMul", "stem.1"),
        ("fused stem.0", "FusedConv", "stem.0"),
        ("stem.0.relu_q", "QuantizeLinear", "stem.0.relu"),
        ("stem.100", "Conv", None),
        ("Transpose_token_22", "Transpose", None),
        ("ReorderInput", "ReorderInput", None),
        ("stem", "Conv", None),
    ],
)
def test_kernels_find_their_nodes(kernel: str, operator: str, label: str | None) -> None:
    assert find_label(kernel, operator, LABELS) == label


def test_inserted_kernels_are_not_taken_for_a_node_named_like_its_operator() -> None:
    assert find_label("Transpose", "Transpose", {"Transpose": "mine"}) == "mine"
    assert find_label("Transpose_token_3", "Transpose", {"Transpose": "mine"}) is None


def tiny(*, channels: int = 16, names: bool = True) -> onnx.ModelProto:
    """conv - relu - conv + shortcut - relu - pool - conv - flatten, with real weights."""
    draft = Draft(["n", 3, 16, 16])
    a = draft.add("Relu", [draft.conv("x", "a", 3, channels, 3)], "a.relu")
    b = draft.add("Relu", [draft.add("Add", [draft.conv(a, "b", channels, channels), a], "b.add")], "b.relu")
    pool = draft.add("GlobalAveragePool", [b], "pool")
    out = draft.add("Flatten", [draft.conv(pool, "c", channels, 5)], "y")
    rng = np.random.default_rng(0)
    draft.weights = [
        numpy_helper.from_array(rng.standard_normal(tuple(one.dims)).astype("float32"), one.name)
        for one in draft.weights
    ]
    model = draft.model(out)
    if not names:
        for one in model.graph.node:
            one.name = ""
    return model


# 16 channels are computed in ONNX Runtime's blocked layout, 5 are not: kernels have other names.
@pytest.mark.parametrize("channels", [16, 5])
@pytest.mark.parametrize("names", [True, False])
def test_a_live_run(channels: int, names: bool) -> None:
    model = tiny(channels=channels, names=names)
    cost = count_fused(model, batch=2)
    images = np.zeros((2, 3, 16, 16), np.float64)
    found = profile_ort(model.SerializeToString(), images, cost.labels, threads=1, runs=5, warmup=1)
    assert found.runs == 5
    assert found.run_ms is not None
    assert 0 <= found.sum_ms <= found.run_ms
    assert {node for one in found.kernels for node in one.nodes} <= set(cost.labels.values())
    assert all("Reorder" in one.operator for one in found.unassigned)
    times = make_roofline("tiny", cost, _peaks(), times=found).layers
    assert {layer.layer.operator: layer.time_ms is not None for layer in times} == {
        "Conv": True,
        "GlobalAveragePool": True,
    }
    assert all(layer.time_ms is not None for layer in times)


def test_a_quantised_graph_gives_its_extra_kernels_to_the_layers() -> None:
    from vexport.graph.quantize import conv_inputs, conv_nodes, quantize

    model = tiny()
    int8 = quantize(model, dict.fromkeys(conv_inputs(model, conv_nodes(model)), 4.0))
    cost = count_fused(int8, batch=1)
    assert cost.precisions == ("int8",)
    found = profile_ort(int8.SerializeToString(), np.zeros((1, 3, 16, 16), "f"), cost.labels, threads=1, runs=3)
    layers = make_roofline("tiny", cost, _peaks(), times=found).layers
    assert all(layer.time_ms is not None for layer in layers if layer.layer.macs)
    assert all(one.operator in ("Transpose", "ReorderInput", "ReorderOutput") for one in found.unassigned)


def _peaks() -> Any:
    from vexport.bench.peak import PeakRates, Rate

    return PeakRates("d", 1, {"fp32": Rate("a", (1e9,)), "int8": Rate("a", (1e9,))}, Rate("b", (1e9,)))


def test_no_profile_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny(), path)
    monkeypatch.chdir(tmp_path)
    profile_ort(path, np.zeros((1, 3, 16, 16), "f"), count_fused(tiny()).labels, runs=1, warmup=0)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_profiled_is_refused(tmp_path: Path) -> None:
    labels = count_fused(tiny()).labels
    with pytest.raises(InputError, match="cannot profile"):
        profile_ort(tmp_path / "nothing.onnx", np.zeros((1, 3, 16, 16), "f"), labels)
    with pytest.raises(InputError, match="cannot profile"):
        profile_ort(tiny().SerializeToString(), np.zeros((1, 4, 16, 16), "f"), labels)
    with pytest.raises(InputError, match="0 runs"):
        profile_ort(tiny().SerializeToString(), np.zeros((1, 3, 16, 16), "f"), labels, runs=0)


def test_layers_of_an_engine_name_their_nodes() -> None:
    labels = {name: name for name in ("cls.0", "cls.2", "a", "b", "c", "d", "stages.0.conv", "stages.0.conv.relu")}
    assert mentioned_labels("cls.0 + cls.2", labels) == ("cls.0", "cls.2")
    assert mentioned_labels("Reformatting CopyNode for Input Tensor 0 to cls.2", labels) == ("cls.2",)
    assert mentioned_labels("{ForeignNode[b...d]}", labels) == ("b", "c", "d")
    assert mentioned_labels("__myl_Res_myl0_1 [ONNX Layer: stages.0.conv]", labels) == ("stages.0.conv",)
    assert mentioned_labels("stages.0.convolution", labels) == ()


def test_an_engine_needs_a_gpu(tmp_path: Path) -> None:
    from vexport.engine.target import find_devices

    if find_devices():
        pytest.skip("there is one")
    plan = tmp_path / "x.engine"
    plan.write_bytes(b"vtrt" + bytes(100))
    with pytest.raises(EngineError):
        profile_engine(plan, np.zeros((1, 3, 16, 16), "f"), {}, trust=True)


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
    import sys
    from types import SimpleNamespace

    import torch

    from tests.run.test_cuda import FakeTorch
    from vexport.engine import plan

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
    layers = make_roofline("tiny", together, _peaks(), times=found).layers
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
    layers = make_roofline("small", cost, _peaks(), times=found).layers
    assert any(layer.time_ms for layer in layers)
