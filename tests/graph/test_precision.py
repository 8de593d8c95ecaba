"""FP16 and BF16 graphs: what is converted, what stays, what is lost."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vexport.errors import ExportError
from vexport.graph.precision import (
    convert_precision,
    emulate_half,
    graph_precision,
    lift_constants,
    overflowing_nodes,
    weight_ranges,
)
from vexport.pipeline.export import export_graph
from vexport.run.ranges import measure_ranges
from vexport.workspace import Workspace


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


def all_types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every tensor: weights, inputs, outputs and what is between."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {tensor.name: tensor.data_type for tensor in graph.initializer} | {
        value.name: value.type.tensor_type.elem_type for value in values
    }


def bits(model: onnx.ModelProto) -> dict[str, tuple[int, bytes]]:
    """Type and bytes of every weight."""
    return {
        tensor.name: (tensor.data_type, numpy_helper.to_array(tensor).tobytes()) for tensor in model.graph.initializer
    }


def set_weight(model: onnx.ModelProto, index: int, values: np.ndarray) -> None:
    model.graph.initializer[index].CopyFrom(numpy_helper.from_array(values.reshape(4, 4, 1, 1), f"w{index}"))


def test_an_exported_network_in_16_bits(small_checkpoint: Path, tmp_path: Path) -> None:
    exported = export_graph(small_checkpoint, workspace=Workspace(tmp_path / "out")).artifact.path
    model = onnx.load(exported)
    before = model.SerializeToString()
    pictures = np.random.default_rng(2).normal(size=(3, 3, 64, 64)).astype(np.float32)
    exact = run(model, pictures)
    for precision, kind in (("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)):
        half = convert_precision(model, precision)  # type: ignore[arg-type]
        onnx.checker.check_model(half, full_check=True)
        types = all_types(half)
        convs = [node for node in half.graph.node if node.op_type == "Conv"]
        assert len(convs) == 9
        assert {types[name] for node in convs for name in (*node.input, *node.output)} == {kind}
        assert (types["input"], types["logits"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
        bound = 1e-2 if precision == "fp16" else 5e-2
        assert 0 < np.abs(run(emulate_half(half), pictures) - exact).max() < bound * np.abs(exact).max()
        if precision == "fp16":
            assert 0 < np.abs(run(half, pictures) - exact).max() < bound * np.abs(exact).max()
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)], ids=["fp16", "bf16"]
)
@pytest.mark.parametrize("kept", ["a0", "a1", "a2"])
def test_what_is_kept_has_its_fp32_weights_and_casts_around(precision: str, kind: int, kept: str) -> None:
    model = chain(1, 1, 1)
    half = convert_precision(model, precision, keep=[kept])  # type: ignore[arg-type]
    types, exact, weights = all_types(half), bits(model), bits(half)
    for number in range(3):
        is_kept = kept == f"a{number}"
        assert (weights[f"w{number}"] == exact[f"w{number}"]) == is_kept
        (node,) = [node for node in half.graph.node if node.name == f"a{number}"]
        assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT if is_kept else kind}
    (node,) = [node for node in half.graph.node if node.name == kept]
    producers = {name: other for other in half.graph.node for name in other.output}
    (after,) = [other for other in half.graph.node if node.output[0] in other.input]
    assert after.op_type == "Cast"
    assert types[after.output[0]] == kind
    if kept == "a0":
        assert node.input[0] == "input", "the input is FP32 already"
    else:
        before = producers[node.input[0]]
        assert before.op_type == "Cast"
        assert types[before.input[0]] == kind


def test_nodes_come_after_what_they_read() -> None:
    half = convert_precision(chain(1, 1, 1, 1), "fp16", keep=["a1", "a3"])
    known = {value.name for value in half.graph.input} | {tensor.name for tensor in half.graph.initializer}
    for node in half.graph.node:
        assert known.issuperset(node.input), f"{node.name} comes too early"
        known |= set(node.output)
    onnx.checker.check_model(half, full_check=True)


def test_bf16_rounds_every_weight_once_from_fp32() -> None:
    # Rounded to FP16 first, 1 + 2^-8 + 2^-12 would be a tie and go down; 1e5 would be 65504; 1e-9 would be 6e-8.
    model = chain(1, 1)
    traps = [1 + 2**-8 + 2**-12, 1e5, -1e38, 1e-9, -1e-38, 1e-40, 0, 65519]
    set_weight(model, 0, np.array([*traps, *np.random.default_rng(3).normal(size=8)], np.float32))
    half = convert_precision(model, "bf16")
    for original, rounded in zip(model.graph.initializer, half.graph.initializer, strict=True):
        expected = numpy_helper.to_array(original).astype(ml_dtypes.bfloat16)
        assert np.array_equal(numpy_helper.to_array(rounded).view(np.uint16), expected.view(np.uint16))


def test_what_the_converter_cannot_do_is_an_export_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such type\nmore")

    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", broken)
    with pytest.raises(ExportError, match="cannot convert the graph to bf16") as caught:
        convert_precision(chain(1), "bf16")
    assert caught.value.details == ("no such type",)


LIMITS = {
    "fp16": {
        65504: None,
        65520: "overflow",
        float("inf"): "overflow",
        6.104e-5: None,
        6.1e-5: "subnormal",
        6e-8: "subnormal",
        3e-8: "subnormal",
        2.9e-8: "underflow",
        1e-45: "underflow",
        0: None,
    },
    "bf16": {
        65520: None,
        3.38e38: None,
        3.4e38: "overflow",
        float("inf"): "overflow",
        6e-8: None,
        1.18e-38: None,
        1.17e-38: "subnormal",
        1e-40: "subnormal",
        4e-41: "underflow",
        0: None,
    },
}


@pytest.mark.parametrize(
    ("precision", "value", "verdict"),
    [(precision, value, verdict) for precision, values in LIMITS.items() for value, verdict in values.items()],
)
def test_a_weight_at_the_limit(precision: str, value: float, verdict: str | None) -> None:
    for sign in (1, -1):
        model = chain(1)
        set_weight(model, 0, np.array([sign * value, *[0.5] * 15], np.float32))
        (row,) = weight_ranges(model, precision)  # type: ignore[arg-type]
        counts = {"overflow": row.overflow, "underflow": row.underflow, "subnormal": row.subnormal}
        assert counts == {name: int(name == verdict) for name in counts}
        assert row.max_abs == max(np.float32(value), 0.5)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_counts_are_what_rounding_does(precision: str) -> None:
    rng = np.random.default_rng(5)
    low, high = (-30, 20) if precision == "fp16" else (-140, 127.99)
    values = (2.0 ** rng.uniform(low, high, 4000) * rng.choice([-1, 1], 4000)).astype(np.float32)
    model = chain(1)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w0"))
    (row,) = weight_ranges(model, precision)  # type: ignore[arg-type]
    kind = np.dtype(np.float16 if precision == "fp16" else ml_dtypes.bfloat16)
    limits = ml_dtypes.finfo(kind)
    with np.errstate(over="ignore"):
        rounded = np.abs(values.astype(kind).astype(np.float32))
    assert row.overflow == int((np.abs(values) > float(limits.max)).sum()) >= int(np.isinf(rounded).sum())
    assert row.underflow == int(((rounded == 0) & (values != 0)).sum())
    assert row.subnormal == int(((np.abs(values) < float(limits.tiny)) & (rounded > 0)).sum())
    assert min(row.underflow, row.subnormal) > 0
    assert row.overflow > 0 or precision == "bf16"


def test_weights_are_listed_in_the_graphs_order_with_who_uses_them() -> None:
    model = chain(1, 1, 1)
    model.graph.node[2].input[1] = "w0"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "shape"))
    rows = weight_ranges(model, "fp16")
    # w0 goes to its first user; nobody uses w2; integers are no weights.
    assert [(row.tensor, row.node) for row in rows] == [("w0", "a0"), ("w1", "a1"), ("w2", "")]
    assert rows[0].to_json()["values"] == 16


@pytest.mark.parametrize(
    ("ranges", "found"),
    [
        ({"input": 7e4}, {"a0": "it takes activations up to 7e+04"}),
        (
            {"a1": 7e4},
            {"a1": "it gives activations up to 7e+04", "pool": "it takes activations up to 7e+04"},
        ),
        ({"logits": float("inf")}, {"flatten": "it gives activations up to inf"}),
        (
            {"pooled": float("nan")},
            {"pool": "it gives activations up to nan", "flatten": "it takes activations up to nan"},
        ),
        (dict.fromkeys(("input", "a0", "a1", "pooled", "logits"), 65504.0), {}),
        ({}, {}),
    ],
    ids=["taken", "given", "infinite", "NaN", "at the limit", "not measured"],
)
def test_which_activations_overflow(ranges: dict[str, float], found: dict[str, str]) -> None:
    assert overflowing_nodes(chain(1, 1), ranges, 65504) == found


def test_a_weight_that_overflows_is_the_reason_given() -> None:
    model = chain(1, 1)
    set_weight(model, 1, np.array([-7e4, *[0.5] * 15], np.float32))
    assert overflowing_nodes(model, {}, 65504) == {"a1": "weight w1 reaches 7e+04"}
    assert overflowing_nodes(model, {"a0": 1e5}, 65504) == {
        "a0": "it gives activations up to 1e+05",
        "a1": "weight w1 reaches 7e+04",
    }
    assert overflowing_nodes(model, {}, 7e4) == {}


def test_a_weight_in_a_constant_node_counts_as_one(images: np.ndarray) -> None:
    model = chain(1, 1)
    set_weight(model, 1, np.array([-7e4, *[0.5] * 15], np.float32))
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "w1"]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], name="constant", value=tensor))
    model.graph.initializer.remove(tensor)
    lifted = lift_constants(model)
    assert [node.op_type for node in model.graph.node].count("Constant") == 1
    assert overflowing_nodes(lifted, {}, 65504) == {"a1": "weight w1 reaches 7e+04"}
    assert {row.tensor: row.overflow for row in weight_ranges(lifted, "fp16")} == {"w0": 0, "w1": 1}
    np.testing.assert_array_equal(run(lifted, images), run(model, images))
    half = convert_precision(lifted, "fp16", keep=["a1"])
    np.testing.assert_allclose(run(half, images), run(model, images), rtol=0.02)


def test_what_kept_nodes_share_stays_a_weight(images: np.ndarray) -> None:
    model = chain(1, 1)
    shared = numpy_helper.from_array(np.float32(3e4).reshape(1), "big")
    model.graph.initializer.append(shared)
    up = helper.make_node("Mul", ["a0", "big"], ["up"], name="up")
    down = helper.make_node("Div", ["up", "big"], ["down"], name="down")
    model.graph.node.insert(1, up)
    model.graph.node.insert(2, down)
    model.graph.node[3].input[0] = "down"
    half = convert_precision(lift_constants(model), "fp16", keep=["up", "down", "a1"])
    weights = {tensor.name for tensor in half.graph.initializer}
    kept = {node.name: node for node in half.graph.node}
    assert {kept["up"].input[1], kept["down"].input[1], kept["a1"].input[1]} <= weights
    np.testing.assert_allclose(run(half, images), run(model, images), rtol=0.02, atol=1e-3)


def test_the_bf16_emulation_is_rounding_by_hand(images: np.ndarray) -> None:
    """All factors are between 1 and 2, so that FP32 sums the products of 8-bit numbers exactly, in any order."""
    rng = np.random.default_rng(4)
    factors = [rng.uniform(1, 2, (4, 4)).astype(np.float32) for _ in range(2)]
    images = rng.uniform(1, 2, images.shape).astype(np.float32)
    model = chain(1, 1)
    for index, values in enumerate(factors):
        set_weight(model, index, values)

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)

    expected = rounded(images)
    for values in factors:
        expected = rounded(np.einsum("oc,nchw->nohw", rounded(values), expected))
    expected = rounded(expected.mean(axis=(2, 3)))
    assert np.array_equal(run(emulate_half(convert_precision(model, "bf16")), images), expected)
    assert not np.array_equal(run(model, images), expected)


def test_the_emulation_leaves_alone_what_stays_in_fp32(images: np.ndarray) -> None:
    model = chain(1, 1)
    half = convert_precision(model, "fp16", keep=["a0", "a1"])
    before = half.SerializeToString()
    emulated = emulate_half(half)
    assert half.SerializeToString() == before
    assert {tensor.data_type for tensor in emulated.graph.initializer} == {TensorProto.FLOAT}
    inner = onnx.ModelProto()
    inner.CopyFrom(emulated)
    (second,) = [node for node in inner.graph.node if node.name == "a1"]
    assert [node.input[0] for node in inner.graph.node if node.name == "a0"] == ["input"]
    assert second.input[0] in {name for node in inner.graph.node if node.name == "a0" for name in node.output}


def test_the_precision_of_a_graph() -> None:
    assert graph_precision(chain(1)) == "fp32"
    # What most weights say: one layer of three in FP32 changes nothing, two do.
    assert graph_precision(convert_precision(chain(1, 1, 1), "fp16", keep=["a0"])) == "fp16"
    assert graph_precision(convert_precision(chain(1, 1, 1), "bf16", keep=["a0"])) == "bf16"
    assert graph_precision(convert_precision(chain(1, 1, 1), "fp16", keep=["a0", "a1"])) == "fp32"
    quantized = chain(1)
    quantized.graph.node.insert(0, helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="q"))
    assert graph_precision(quantized) == "int8"
    del quantized.graph.node[:], quantized.graph.initializer[:]
    assert graph_precision(quantized) == "fp32"


def test_fp16_weights_are_rounded_to_the_nearest() -> None:
    model = chain(1)
    set_weight(model, 0, np.array([1e-20, -1e-20, 2e-8, -2e-8, *[0.5] * 12], np.float32))
    rounded = numpy_helper.to_array(convert_precision(model, "fp16").graph.initializer[0])
    assert np.array_equal(rounded, numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16))


def test_logits_beyond_fp16_stay_in_fp32(images: np.ndarray) -> None:
    model = chain(1, 1e6)
    half = convert_precision(model, "fp16", keep=["a1", "pool", "flatten"])
    assert np.isfinite(run(half, images)).all()


def test_a_weight_shared_with_a_kept_node_stays_exact_for_it() -> None:
    model = chain(1, 1)
    model.graph.node[1].input[1] = "w0"
    half = convert_precision(model, "fp16", keep=["a1"])
    (kept,) = [node for node in half.graph.node if node.name == "a1"]
    exact = {tensor.name for tensor in half.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert kept.input[1] in exact


@pytest.mark.parametrize("value", [1e6, 1e-10, 1 + 2**-8 + 2**-12])
def test_bf16_rounds_constants_once(value: float) -> None:
    model = chain(1)
    constant = numpy_helper.from_array(np.array([value], np.float32))
    model.graph.node[0].input[0] = "scaled"
    model.graph.node.insert(0, helper.make_node("Mul", ["input", "c"], ["scaled"], name="mul"))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], name="c", value=constant))
    half = convert_precision(model, "bf16")
    (rounded,) = [node.attribute[0].t for node in half.graph.node if node.op_type == "Constant"]
    assert numpy_helper.to_array(rounded)[0] == np.float32(value).astype(ml_dtypes.bfloat16)
