"""Q/DQ graphs: where the edges are, what is stored, what stays in FP32, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from colours import CONVS, colour_graph, prepared
from onnx import TensorProto, helper, numpy_helper

from vexport.errors import ExportError, InputError
from vexport.graph.opset import set_opset
from vexport.graph.precision import graph_precision
from vexport.graph.quantize import conv_edges, conv_inputs, conv_nodes, quantize, require_convs

RANGES = {"input": 4.0, "pooled": 6.0, "second": 5.0}


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"input": images})
    return np.asarray(answer)


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (node,) = (node for node in model.graph.node if name in node.output)
    return node


def test_every_convolution_takes_int8_and_has_int8_weights() -> None:
    model = colour_graph()
    before = model.SerializeToString()
    made = quantize(model, RANGES)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert graph_precision(made) == "int8"
    stored, original = tensors(made), tensors(model)
    edges = conv_edges(made)
    assert [(edge.node, edge.input, edge.quantised) for edge in edges] == [
        ("first", "input", True),
        ("second", "pooled", True),
        ("last", "second", True),
    ]
    for edge, conv in zip(edges, (node for node in made.graph.node if node.op_type == "Conv"), strict=True):
        # By hand, against what the report says.
        dequantize = producer(made, conv.input[0])
        quantize_node = producer(made, dequantize.input[0])
        assert (quantize_node.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
        assert quantize_node.input[0] == edge.input
        for node in (quantize_node, dequantize):
            assert stored[node.input[1]] == np.float32(edge.input_scale)
            assert stored[node.input[1]] == pytest.approx(RANGES[edge.input] / 127)
            assert (stored[node.input[2]], stored[node.input[2]].dtype) == (0, np.int8)
        weight_dq = producer(made, conv.input[1])
        assert (weight_dq.op_type, weight_dq.input[0]) == ("DequantizeLinear", edge.weight)
        assert [attribute.i for attribute in weight_dq.attribute if attribute.name == "axis"] == [0]
        values, scales = stored[edge.weight], stored[weight_dq.input[1]]
        real = original[f"{edge.node}.weight"]
        assert (values.dtype, len(scales)) == (np.int8, edge.channels)
        assert not stored[weight_dq.input[2]].any()
        largest = np.abs(real).reshape(len(real), -1).max(axis=1)
        np.testing.assert_allclose(scales, largest / 127, rtol=1e-6)
        assert edge.weight_scales == (scales.min(), scales.max())
        np.testing.assert_array_equal(values, np.rint(real / scales[:, None, None, None]).astype(np.int8))
    # No convolution's output is quantised before its Relu, and input, output and bias are FP32.
    assert [node.input[0] for node in made.graph.node if node.op_type == "Relu"] == ["first"]
    (first,) = (node for node in made.graph.node if node.name == "first")
    assert stored[first.input[2]].dtype == np.float32
    sides = (made.graph.input[0], made.graph.output[0])
    assert [value.type.tensor_type.elem_type for value in sides] == [TensorProto.FLOAT] * 2


def test_it_computes_what_by_hand_comes_out() -> None:
    model, images = colour_graph(), prepared(4)
    made = tensors(quantize(model, RANGES))

    def rounded(values: np.ndarray, name: str) -> np.ndarray:
        scale = np.float32(RANGES[name] / 127)
        return np.clip(np.rint(values / scale), -128, 127) * scale

    def weight(name: str) -> np.ndarray:
        return made[f"{name}.weight_quantized"] * made[f"{name}.weight_scale"][:, None, None, None]

    x = np.einsum("oc,nchw->nohw", weight("first")[..., 0, 0], rounded(images, "input"))
    x = np.maximum(x + made["first.bias"][:, None, None], 0)
    x = rounded(x.reshape(4, 6, 4, 2, 4, 2).max(axis=(3, 5)), "pooled")
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    kernel = weight("second")[:, 0]
    x = sum(
        padded[:, :, row : row + 4, column : column + 4] * kernel[:, row, column, None, None]
        for row in range(3)
        for column in range(3)
    )
    x = np.einsum("oc,nchw->nohw", weight("last")[..., 0, 0], rounded(x, "second"))
    np.testing.assert_allclose(run(quantize(model, RANGES), images), x.mean(axis=(2, 3)), rtol=1e-4, atol=1e-3)


def test_it_is_near_the_fp32_graph() -> None:
    model, images = colour_graph(), prepared(24)
    before, after = run(model, images), run(quantize(model, RANGES), images)
    assert 0 < np.abs(before - after).max() / np.abs(before).max() < 0.05
    per_tensor = quantize(model, RANGES, per_channel=False)
    assert {edge.channels for edge in conv_edges(per_tensor)} == {1}


def test_kept_layers_take_and_have_fp32() -> None:
    made = quantize(colour_graph(), RANGES, keep=["second"])
    edges = {edge.node: edge for edge in conv_edges(made)}
    assert [edge.quantised for edge in edges.values()] == [True, False, True]
    assert (edges["second"].input, edges["second"].input_scale) == ("pooled", None)
    assert (edges["second"].weight, edges["second"].weight_scales) == ("second.weight", None)
    assert edges["second"].to_json()["quantised"] is False
    # A range that nothing needs is not asked for.
    quantize(colour_graph(), {"input": 4.0, "second": 5.0}, keep=["second"])


def test_what_several_read_is_quantised_for_convolutions_only() -> None:
    """A residual: the addition, and a layer that is kept, take the tensor as it was; a shared weight likewise."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Relu", ["input"], ["relu"], name="relu"),
        helper.make_node("Conv", ["relu", "w"], ["a"], name="a"),
        helper.make_node("Conv", ["relu", "w"], ["b"], name="b"),
        helper.make_node("Add", ["a", "b"], ["ab"], name="ab"),
        helper.make_node("Add", ["ab", "relu"], ["sum"], name="sum"),
        helper.make_node("GlobalAveragePool", ["sum"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["logits"], name="flatten"),
    ]
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", ["n", 3, 8, 8]), ("logits", ["n", 3]))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "residual", sides[:1], sides[1:], [weight]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    for keep in ((), ("b",)):
        made = quantize(model, {"relu": 3.0}, keep=keep)
        onnx.checker.check_model(made, full_check=True)
        assert [edge.quantised for edge in conv_edges(made)] == [True, not keep]
        (add,) = (node for node in made.graph.node if node.name == "sum")
        assert add.input[1] == "relu"
        images = prepared(4)
        difference = np.abs(run(model, images) - run(made, images)).max()
        assert 0 < difference < 0.1
    both = conv_edges(quantize(model, {"relu": 3.0}))
    assert len({edge.weight for edge in both}) == 2
    made = quantize(model, {"relu": 3.0})
    pairs = [node.input[0] for node in made.graph.node if node.op_type == "Conv"]
    assert len(set(pairs)) == 2, "each convolution has a Q/DQ pair of its own"


