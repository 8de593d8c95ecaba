"""INT8 graphs whose rest is FP16: types, scales on FP16's grid, what stays, what is taken out, piece by piece."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from colours import colour_graph, prepared
from onnx import TensorProto, numpy_helper

from vexport.errors import InputError
from vexport.graph.half_rest import (
    NORMAL,
    depthwise_convs,
    int8_convs,
    kept_nodes,
    make_rest_half,
    rest_weights,
    round_scales,
    take_out,
)
from vexport.graph.precision import emulate_half, graph_precision
from vexport.graph.quantize import conv_edges, quantize
from vexport.graph.segments import compare_pieces
from vexport.run.pieces import measure_pieces

RANGES = {"input": 4.0, "pooled": 6.0, "second": 5.0}
LIMIT = 16376.0


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"input": images})
    return np.asarray(answer)


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def conv_types(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Types of what each convolution takes and gives."""
    found = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*found.value_info, *found.input, *found.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        node.name: {types[name] for name in (*node.input, *node.output)}
        for node in model.graph.node
        if node.op_type == "Conv"
    }


@pytest.fixture
def int8() -> onnx.ModelProto:
    return quantize(colour_graph(), RANGES)


def test_everything_but_int8_input_and_output_is_fp16(int8: onnx.ModelProto) -> None:
    half = make_rest_half(round_scales(int8))
    onnx.checker.check_model(half, full_check=True)
    assert graph_precision(half) == "int8"
    assert list(conv_types(half).values()) == [{TensorProto.FLOAT16}] * 3
    sides = (half.graph.input[0], half.graph.output[0])
    assert [side.type.tensor_type.elem_type for side in sides] == [TensorProto.FLOAT] * 2
    floats = {name: values.dtype for name, values in stored(half).items() if values.dtype.kind == "f"}
    # Images are quantised from FP32: that node's own copy of the scale.
    assert {name for name, kind in floats.items() if kind == np.float32} == {"input_scale.fp32"}
    # Nothing between a DequantizeLinear and its convolution: TensorRT would not fuse them.
    producers = {name: node for node in half.graph.node for name in node.output}
    for node in half.graph.node:
        if node.op_type == "Conv":
            assert [producers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2


def test_edges_are_those_of_the_int8_graph_on_the_grid(int8: onnx.ModelProto) -> None:
    before, after = conv_edges(int8), conv_edges(make_rest_half(round_scales(int8)))
    for one, other in zip(before, after, strict=True):
        assert (one.node, one.weight, one.channels) == (other.node, other.weight, other.channels)
        assert other.input_scale == float(np.float16(one.input_scale))
        assert other.weight_scales == tuple(float(np.float16(scale)) for scale in one.weight_scales or ())
    kept = {name: values for name, values in stored(int8).items() if values.dtype == np.int8 and values.ndim == 4}
    for name, values in kept.items():
        np.testing.assert_array_equal(stored(make_rest_half(round_scales(int8)))[name], values)


def test_taken_out_layers_compute_on_the_weights_that_int8_stands_for(int8: onnx.ModelProto) -> None:
    assert (int8_convs(int8), depthwise_convs(int8)) == (["first", "second", "last"], ["second"])
    before = int8.SerializeToString()
    without = take_out(int8, ["second"])
    assert int8.SerializeToString() == before
    assert int8_convs(without) == ["first", "last"]
    (node,) = (node for node in without.graph.node if node.name == "second")
    tensors = stored(int8)
    scales = tensors["second.weight_scale"].reshape(-1, 1, 1, 1)
    expected = tensors["second.weight_quantized"].astype(np.float32) * scales
    np.testing.assert_array_equal(stored(without)[node.input[1]], expected)
    assert node.input[0] == "pooled"
    read = {name for other in without.graph.node for name in other.input}
    assert set(stored(without)) <= read, "a constant is left over"
    assert sum(other.op_type == "QuantizeLinear" for other in without.graph.node) == 2
    # The same, written by hand: quantised only at the two others, with the rounded weight in place of the real one.
    plain = colour_graph()
    (weight,) = (tensor for tensor in plain.graph.initializer if tensor.name == "second.weight")
    weight.CopyFrom(numpy_helper.from_array(expected, "second.weight"))
    by_hand = quantize(plain, RANGES, keep=["second"])
    images = prepared(6)
    np.testing.assert_allclose(run(without, images), run(by_hand, images), rtol=1e-5, atol=1e-6)
    assert np.abs(run(without, images) - run(int8, images)).max() > 0


def test_what_is_not_quantised_cannot_be_taken_out(int8: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="no quantised convolution pool"):
        take_out(int8, ["pool"])
    with pytest.raises(InputError, match="no quantised convolution second"):
        take_out(take_out(int8, ["second"]), ["second"])


def test_depthwise_off_is_fp16_there_and_int8_elsewhere(int8: onnx.ModelProto) -> None:
    half = make_rest_half(round_scales(take_out(int8, ["second"])))
    assert int8_convs(half) == ["first", "last"]
    (node,) = (node for node in half.graph.node if node.name == "second")
    assert stored(half)[node.input[1]].dtype == np.float16
    assert conv_types(half)["second"] == {TensorProto.FLOAT16}


def test_scales_below_normal_numbers_keep_fp32_around_their_layer() -> None:
    plain = colour_graph()
    (weight,) = (tensor for tensor in plain.graph.initializer if tensor.name == "last.weight")
    values = numpy_helper.to_array(weight).copy()
    values[1] *= 1e-6  # that channel's scale would be 2e-8: nothing in FP16
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    rounded = round_scales(quantize(plain, RANGES))
    scales = stored(rounded)["last.weight_scale"]
    assert scales.min() < NORMAL / 1000
    kept = kept_nodes(rounded, {}, LIMIT)
    assert set(kept) == {"last", "last.weight_DequantizeLinear", "second_DequantizeLinear"}
    assert "is no normal FP16 number" in kept["last"]
    half = make_rest_half(rounded, keep=kept)
    onnx.checker.check_model(half, full_check=True)
    assert int8_convs(half) == ["first", "second", "last"]
    assert conv_types(half)["last"] == {TensorProto.FLOAT}
    np.testing.assert_array_equal(stored(half)["last.weight_scale"], scales)
    # Both sides of the pair have the same scale, in either type.
    edges = {edge.node: edge for edge in conv_edges(half)}
    assert edges["last"].input_scale == float(np.float16(5.0 / 127))
    images = prepared(6)
    np.testing.assert_allclose(run(half, images), run(rounded, images), rtol=2e-2, atol=2e-2)
    assert np.abs(run(half, images)[:, 1]).max() > 0


def test_a_tiny_activation_scale_stays_too(int8: onnx.ModelProto) -> None:
    rounded = round_scales(quantize(colour_graph(), RANGES | {"pooled": 1e-4}))
    kept = kept_nodes(rounded, {}, LIMIT)
    assert {"second", "pooled_QuantizeLinear", "pooled_DequantizeLinear"} <= set(kept)
    half = make_rest_half(rounded, keep=kept)
    assert conv_edges(half)[1].input_scale == pytest.approx(1e-4 / 127, rel=1e-6)
    assert conv_types(half)["second"] == {TensorProto.FLOAT}


def test_what_overflows_stays_with_what_dequantises_for_it(int8: onnx.ModelProto) -> None:
    rounded = round_scales(int8)
    kept = kept_nodes(rounded, {"first": 1e5, "relu": 1e5}, LIMIT)
    assert {"first", "relu", "pool"} <= set(kept)
    assert "gives activations up to 1e+05" in kept["first"]
    assert {"input_DequantizeLinear", "first.weight_DequantizeLinear"} <= set(kept)
    assert "second" not in kept
    half = make_rest_half(rounded, keep=kept)
    assert conv_types(half)["first"] == {TensorProto.FLOAT}
    assert conv_types(half)["second"] == {TensorProto.FLOAT16}
    assert int8_convs(half) == ["first", "second", "last"]


def test_weights_quantised_at_load_are_stored_in_int8(int8: onnx.ModelProto) -> None:
    """As other tools write them: FP32 through QuantizeLinear, which FP16 must not come before."""
    other = onnx.ModelProto()
    other.CopyFrom(int8)
    tensors = stored(other)
    (weight,) = (tensor for tensor in other.graph.initializer if tensor.name == "first.weight_quantized")
    real = numpy_helper.to_array(next(t for t in colour_graph().graph.initializer if t.name == "first.weight"))
    weight.CopyFrom(numpy_helper.from_array(real, "first.weight"))
    (dequantize,) = (node for node in other.graph.node if node.input[0] == "first.weight_quantized")
    node = onnx.helper.make_node(
        "QuantizeLinear", ["first.weight", *dequantize.input[1:]], ["first.weight.q"], name="q", axis=0
    )
    dequantize.input[0] = "first.weight.q"
    other.graph.node.insert(0, node)
    half = make_rest_half(round_scales(other))
    np.testing.assert_array_equal(stored(half)["first.weight.int8"], tensors["first.weight_quantized"])
    assert conv_edges(half)[0].quantised
    taken = take_out(other, ["first"])
    assert int8_convs(taken) == ["second", "last"]


def test_pieces_agree_and_a_wrong_one_is_found(int8: onnx.ModelProto) -> None:
    rounded = round_scales(int8)
    half = make_rest_half(rounded)
    graph, names = compare_pieces(rounded, emulate_half(half))
    onnx.checker.check_model(graph, full_check=True)
    images = [prepared(8), prepared(4)]
    errors = measure_pieces(graph, names, images)
    assert list(errors) == ["logits", "pooled", "second"]
    assert 0 < max(errors.values()) < 2e-3
    (bias,) = (tensor for tensor in half.graph.initializer if tensor.name == "first.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float16(0.25), bias.name))
    wrong = measure_pieces(*compare_pieces(rounded, emulate_half(half)), images)
    # Only there: the other pieces are given the right INT8 values.
    assert wrong["pooled"] > 2e-2
    assert {name: errors[name] for name in ("logits", "second")} == {name: wrong[name] for name in ("logits", "second")}
    bias.CopyFrom(numpy_helper.from_array(np.full(6, np.inf, np.float16), bias.name))
    assert measure_pieces(*compare_pieces(rounded, emulate_half(half)), images)["pooled"] == math.inf


def test_pieces_of_a_graph_with_layers_taken_out(int8: onnx.ModelProto) -> None:
    rounded = round_scales(take_out(int8, ["second"]))
    errors = measure_pieces(*compare_pieces(rounded, emulate_half(make_rest_half(rounded))), [prepared(8)])
    assert list(errors) == ["logits", "second"]
    assert max(errors.values()) < 2e-3


def test_scales_are_no_weights(int8: onnx.ModelProto) -> None:
    assert [row.tensor for row in rest_weights(round_scales(int8))] == ["first.bias"]
    rows = rest_weights(round_scales(take_out(int8, ["second"])))
    assert {row.node for row in rows} == {"first", "second"}
