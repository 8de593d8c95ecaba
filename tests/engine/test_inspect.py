"""What engines say of themselves, and the gate on precision."""

from __future__ import annotations

import json

import pytest

from vexport.engine.inspect import (
    NetworkLayer,
    count_precisions,
    other_fp32,
    parse_engine_layers,
    require_engine_precision,
    require_precision,
)
from vexport.errors import PrecisionError

FP16_FORMAT = "Channel major FP16 format where channel % 8 == 0"
FP32_FORMAT = "Row major linear FP32"


def tensor(kind: str, key: str = "Format/Datatype") -> dict[str, object]:
    return {"Name": "x", "Location": "Device", "Dimensions": [1, 8, 4, 4], key: kind}


def layer(name: str, takes: str, gives: str, kind: str = "CaskConvolution") -> dict[str, object]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(takes)],
        "Outputs": [tensor(gives)],
        "TacticName": "sm80",
    }


def report(*layers: object) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["input", "logits"]})


def test_types_and_formats_are_read() -> None:
    (one,) = parse_engine_layers(report(layer("stem.0 + stem.0.relu", FP32_FORMAT, FP16_FORMAT)))
    assert (one.inputs, one.outputs, one.tactic) == (("fp32",), ("fp16",), "sm80")
    assert one.formats == (FP32_FORMAT, FP16_FORMAT)


@pytest.mark.parametrize(
    ("said", "is_"),
    [("Half", "fp16"), ("Float", "fp32"), ("Int8", "int8"), ("BFloat16", "bf16"), ("FP16", "fp16")],
)
def test_newer_reports_name_the_type_apart(said: str, is_: str) -> None:
    entry = {"Name": "a", "LayerType": "gemm", "Inputs": [tensor(said, "Datatype")], "Outputs": []}
    assert parse_engine_layers(report(entry))[0].inputs == (is_,)


def test_names_alone_where_the_engine_was_built_without_detail() -> None:
    (one,) = parse_engine_layers(report("stem.0"))
    assert (one.name, one.outputs) == ("stem.0", ())


def test_a_layer_that_fell_back_is_named() -> None:
    layers = parse_engine_layers(
        report(
            layer("reformat for stem.0", FP32_FORMAT, FP16_FORMAT, "Reformat"),
            layer("stem.0", FP16_FORMAT, FP16_FORMAT),
            layer("cls.0 + cls.2", FP32_FORMAT, FP32_FORMAT),
        )
    )
    with pytest.raises(PrecisionError) as caught:
        require_engine_precision(layers, ["stem.0", "cls.2"], "fp16", {})
    assert caught.value.exit_code == 3
    assert caught.value.details == ("cls.2 (CaskConvolution) takes fp32",)
    assert require_engine_precision(layers, ["stem.0", "cls.2"], "fp16", {"cls.2": "overflows"}) == 1


def test_a_reformat_does_not_hide_a_kernel_that_fell_back() -> None:
    layers = parse_engine_layers(
        report(
            layer("Reformatting CopyNode for Input Tensor 0 to conv1", FP16_FORMAT, FP32_FORMAT, "NoOp"),
            layer("conv1 + relu1", FP32_FORMAT, FP32_FORMAT),
        )
    )
    with pytest.raises(PrecisionError):
        require_engine_precision(layers, ["conv1"], "fp16", {})


def test_nodes_are_found_in_the_metadata() -> None:
    named = layer("__myl_Conv_myl0_3", FP32_FORMAT, FP32_FORMAT, "gemm") | {
        "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]"
    }
    with pytest.raises(PrecisionError):
        require_engine_precision(parse_engine_layers(report(named)), ["conv1"], "fp16", {})
    assert require_engine_precision(parse_engine_layers(report("conv1")), ["conv1"], "fp16", {}) == 0


def test_nodes_are_found_whole() -> None:
    layers = parse_engine_layers(
        report(layer("cls.01", FP32_FORMAT, FP32_FORMAT), layer("[ONNX Layer: cls.0]", FP16_FORMAT, FP16_FORMAT))
    )
    assert require_engine_precision(layers, ["cls.0", "s.0", "hidden"], "fp16", {}) == 1


def network(*kinds: str) -> list[NetworkLayer]:
    return [NetworkLayer(f"conv{index}", "CONVOLUTION", kind) for index, kind in enumerate(kinds)]


def test_the_network_has_the_precision_asked_for() -> None:
    require_precision(network("fp16", "fp16"), "fp16", {})
    require_precision([*network("fp16"), NetworkLayer("cast", "CAST", "fp32")], "fp16", {})
    with pytest.raises(PrecisionError) as caught:
        require_precision(network("fp16", "fp32"), "fp16", {})
    assert caught.value.details == ("conv1 (convolution) is fp32",)
    require_precision(network("fp16", "fp32"), "fp16", {"conv1": "overflows"})
    with pytest.raises(PrecisionError):
        require_precision(network("fp16"), "fp32", {})
    with pytest.raises(PrecisionError, match="no Q/DQ nodes"):
        require_precision(network("fp16"), "int8", {})
    assert count_precisions(network("fp16", "fp32", "fp16")) == {"convolution": {"fp16": 2, "fp32": 1}}


def test_other_arithmetic_in_fp32_is_told() -> None:
    layers = [
        *network("fp16"),
        NetworkLayer("pool", "POOLING", "fp32"),
        NetworkLayer("move", "SHUFFLE", "fp32"),
        NetworkLayer("fc", "MATRIX_MULTIPLY", "fp32"),
        NetworkLayer("fc_3", "ELEMENTWISE", "fp32"),
    ]
    require_precision(layers, "fp16", {"fc": "overflows"})
    assert other_fp32(layers, "fp16", {"fc": "overflows"}) == ["pool (pooling)"]
    assert other_fp32(layers, "fp32", {}) == []


def test_a_node_with_a_number_is_not_excused_by_its_neighbour() -> None:
    convs = [NetworkLayer(name, "CONVOLUTION", "fp32") for name in ("conv", "conv_1")]
    with pytest.raises(PrecisionError) as caught:
        require_precision(convs, "fp16", {"conv": "overflows"})
    assert caught.value.details == ("conv_1 (convolution) is fp32",)