def test_an_old_opset_is_raised() -> None:
    model = colour_graph()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 11))
    made = quantize(model, RANGES)
    assert made.opset_import[0].version == 18
    onnx.checker.check_model(made, full_check=True)


def contributed_graph(opset: int = 18, *, declared: bool = True) -> onnx.ModelProto:
    """Three convolutions with an operator between them that onnx has no definition of."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], name="a"),
        helper.make_node("Gelu", ["a"], ["gelu"], name="gelu", domain="com.microsoft"),
        helper.make_node("Conv", ["gelu", "w"], ["b"], name="b"),
        helper.make_node("Dropout", ["b"], ["dropped"], name="dropout"),  # of another definition before opset 12
        helper.make_node("Conv", ["dropped", "w"], ["c"], name="c"),
        helper.make_node("GlobalAveragePool", ["c"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["logits"], name="flatten"),
    ]
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", ["n", 3, 8, 8]), ("logits", ["n", 3]))
    ]
    domains = [helper.make_opsetid("", opset), *[helper.make_opsetid("com.microsoft", 1)] * declared]
    graph = helper.make_graph(nodes, "contributed", sides[:1], sides[1:], [weight])
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_behind_operators_that_onnx_does_not_know(opset: int) -> None:
    model, images = contributed_graph(opset), prepared(4)
    made = quantize(model, {"input": 4.0, "gelu": 9.0, "dropped": 40.0})
    assert [(edge.node, edge.quantised) for edge in conv_edges(made)] == [("a", True), ("b", True), ("c", True)]
    assert {entry.domain: entry.version for entry in made.opset_import} == {"": max(opset, 18), "com.microsoft": 1}
    before, after = run(model, images), run(made, images)
    assert 0 < np.abs(before - after).max() / np.abs(before).max() < 0.2


def test_a_type_that_is_said_to_be_unknown_is_known() -> None:
    """Some tools write a tensor's shape without its type."""
    model = contributed_graph()
    model.graph.value_info.add().name = "gelu"
    made = quantize(model, {"input": 4.0, "gelu": 9.0, "dropped": 40.0})
    assert all(edge.quantised for edge in conv_edges(made))


