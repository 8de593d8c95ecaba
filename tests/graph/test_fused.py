"""Layers as a backend runs them: which nodes make one, and its bytes counted by hand."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.graph.graphs import Draft, qdq, resnet50, two_layers, vanillanet
from vexport.errors import InputError
from vexport.graph.fused import FusedLayer, GraphCost, count_fused
from vexport.model.variants import VARIANTS


def layers_of(model: onnx.ModelProto, **kwargs: object) -> dict[str, FusedLayer]:
    return {layer.name: layer for layer in count_fused(model, **kwargs).layers}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "size", "name"), [(TensorProto.FLOAT, 4, "fp32"), (TensorProto.FLOAT16, 2, "fp16"), (16, 2, "bf16")]
)
@pytest.mark.parametrize("batch", [1, 5])
def test_two_convolutions_by_hand(kind: int, size: int, name: str, batch: int) -> None:
    cost = count_fused(two_layers(kind), batch=batch)
    a, pool, b = cost.layers
    assert (a.operators, pool.operators, b.nodes) == (("Conv", "Relu"), ("MaxPool",), ("b", "y"))
    assert a.precision == b.precision == name
    inner, pooled = batch * 16 * 64, batch * 16 * 16
    assert (a.weight_bytes, a.input_bytes, a.output_bytes) == (
        size * (16 * 3 * 9 + 16),
        size * batch * 3 * 64,
        size * inner,
    )
    assert (pool.weight_bytes, pool.input_bytes, pool.output_bytes) == (0, size * inner, size * pooled)
    assert (b.weight_bytes, b.input_bytes, b.output_bytes) == (size * (64 + 4), size * pooled, size * batch * 4 * 16)
    assert (a.macs, b.macs) == (inner * 27, batch * 4 * 16 * 16)
    assert (a.flops, a.operations, pool.operations, b.operations) == (2 * a.macs, inner, 4 * pooled, 0)
    assert cost.layer_bytes == sum(layer.bytes_moved for layer in cost.layers)
    assert cost.resident_bytes == a.weight_bytes + b.weight_bytes + a.input_bytes + b.output_bytes
    assert cost.batch == batch


def test_a_shortcut_rides_along_and_is_read_once_more() -> None:
    draft = Draft(["n", 8, 4, 4])
    first = draft.add("Relu", [draft.conv("x", "a", 8, 8)], "a.relu")
    second = draft.conv(draft.add("Relu", [draft.conv(first, "b", 8, 8)], "b.relu"), "c", 8, 8)
    added = draft.add("Add", [first, second], "add")
    found = layers_of(draft.model(draft.add("Relu", [added], "y")))
    assert {name: layer.operators for name, layer in found.items()} == {
        "a": ("Conv", "Relu"),
        "b": ("Conv", "Relu"),
        # The Add cannot ride with `a`: it waits for `c`, which waits for `a`.
        "c": ("Conv", "Add", "Relu"),
    }
    tensor = 4 * 8 * 16
    assert (found["c"].input_bytes, found["c"].output_bytes) == (2 * tensor, tensor)
    assert found["a"].output_bytes == tensor


def test_a_downsampled_shortcut_joins_one_of_both_sides() -> None:
    found = layers_of(resnet50())
    assert found["layer1.0.conv3"].operators == ("Conv", "Add", "Relu")
    assert found["layer1.0.short"].operators == ("Conv",)
    assert len(found) == 1 + 1 + 53 - 1 + 1 + 1  # stem, pool, other convolutions, average, fc
    assert sum(layer.macs for layer in found.values()) / 1e9 == pytest.approx(4.089, abs=0.001)


def test_all_parts_of_a_gelu_ride_along() -> None:
    """One input has two readers, both inside."""
    draft = Draft(["n", 64])
    draft.weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("r", 1.4), ("o", 1))]
    y = draft.add("Gemm", ["x", draft.weight("w", 64, 32)], "fc")
    erf = draft.add("Erf", [draft.add("Div", [y, "r"], "div")], "erf")
    out = draft.add("Mul", [y, draft.add("Add", [erf, "o"], "plus")], "y")
    (layer,) = count_fused(draft.model(out), batch=2).layers
    assert layer.operators == ("Gemm", "Div", "Erf", "Add", "Mul")
    assert (layer.input_bytes, layer.output_bytes, layer.weight_bytes) == (4 * 2 * 64, 4 * 2 * 32, 4 * (64 * 32 + 2))
    assert layer.operations == 4 * 2 * 32


def test_a_smaller_branch_does_not_swallow_a_larger_one() -> None:
    """Squeeze and excitation: the product rides with the convolution's tensor, where it can, never with the gate."""
    draft = Draft(["n", 8, 4, 4])
    a = draft.conv("x", "a", 8, 8)
    gate = draft.add("Sigmoid", [draft.conv(draft.add("GlobalAveragePool", [a], "mean"), "gate", 8, 8)], "sigmoid")
    found = layers_of(draft.model(draft.add("Mul", [a, gate], "y")))
    assert found["gate"].operators == ("Conv", "Sigmoid")
    assert found["y"].operators == ("Mul",)
    assert found["y"].input_bytes == 4 * (8 * 16 + 8)


