"""`vexport inspect`: counts that agree with the network's, and what a changed file is called."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from vexport.errors import InputError
from vexport.graph.cost import count_layers
from vexport.graph.inspect import read_graph
from vexport.model.build import build_network, count_cost
from vexport.model.checkpoint import load_checkpoint
from vexport.pipeline.bench import _subjects
from vexport.pipeline.convert import convert_graph
from vexport.pipeline.export import export_graph
from vexport.pipeline.graphs import find_graph
from vexport.pipeline.inspect import inspect_artifact
from vexport.workspace import Workspace


@pytest.fixture
def workspace(small_checkpoint: Path, tmp_path: Path) -> Workspace:
    """A workspace with the small network's FP32 and FP16 graphs."""
    workspace = Workspace(tmp_path / "out")
    export_graph(small_checkpoint, workspace=workspace)
    convert_graph(find_graph(None, workspace=workspace), "fp16", workspace=workspace)
    return workspace


def test_the_graph_costs_what_the_network_costs(workspace: Workspace, small_checkpoint: Path) -> None:
    network = build_network(load_checkpoint(small_checkpoint).spec, form="deployed")
    cost = count_cost(network, (3, 64, 64))
    layers = count_layers(read_graph(workspace.root / "ckpt.onnx"))
    assert sum(layer.macs for layer in layers) == pytest.approx(cost.gmacs * 1e9)
    assert sum(layer.parameters for layer in layers) == cost.params
    stem = layers[0]
    assert (stem.name, stem.operator, stem.shape[0]) == ("stem.0", "Conv", 1)
    moved = 4 * (3 * 64 * 64 + stem.parameters + stem.shape[1] * stem.shape[2] * stem.shape[3])
    assert stem.bytes_moved == moved
    twice = count_layers(read_graph(workspace.root / "ckpt.onnx"), batch=2)
    assert sum(layer.macs for layer in twice) == 2 * sum(layer.macs for layer in layers)


def test_matrix_products_are_counted() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"], name="gemm", transB=1),
        helper.make_node("MatMul", ["y", "v"], ["z"], name="matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor(name, TensorProto.FLOAT, dims, [0.0] * 40 if name == "w" else [0.0] * 15)
            for name, dims in (("w", (5, 8)), ("v", (5, 3)))
        ],
    )
    layers = count_layers(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), batch=2)
    assert [layer.macs for layer in layers] == [2 * 5 * 8, 2 * 3 * 5]


def test_graphs_and_checkpoints_are_shown(workspace: Workspace, small_checkpoint: Path) -> None:
    half = inspect_artifact(workspace.root / "ckpt.fp16.onnx")
    assert (half.kind, half.known, half.facts["precision"]) == ("graph", True, "fp16")
    assert "9 Conv" in half.facts["operators"]
    assert "tolerance 1e-02" in half.facts["parity"]
    full = inspect_artifact(workspace.root / "ckpt.onnx")
    assert "Reshape" in full.facts["operators as exported"]
    assert full.facts["weights, bytes"] == 2 * half.facts["weights, bytes"]
    checkpoint = inspect_artifact(small_checkpoint)
    assert (checkpoint.kind, checkpoint.facts["form"], checkpoint.known) == ("checkpoint", "training", False)
    for found in (half, full, checkpoint):
        json.dumps(found.to_json())


def test_a_changed_file_is_said_to_be_changed(workspace: Workspace) -> None:
    path = workspace.root / "ckpt.onnx"
    model = onnx.load(path)
    model.doc_string = "mine now"
    onnx.save(model, path)
    found = inspect_artifact(path)
    assert not found.known
    assert any("changed since" in note for note in found.notes)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        inspect_artifact(tmp_path / "nothing.onnx")


def test_bench_takes_fp32_graphs_by_itself(workspace: Workspace) -> None:
    found = _subjects([], workspace, None, None, 1, lambda _text, _share: None)
    assert [path.name for path in found] == ["ckpt.onnx"]