def test_a_convolution_that_onnx_runtime_skips_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    asks = QDQQuantizer._is_tensor_quantizable
    monkeypatch.setattr(
        QDQQuantizer, "_is_tensor_quantizable", lambda self, name: name != "pooled" and asks(self, name)
    )
    with pytest.raises(ExportError, match=r"left 1 convolution\(s\) in FP32") as caught:
        quantize(colour_graph(), RANGES)
    assert caught.value.details == ("second",)
    assert "--keep" in caught.value.hint
    quantize(colour_graph(), RANGES, keep=["second"])


@pytest.mark.parametrize("opset", [11, 18])
def test_a_domain_that_is_not_declared(opset: int) -> None:
    with pytest.raises(ExportError, match=r"cannot quantise the graph|cannot be written in opset 18") as caught:
        quantize(contributed_graph(opset, declared=False), {"input": 4.0, "gelu": 9.0, "dropped": 40.0})
    assert "com.microsoft" in caught.value.details[0]


def test_another_opset_keeps_the_other_domains() -> None:
    assert [(one.domain, one.version) for one in set_opset(contributed_graph(13), 17).opset_import] == [
        ("", 17),
        ("com.microsoft", 1),
    ]
    model = colour_graph()
    model.opset_import.append(helper.make_opsetid("my.own", 3))
    made = set_opset(model, 15)
    assert {one.domain: one.version for one in made.opset_import} == {"": 15, "my.own": 3}
    assert made.ir_version == 8


def test_dead_tensors_and_channels_have_usable_scales() -> None:
    model = colour_graph()
    for tensor in model.graph.initializer:
        if tensor.name == "second.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[2] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    made = quantize(model, {**RANGES, "pooled": 0.0})
    for edge in conv_edges(made):
        assert edge.input_scale is not None
        assert edge.weight_scales is not None
        assert 0 < edge.input_scale < np.inf
        assert 0 < edge.weight_scales[0] < np.inf
    assert np.isfinite(run(made, prepared(2))).all()


def test_a_file_will_do(tmp_path: Path) -> None:
    onnx.save(colour_graph(), tmp_path / "colours.onnx")
    from_file = quantize(tmp_path / "colours.onnx", RANGES)
    assert from_file.SerializeToString() == quantize(colour_graph(), RANGES).SerializeToString()
    props = {entry.key for entry in from_file.metadata_props}
    assert "vexport.model" in props
    assert "onnx.infer" not in props


def test_names() -> None:
    model = colour_graph()
    assert tuple(conv_nodes(model)) == CONVS
    assert require_convs(model, ["last"]) == ["first", "second"]
    assert conv_inputs(model, ["last", "first"]) == ["input", "second"]


def test_what_is_refused() -> None:
    model = colour_graph()
    with pytest.raises(InputError, match="quantised already"):
        quantize(quantize(model, RANGES), RANGES)
    with pytest.raises(InputError, match="no convolution relu") as caught:
        quantize(model, RANGES, keep=["relu"])
    assert caught.value.details == ("it has: first, second, last",)
    with pytest.raises(InputError, match="no convolution left"):
        quantize(model, RANGES, keep=CONVS)
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(InputError, match="have no range") as caught:
            quantize(model, {**RANGES, "pooled": bad})
        assert caught.value.details[0].startswith("pooled: ")
    with pytest.raises(InputError) as caught:
        quantize(model, {"input": 1.0})
    assert caught.value.details == ("pooled: missing", "second: missing")


