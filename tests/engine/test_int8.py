"""What a builder tells of its engine, and the gate on INT8."""

from __future__ import annotations

import logging

import pytest

from vexport.engine.inspect import EngineLayer, NetworkLayer, count_precisions
from vexport.engine.int8 import Int8Plan, describe_read_back, require_int8_engine, require_int8_network
from vexport.engine.report import heard_layers, parse_table
from vexport.errors import PrecisionError

# As TensorRT for RTX 1.7 prints it.
TENSOR = (
    "{{ Name: x, Dimensions: [-1,8,4,4], Strides: [1,1], StrideOrder: [3,2], Datatype: {kind}, Format: (NHWC) major }}"
)


def line(name: str, kind: str, takes: str, gives: str, nodes: str, constants: str = "Int8") -> str:
    one, const, two = (TENSOR.format(kind=kind) for kind in (takes, constants, gives))
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {one}], Constants: [ {const}], Outputs: [ {two}], "
        f"TacticName: tactic_{name}, StreamId: 0, Metadata: "
        + "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes.split())
    )


TABLE = "\n".join(
    [
        "Layers:",
        "Name: shapes, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
        "Metadata: ",
        line("q", "kgen", "Float", "Int8", "input_QuantizeLinear a", "Float"),
        line("a_U1", "correlation", "Int8", "Float", "a a.weight_DequantizeLinear"),
        line("scale", "kgen", "Float", "Half", "a a.relu", "Float"),
        line("b_U2", "correlation", "Half", "Half", "b", "Half"),
        "",
        "Bindings:",
    ]
)
PLAN = Int8Plan(("a",), ("b",), "fp16")


def test_the_table_is_read() -> None:
    layers = {layer.name: layer for layer in parse_table(TABLE)}
    assert list(layers) == ["shapes", "q", "a_U1", "scale", "b_U2"]
    one = layers["a_U1"]
    assert (one.kind, one.inputs, one.outputs, one.formats) == ("correlation", ("int8",), ("fp32",), ("(NHWC) major",))
    assert (one.tactic, one.nodes) == ("tactic_a_U1", "[ONNX Layer: a] [ONNX Layer: a.weight_DequantizeLinear]")
    assert parse_table("Layers:\nsomething else altogether") == ()


def test_layers_are_held_to_the_graph() -> None:
    layers = parse_table(TABLE)
    assert require_int8_engine(layers, PLAN, {}) == 2
    with pytest.raises(PrecisionError) as caught:
        require_int8_engine(layers, Int8Plan(("a", "b"), (), "fp16"), {})
    assert caught.value.details == ("b (correlation) takes fp16, not int8",)
    with pytest.raises(PrecisionError) as caught:
        require_int8_engine(layers, Int8Plan((), ("a", "b"), "fp16"), {})
    assert caught.value.details == ("a (correlation) takes int8, not fp16",)
    # Kept in FP32 on purpose, hidden in a fused kernel, or not told at all.
    assert require_int8_engine(layers, Int8Plan((), ("a", "b"), "fp16"), {"a": "overflows"}) == 1
    assert require_int8_engine(layers, Int8Plan(("c",), ("a.b",), "fp16"), {}) == 0
    assert describe_read_back((), PLAN, {})["result"] == "not readable"
    assert describe_read_back(layers, PLAN, {})["nodes_seen"] == 2


def test_a_kernel_that_only_quantises_does_not_count() -> None:
    """The node's name is in the layers around it as well, and those do touch INT8."""
    fell_back = (
        EngineLayer("q", "kgen", ("fp32",), ("int8",), (), nodes="[ONNX Layer: a]"),
        EngineLayer("dq", "Reformat", ("int8",), ("fp16",), (), nodes="[ONNX Layer: a]"),
        EngineLayer("a", "CaskConvolution", ("fp16",), ("fp16",), ()),
    )
    with pytest.raises(PrecisionError):
        require_int8_engine(fell_back, PLAN, {})


def test_the_network_is_held_to_the_graph() -> None:
    layers = [
        NetworkLayer("a", "CONVOLUTION", "fp16", quantised=True),
        NetworkLayer("b", "CONVOLUTION", "fp16"),
        NetworkLayer("c", "CONVOLUTION", "fp32"),
        NetworkLayer("other", "MATRIX_MULTIPLY", "fp32"),
    ]
    plan = Int8Plan(("a",), ("b", "c"), "fp16")
    with pytest.raises(PrecisionError) as caught:
        require_int8_network(layers, plan, {})
    assert caught.value.exit_code == 3
    assert caught.value.details == ("c (convolution) is fp32, not fp16",)
    require_int8_network(layers, plan, {"c": "overflows"})
    with pytest.raises(PrecisionError) as caught:
        require_int8_network(layers, Int8Plan(("a", "b", "gone"), ("c",), "fp32"), {})
    assert caught.value.details == ("b (convolution) is fp16, not int8", "gone is not in the network")
    assert count_precisions(layers[:3]) == {"convolution": {"int8": 1, "fp16": 1, "fp32": 1}}


def test_listening_leaves_polygraphy_as_it_was() -> None:
    pytest.importorskip("polygraphy")
    from polygraphy.logger import G_LOGGER

    from vexport.engine.runtime import choose_runtime, use_polygraphy

    pytest.importorskip("tensorrt_rtx")
    use_polygraphy(choose_runtime("tensorrt-rtx", by_name=True))
    logger = logging.getLogger("Polygraphy")
    before = (G_LOGGER.module_severity, logger.level, list(logger.handlers))
    with heard_layers() as told:
        G_LOGGER.extra_verbose(TABLE)
        G_LOGGER.extra_verbose("Layers: none")
    with heard_layers(wanted=False) as nothing:
        G_LOGGER.extra_verbose(TABLE)
    assert (len(told), nothing) == (1, [])
    assert [layer.name for layer in parse_table(told[0])] == ["shapes", "q", "a_U1", "scale", "b_U2"]
    assert (G_LOGGER.module_severity, logger.level, list(logger.handlers)) == before