def test_bytes_of_a_quantised_graph() -> None:
    cost = count_fused(qdq())
    first, a, b = cost.layers
    assert (first.nodes, first.input_bytes, first.output_bytes) == (("x.q",), 4 * 3 * 64, 3 * 64)
    assert a.operators == ("Conv", "Relu", "QuantizeLinear")
    assert set(a.nodes) == {"a", "a.relu", "m.q", "x.dq", "a.w.dq"}
    scalar = 4 + 1
    assert a.weight_bytes == 16 * 3 + 16 * (4 + 1) + 4 * 16 + 2 * scalar
    assert (a.input_bytes, a.output_bytes) == (3 * 64, 16 * 64)
    assert (b.input_bytes, b.output_bytes) == (16 * 64, 4 * 4 * 64)
    assert (a.precision, b.precision) == ("int8", "int8")
    assert cost.precisions == ("int8",)
    # What somebody else reads in FP32 is written in both types.
    _, both, _ = count_fused(qdq(shared=True)).layers
    assert both.output_bytes == 16 * 64 * (1 + 4)


def test_weights_quantised_when_loaded_and_weights_alone() -> None:
    draft = Draft(["n", 8, 4, 4])
    weight = draft.quantized(draft.weight("w", 8, 8, 1, 1), "w")
    out = draft.add("Conv", ["x", weight], "y")
    (layer,) = count_fused(draft.model(out)).layers
    assert layer.weight_bytes == 64 + 4 + 1
    assert layer.precision == "fp32"  # its input is


def test_a_dequantised_output_is_written() -> None:
    draft = Draft(["n", 8])
    out = draft.quantized("x", "x")
    (layer,) = count_fused(draft.model(out)).layers
    assert (layer.operators, layer.output_bytes) == (("QuantizeLinear", "DequantizeLinear"), 4 * 8)


def test_unknown_operators_count_their_bytes_and_are_named() -> None:
    draft = Draft(["n", 8, 4, 4])
    odd = draft.add("Odd", [draft.conv("x", "a", 8, 8)], "odd", domain="mine")
    cost = count_fused(draft.model(draft.add("Relu", [odd], "y")))
    assert cost.unknown == ("odd (Odd)", "y (Relu)")  # behind it, shapes are unknown too
    found = {layer.name: layer for layer in cost.layers}
    assert (found["odd"].input_bytes, found["odd"].macs, found["odd"].known) == (4 * 8 * 16, 0, False)
    assert found["a"].known