def test_no_convolution_to_quantise() -> None:
    model = colour_graph()
    for node in model.graph.node:
        node.op_type = (
            "ConvInteger" if node.name == "last" else "QLinearConv" if node.op_type == "Conv" else node.op_type
        )
    for keep in ((), ("last",)):
        with pytest.raises(InputError, match="quantised already") as caught:
            require_convs(model, keep)
        assert caught.value.details == ("its 3 convolution(s) are integer operators: ConvInteger, QLinearConv",)
        assert "FP32" in caught.value.hint
    computed = colour_graph()
    computed.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
        for tensor in computed.graph.initializer
    )
    del computed.graph.initializer[:]
    with pytest.raises(InputError, match="no convolution with constant weights") as caught:
        require_convs(computed, [])
    assert caught.value.details == ("3 convolution(s) take weights that are computed",)
    assert "keep" not in str(caught.value)
    del computed.graph.node[:]
    with pytest.raises(InputError, match="no convolution with constant weights") as caught:
        require_convs(computed, [])
    assert caught.value.details == ()


def by_another_tool(made: onnx.ModelProto, scale: np.ndarray, *, constant: bool) -> onnx.ModelProto:
    """The scale of what `second` takes, stored otherwise."""
    for node in made.graph.node:
        if node.name in ("pooled_QuantizeLinear", "pooled_DequantizeLinear"):
            node.input[1] = "other"
    tensor = numpy_helper.from_array(scale, "other")
    if constant:
        made.graph.node.insert(0, helper.make_node("Constant", [], ["other"], name="constant", value=tensor))
    else:
        made.graph.initializer.append(tensor)
    return made


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_scales_as_other_tools_keep_them(constant: bool, shape: tuple[int, ...]) -> None:
    made = by_another_tool(quantize(colour_graph(), RANGES), np.full(shape, 0.25, np.float32), constant=constant)
    before = made.SerializeToString()
    assert [edge.input_scale for edge in conv_edges(made)][1] == 0.25
    assert made.SerializeToString() == before


def test_scales_that_no_convolution_can_have() -> None:
    made = quantize(colour_graph(), RANGES)
    with pytest.raises(InputError, match="pooled_QuantizeLinear has 6 scales for the tensor pooled"):
        conv_edges(by_another_tool(made, np.full(6, 0.25, np.float32), constant=False))
    made = quantize(colour_graph(), RANGES)
    for name in ("pooled_QuantizeLinear", "second.weight_DequantizeLinear"):
        computed = onnx.ModelProto()
        computed.CopyFrom(made)
        (node,) = (node for node in computed.graph.node if node.name == name)
        node.input[1] = "computed"
        with pytest.raises(InputError, match=f"the scale of {name} is not a constant"):
            conv_edges(computed)


def test_scales_that_disagree_are_named() -> None:
    made = quantize(colour_graph(), RANGES)
    (node,) = (node for node in made.graph.node if node.name == "pooled_DequantizeLinear")
    made.graph.initializer.append(numpy_helper.from_array(np.float32(9), "other"))
    node.input[1] = "other"
    with pytest.raises(InputError, match="pooled_DequantizeLinear 9"):
        conv_edges(made)


def test_weights_quantised_on_loading_are_seen_too() -> None:
    """As other tools write them: FP32, with a QuantizeLinear."""
    made = quantize(colour_graph(), RANGES)
    (dequantize,) = (node for node in made.graph.node if node.name == "first.weight_DequantizeLinear")
    weight = numpy_helper.from_array(np.ones((6, 3, 1, 1), np.float32), "first.weight")
    made.graph.initializer.append(weight)
    added = helper.make_node("QuantizeLinear", ["first.weight", *dequantize.input[1:]], ["q"], name="q", axis=0)
    made.graph.node.insert(0, added)
    dequantize.input[0] = "q"
    assert (conv_edges(made)[0].weight, conv_edges(made)[0].quantised) == ("first.weight", True)
