"""FP16 and BF16 graphs: what is converted, what stays, what is lost."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vexport.graph.precision import (
    convert_precision,
    emulate_half,
    graph_precision,
    overflowing_nodes,
    weight_ranges,
)
from vexport.run.ranges import measure_ranges


def chain(*factors: float, outputs: int = 4) -> onnx.ModelProto:
    """Convolutions a0, a1 ... with these factors, each after the other, then pooling to 4 classes."""
    rng, nodes, weights, last = np.random.default_rng(0), [], [], "input"
    for index, factor in enumerate(factors):
        values = (rng.normal(size=(4, 4, 1, 1)) * factor).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"a{index}"], name=f"a{index}"))
        last = f"a{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"], name="flatten"))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"input": images})
    return np.asarray(answer)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)], ids=["fp16", "bf16"]
)
def test_everything_inside_is_converted(precision: str, kind: int, tmp_path: Path) -> None:
    model = chain(1, 1)
    before = model.SerializeToString()
    half = convert_precision(model, precision)  # type: ignore[arg-type]
    assert model.SerializeToString() == before
    assert {tensor.data_type for tensor in half.graph.initializer} == {kind}
    assert [value.type.tensor_type.elem_type for value in (half.graph.input[0], half.graph.output[0])] == [1, 1]
    assert [types_of(half)[name] for name in ("a0", "a1", "pooled")] == [kind] * 3
    onnx.save(half, tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    assert graph_precision(half) == precision
    assert half.opset_import[0].version == (22 if precision == "bf16" else 18)


def test_bf16_rounds_once() -> None:
    model = chain(1)
    half = convert_precision(model, "bf16")
    exact = numpy_helper.to_array(model.graph.initializer[0])
    assert np.array_equal(numpy_helper.to_array(half.graph.initializer[0]), exact.astype(ml_dtypes.bfloat16))


def test_fp16_agrees(images: np.ndarray) -> None:
    model = chain(1, 1, 1)
    exact, half = run(model, images), run(convert_precision(model, "fp16"), images)
    assert half.dtype == np.float32
    assert 0 < np.abs(exact - half).max() < 1e-2 * np.abs(exact).max()


def test_neighbours_that_stay_in_fp32_are_joined_without_fp16_between(images: np.ndarray) -> None:
    model = chain(1, 1e6, 1e-6, 1)
    half = convert_precision(model, "fp16", keep=["a1", "a2"])
    kinds = types_of(half)
    weights = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert [weights[f"w{index}"] for index in range(4)] == [10, 1, 1, 10]
    producer = {name: node for node in half.graph.node for name in node.output}
    (second,) = [node for node in half.graph.node if node.name == "a2"]
    assert (producer[second.input[0]].name, kinds[second.input[0]]) == ("a1", TensorProto.FLOAT)
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 4
    exact = run(model, images)
    assert np.abs(exact - run(emulate_half(half), images)).max() < 1e-2 * np.abs(exact).max()
    assert not np.isfinite(run(emulate_half(convert_precision(model, "fp16")), images)).all()


def test_what_overflows_is_found_by_measuring(images: np.ndarray, tmp_path: Path) -> None:
    model = chain(1, 1e6, 1e-6, 1)
    path = tmp_path / "chain.onnx"
    onnx.save(model, path)
    ranges = measure_ranges(path, [images])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chain.onnx"]
    session_model = onnx.ModelProto()
    session_model.CopyFrom(model)
    session_model.graph.output.append(helper.make_tensor_value_info("a1", TensorProto.FLOAT, None))
    session = ort.InferenceSession(session_model.SerializeToString(), providers=["CPUExecutionProvider"])
    (a1,) = session.run(["a1"], {"input": images})
    assert ranges["a1"] == pytest.approx(float(np.abs(np.asarray(a1)).max()), rel=1e-6)
    found = overflowing_nodes(model, ranges, 65504)
    assert set(found) == {"a1", "a2"}
    assert "weight w1" in found["a1"]
    assert "takes activations" in found["a2"]
    assert overflowing_nodes(chain(1), measure_ranges(path, [images * 0]), 65504) == {}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_overflows(value: float) -> None:
    assert set(overflowing_nodes(chain(1, 1), {"a0": value}, 65504)) == {"a0", "a1"}


def test_weights_are_counted_at_the_limits() -> None:
    model = chain(1)
    values = np.array([65504, 65600, -1e6, 6e-8, 2e-8, -2e-8, 6e-5, 6.2e-5, 0, 1, 2, 3, 4, 5, 6, -7], np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values.reshape(4, 4, 1, 1), "w0"))
    (row,) = weight_ranges(model, "fp16")
    assert (row.node, row.tensor, row.values, row.max_abs) == ("a0", "w0", 16, 1e6)
    assert (row.overflow, row.underflow, row.subnormal) == (2, 2, 2)
    (row,) = weight_ranges(model, "bf16")
    assert (row.overflow, row.underflow, row.subnormal) == (0, 0, 0)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_emulation_rounds_every_result(images: np.ndarray, precision: str) -> None:
    model = chain(1)
    half = convert_precision(model, precision)  # type: ignore[arg-type]
    kind = np.float16 if precision == "fp16" else ml_dtypes.bfloat16
    weights = numpy_helper.to_array(model.graph.initializer[0])[:, :, 0, 0].astype(kind).astype(np.float64)
    conv = np.einsum("oc,nchw->nohw", weights, images.astype(kind).astype(np.float64)).astype(kind)
    expected = conv.astype(np.float64).mean(axis=(2, 3)).astype(kind).astype(np.float32)
    answer = run(emulate_half(half), images)
    # The two sum in different orders: a value on the border may round to the next.
    assert np.abs(answer - expected).max() <= np.abs(expected).max() * 2.0 ** (-10 if precision == "fp16" else -7)
    assert np.array_equal(answer, answer.astype(kind).astype(np.float32))
    assert graph_precision(half) == precision
