"""Profiles of ONNX Runtime: read from a recorded trace and from a live run, kernels given to the nodes they compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vexport.bench.layer_times import find_label, parse_ort_profile, profile_ort
from vexport.bench.roofline import make_roofline
from vexport.errors import InputError
from vexport.graph.fused import count_fused
from vexport.graph.quantize import conv_inputs, conv_nodes, quantize

from .tiny_layers import PEAKS, tiny


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
    times = make_roofline("tiny", cost, PEAKS, times=found).layers
    assert {layer.layer.operator: layer.time_ms is not None for layer in times} == {
        "Conv": True,
        "GlobalAveragePool": True,
    }
    assert all(layer.time_ms is not None for layer in times)


def test_a_quantised_graph_gives_its_extra_kernels_to_the_layers() -> None:
    model = tiny()
    int8 = quantize(model, dict.fromkeys(conv_inputs(model, conv_nodes(model)), 4.0))
    cost = count_fused(int8, batch=1)
    assert cost.precisions == ("int8",)
    found = profile_ort(int8.SerializeToString(), np.zeros((1, 3, 16, 16), "f"), cost.labels, threads=1, runs=3)
    layers = make_roofline("tiny", cost, PEAKS, times=found).layers
    assert all(layer.time_ms is not None for layer in layers if layer.layer.macs)
    assert all(one.operator in ("Transpose", "ReorderInput", "ReorderOutput") for one in found.unassigned)


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