def test_shapes_that_contradict_each_other_are_unknown() -> None:
    draft = Draft(["n", 3, 8, 8])
    cost = count_fused(draft.model(draft.add("Gemm", ["x", draft.weight("w", 3, 3)], "y")))
    assert (cost.unknown, cost.macs, cost.layers[0].shape) == (("y (Gemm)",), 0, ())


def test_a_known_name_in_a_foreign_domain_is_unknown() -> None:
    draft = Draft(["n", 8])
    model = draft.model(draft.add("Relu", ["x"], "y", domain="mine"))
    assert count_fused(model).unknown == ("y (Relu)",)


def test_pieces_are_read_in_part_and_shapes_cost_nothing() -> None:
    draft = Draft(["n", 10, 4])
    for name, value in (("from", [0]), ("to", [3]), ("axis", [1])):
        draft.weights.append(numpy_helper.from_array(np.array(value), name))
    piece = draft.add("Slice", ["x", "from", "to", "axis"], "piece")
    (layer,) = count_fused(draft.model(draft.add("Relu", [piece], "y"))).layers
    assert (layer.weight_bytes, layer.input_bytes, layer.output_bytes) == (0, 4 * 12, 4 * 12)


def test_the_batch_is_the_graphs_or_the_one_asked_for() -> None:
    assert count_fused(two_layers()).batch == 1
    assert count_fused(two_layers(batch=4)).batch == 4
    one, three = count_fused(two_layers()), count_fused(two_layers(), batch=3)
    assert three.macs == 3 * one.macs
    assert three.weight_bytes == one.weight_bytes
    with pytest.raises(InputError, match="batch of 4, not 2"):
        count_fused(two_layers(batch=4), batch=2)
    with pytest.raises(InputError, match="not 0"):
        count_fused(two_layers(), batch=0)


def test_layers_that_one_kernel_ran_become_one() -> None:
    apart = count_fused(two_layers())
    cost = count_fused(two_layers(), together=[("a", "pool"), ("nobody",)])
    merged, b = cost.layers
    assert merged.nodes == ("a", "a.relu", "pool")
    assert (merged.macs, cost.macs) == (apart.layers[0].macs, apart.macs)
    assert merged.input_bytes == apart.layers[0].input_bytes
    assert merged.output_bytes == apart.layers[1].output_bytes == b.input_bytes
    assert cost.resident_bytes == apart.resident_bytes
    (whole,) = count_fused(two_layers(), together=[("a", "pool"), ("pool", "b")]).layers
    assert whole.bytes_moved == apart.resident_bytes


def test_labels_know_nodes_by_every_name() -> None:
    model = two_layers()
    model.graph.node[0].name = ""
    model.graph.node[1].name = "activation"
    labels = count_fused(model).labels
    assert (labels["Conv_0"], labels["a"], labels["a.relu"], labels["activation"]) == (
        "a",
        "a",
        "activation",
        "activation",
    )


def test_vanillanets_bytes_at_half_precision() -> None:
    """The figures of the deployment notes: 83 MB of weights, 17.2 GFLOP, depthwise work 3 per cent."""
    variant = VARIANTS["vanillanet_9"]
    cost: GraphCost = count_fused(vanillanet(variant.dims, variant.strides))
    assert cost.weight_bytes / 2e6 == pytest.approx(82.8, abs=0.1)
    assert cost.flops / 1e9 == pytest.approx(17.15, abs=0.01)
    depthwise = sum(layer.macs for layer in cost.layers if "act" in layer.name or layer.name == "stem.1")
    assert 0.02 < depthwise / cost.macs < 0.05
    assert len(cost.layers) == 17 + 3 + 1
    assert cost.unknown == ()


def test_costs_are_plain_values() -> None:
    plain = json.loads(json.dumps([layer.to_json() for layer in count_fused(qdq()).layers]))
    assert plain[1]["bytes_moved"] == plain[1]["weight_bytes"] + plain[1]["input_bytes"] + plain[1]["output_bytes"]
