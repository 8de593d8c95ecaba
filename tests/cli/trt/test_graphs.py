"""`vexport trt` on graphs written by hand: operators, batches and precisions that it takes, tells of or refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.cli.conftest import Invoke

from .conftest import A100, Refused


def small_graph(
    path: Path, *nodes: onnx.NodeProto, tensors: tuple[onnx.TensorProto, ...] = (), batch: object = "n"
) -> Path:
    """A graph from images to 4 classes: the nodes given, then pooling and a flatten."""
    last = nodes[-1].output[0]
    tail = (
        helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], name="flatten"),
    )
    made = helper.make_graph(
        [*nodes, *tail],
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4])],
        list(tensors),
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def weight(name: str, dtype: type = np.float32, outputs: int = 4, inputs: int = 3) -> onnx.TensorProto:
    values = np.random.default_rng(0).normal(size=(outputs, inputs, 1, 1)).astype(dtype)
    return numpy_helper.from_array(values, name)


def conv(name: str, source: str, kernel: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, kernel], [name], name=name)


@pytest.fixture
def two(folder: Path) -> Path:
    """A graph whose batch is fixed to 2."""
    return small_graph(folder / "two.onnx", conv("conv", "input", "w"), tensors=(weight("w"),), batch=2)


def test_unsupported_operator_is_named_with_its_node(refused: Refused, folder: Path) -> None:
    odd = helper.make_node("Unheard", ["input"], ["odd"], name="the.odd.one", domain="example")
    graph = small_graph(folder / "odd.onnx", odd, conv("conv", "odd", "w"), tensors=(weight("w"),))
    said = refused("trt", graph, "--fp32", *A100)
    assert "the.odd.one (Unheard)" in said


def test_a_broken_graph(refused: Refused, folder: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"not a graph")
    assert "is not a whole ONNX graph" in refused("trt", "broken.onnx", *A100)
    assert "no such file" in refused("trt", "nowhere.onnx", *A100)


def test_batch_outside_the_graph(refused: Refused, two: Path) -> None:
    said = refused("trt", two, "--fp32", *A100, "--max-batch", "4", "--opt-batch", "2", "--min-batch", "2")
    assert "the graph's batch is fixed to 2" in said
    assert "no profile" in refused("trt", two, *A100, "--min-batch", "3", "--opt-batch", "1")


def test_a_fixed_batch_is_the_profile(invoke: Invoke, two: Path) -> None:
    told = json.loads(invoke("trt", two, "--fp32", *A100, "--json").stdout)
    assert told["manifest"]["facts"]["profile"]["max"] == [2, 3, 8, 8]


@pytest.mark.parametrize("option", ["--min-batch", "--opt-batch", "--max-batch"])
def test_part_of_a_fixed_batch(invoke: Invoke, two: Path, option: str) -> None:
    assert invoke("trt", two, option, "2", *A100).exit_code == 0
    result = invoke("trt", two, option, "3", *A100)
    assert result.exit_code == 1
    assert "batch is fixed to 2" in result.stderr


def test_what_the_parser_makes_in_fp32_is_told(invoke: Invoke, folder: Path) -> None:
    norm = helper.make_node("LpNormalization", ["input"], ["normed"], name="norm", axis=1, p=2)
    path = small_graph(folder / "norm.onnx", norm, conv("a", "normed", "w"), tensors=(weight("w"),))
    result = invoke("trt", path, *A100)
    assert result.exit_code == 0, result.output
    assert "in FP32 all the same" in result.stdout
    assert "norm" in result.stdout.split("in FP32 all the same")[1]


def test_layers_whose_weights_suffer_are_named(invoke: Invoke, folder: Path) -> None:
    big, small = weight("big"), weight("small", inputs=4)
    big.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(big) * np.float32(1e5), "big"))
    small.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(small) * np.float32(1e-9), "small"))
    path = small_graph(folder / "wide.onnx", conv("a", "input", "big"), conv("b", "a", "small"), tensors=(big, small))
    result = invoke("trt", path, *A100)
    assert re.search(r"^  a: of 12 values \d+ overflow, 0 become 0; the largest is", result.stdout, re.M), result.output
    assert re.search(r"^  b: of 16 values 0 overflow, 16 become 0; the largest is", result.stdout, re.M)


def test_a_layer_in_the_wrong_precision_fails_with_its_name(invoke: Invoke, folder: Path) -> None:
    to = {"fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}
    nodes = (
        helper.make_node("Cast", ["input"], ["half"], name="down", to=to["fp16"]),
        conv("first", "half", "w16"),
        helper.make_node("Cast", ["first"], ["full"], name="up", to=to["fp32"]),
        conv("fell.back", "full", "w32"),
    )
    tensors = (weight("w16", np.float16, 64), weight("w32", outputs=2, inputs=64))
    graph = small_graph(folder / "mixed.onnx", *nodes, tensors=tensors)
    model = onnx.load(graph)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    onnx.save(model, graph)
    result = invoke("trt", graph, "--fp16", *A100)
    assert result.exit_code == 3, result.output
    assert "1 of 2 computing layers are not fp16" in result.stderr
    assert "fell.back (convolution) is fp32" in result.stderr
    assert not list(folder.rglob("*.engine"))


def test_int8_needs_a_quantised_graph(refused: Refused, graph: Path) -> None:
    assert "there is no int8 graph in vexport-out" in refused("trt", "--int8", *A100)
    assert "is fp32, the engine shall be int8" in refused("trt", graph, "--int8", *A100)


def test_a_quantised_graph_is_built(invoke: Invoke, graph: Path) -> None:
    class Images(CalibrationDataReader):  # type: ignore[misc]
        left = iter([{"input": np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantize_static(
        str(graph),
        "quantised.int8.onnx",
        Images(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "DedicatedQDQPair": True, "QuantizeBias": False},
    )
    told = json.loads(invoke("trt", "quantised.int8.onnx", "--int8", *A100, "--json").stdout)
    assert told["path"].endswith("quantised.int8.sm80.engine")
    kinds = [layer["kind"] for layer in told["manifest"]["facts"]["build"]["network_layers"]]
    assert kinds.count("QUANTIZE") >= 9
