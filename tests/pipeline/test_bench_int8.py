"""What of an INT8 row was computed in INT8: by what the runner reads back, not by what its graph offers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.pipeline.tiny_bench import FixedPeaks
from vexport.bench.clock import Samples
from vexport.graph.quantize import quantize
from vexport.pipeline import bench_roofline
from vexport.pipeline.bench_artifacts import Made
from vexport.pipeline.bench_document import Found, make_document
from vexport.pipeline.bench_int8 import int8_share
from vexport.pipeline.bench_matrix import Cell
from vexport.pipeline.bench_roofline import Rooflines, measure_rooflines
from vexport.pipeline.bench_run import Result, noted
from vexport.run import open_runner

SIZE = (3, 8, 8)
MACS = {"first": 8 * 8 * 4 * 3, "second": 8 * 8 * 4 * 4, "third": 8 * 8 * 5 * 4}
SHARE_ORT = MACS["second"] / sum(MACS.values())


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Three convolutions: ONNX Runtime computes the second alone in INT8, and OpenVINO all."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 3, 1, 1), "w2": (4, 4, 1, 1), "w3": (5, 4, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "second"),
        helper.make_node("Conv", ["c", "w3"], ["d"], "third"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["y"], "flatten"),
    ]
    plain = helper.make_graph(
        nodes,
        "three",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name) for name, shape in shapes.items()],
    )
    model = helper.make_model(plain, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "three.int8.onnx"
    onnx.save(quantize(model, {"x": 4.0, "b": 3.0, "c": 3.0}), path)
    return path


def result(graph: Path, backend: str, precision: str = "int8", note: str = "INT8: 3 of 3 convolutions") -> Result:
    made = Made(graph, graph.name, "a" * 64, 10, "random", ("a note", note))
    cell = Cell("three", backend, precision, 1, SIZE, made)
    with open_runner(graph, backend=backend) as runner:
        facts = {"backend": runner.backend, "runner": runner.describe()}
    return Result(noted(cell, facts), Samples(cell.name, ((1_000_000,) * 3,) * 5), facts)


def test_a_row_tells_its_share_of_int8_arithmetic(graph: Path) -> None:
    pytest.importorskip("openvino")
    found = [result(graph, "onnxruntime"), result(graph, "openvino"), result(graph, "onnxruntime", "fp32")]
    assert [int8_share(one.cell, one.facts) for one in found] == [pytest.approx(SHARE_ORT), 1.0, None]
    document, _ = make_document(Found([[one] for one in found], {"cpu": "Example"}, {}, "vexport bench"))
    rows = [group["rows"][0] for group in document["groups"]]
    assert [row["int8_share"] for row in rows] == [pytest.approx(SHARE_ORT), 1.0, None]


@pytest.mark.parametrize("note", ["INT8: 3 of 3 convolutions", "quantised in the graph: 3 of 3 convolutions"])
def test_the_note_tells_what_was_computed_and_not_what_the_graph_offers(graph: Path, note: str) -> None:
    assert result(graph, "onnxruntime", note=note).cell.made.notes == (  # type: ignore[union-attr]
        "a note",
        "computed in INT8: 1 of 3 convolutions, 33% of the multiply-accumulates; the rest in floating point",
    )


def test_where_the_runner_does_not_tell_nothing_is_claimed(graph: Path) -> None:
    cell = result(graph, "onnxruntime").cell
    assert int8_share(cell, {"backend": "tensorrt 10", "runner": {}}) is None
    assert int8_share(cell, {}) is None
    graph.unlink()
    assert int8_share(Cell("three", "onnxruntime", "int8", 2, SIZE, cell.made), {"runner": {"int8_layers": []}}) is None


def test_layers_that_ran_in_fp32_are_held_against_the_fp32_peak(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_roofline, "MeasurePeaks", FixedPeaks)
    found = Rooflines()
    measure_rooflines([result(graph, "onnxruntime")], found, threads=1, own_process=False)
    (roofline,) = found.by_cell.values()
    layers = {one.layer.name: one.layer.precision for one in roofline.layers if one.layer.macs}
    assert layers == {"first": "fp32", "second": "int8", "third": "fp32"}
    assert roofline.peaks.rate("fp32").per_s == roofline.peaks.rate("int8").per_s, "both were asked for"
