"""What nodes cost: published figures, hand-counted ones, and weights that are never touched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.graph.graphs import Draft, resnet50, vanillanet
from vexport.errors import InputError
from vexport.graph.cost import count_layers, infer_tensors
from vexport.model.variants import VARIANTS


def gmacs(model: onnx.ModelProto, **kwargs: int) -> float:
    return sum(layer.macs for layer in count_layers(model, **kwargs)) / 1e9


@pytest.mark.parametrize(("name", "published"), [("vanillanet_5", 5.2), ("vanillanet_9", 8.6), ("vanillanet_13", 11.9)])
def test_vanillanets_cost_what_the_paper_says(name: str, published: float) -> None:
    variant = VARIANTS[name]
    model = vanillanet(variant.dims, variant.strides)
    assert gmacs(model) == pytest.approx(published, abs=0.051)
    parameters = sum(layer.parameters for layer in count_layers(model))
    assert parameters / 1e6 == pytest.approx({5: 15.5, 9: 41.4, 13: 58.6}[len(variant.dims) + 1], abs=0.05)


def test_resnet50_costs_what_everybody_says() -> None:
    model = resnet50()
    assert gmacs(model) == pytest.approx(4.089, abs=0.001)
    assert gmacs(model, batch=4) == pytest.approx(4 * gmacs(model))
    assert sum(layer.parameters for layer in count_layers(model)) / 1e6 == pytest.approx(25.53, abs=0.03)


def test_operations_by_hand() -> None:
    draft = Draft(["n", 4, 8, 8])
    relu = draft.add("Relu", ["x"], "relu")
    pool = draft.add("MaxPool", [relu], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    softmax = draft.add("Softmax", [pool], "softmax", axis=1)
    moved = draft.add("Transpose", [softmax], "moved", perm=[0, 2, 3, 1])
    mean = draft.add("GlobalAveragePool", [softmax], "mean")
    odd = draft.add("Odd", [mean], "odd", domain="mine")
    layers = {layer.name: layer for layer in count_layers(draft.model(moved, odd), batch=2)}
    given = 2 * 4 * 4 * 4
    assert [layers[name].operations for name in ("relu", "pool", "softmax", "moved", "mean")] == [
        2 * 4 * 8 * 8,
        9 * given,
        5 * given,
        0,
        given,
    ]
    assert layers["relu"].bytes_moved == 2 * 4 * (2 * 4 * 8 * 8)


def test_macs_of_every_kind() -> None:
    draft = Draft([2, 6, 5, 5])
    up = draft.add("ConvTranspose", ["x", draft.weight("w", 6, 4, 2, 2)], "up", strides=[2, 2])
    flat = draft.add("Flatten", [up], "flat", axis=1)
    gemm = draft.add("Gemm", [flat, draft.weight("v", 400, 7)], "gemm")
    turned = draft.add("Gemm", [gemm, draft.weight("u", 2, 3)], "turned", transA=1)
    layers = {layer.name: layer for layer in count_layers(draft.model(turned))}
    assert layers["up"].macs == 2 * 6 * 5 * 5 * 4 * 2 * 2
    assert layers["gemm"].macs == 2 * 7 * 400
    assert layers["turned"].macs == 7 * 3 * 2


def test_quantised_convolutions_are_counted() -> None:
    draft = Draft([1, 8, 6, 6])
    pairs = [draft.scale(name) for name in "xwy"]
    draft.add("QuantizeLinear", ["x", *pairs[0]], "q")
    weight = draft.weight("w", 16, 8, 3, 3, kind=TensorProto.INT8)
    draft.add("QLinearConv", ["q", *pairs[0], weight, *pairs[1], *pairs[2]], "c", pads=[1] * 4)
    layers = {
        layer.name: layer for layer in count_layers(draft.model(draft.add("DequantizeLinear", ["c", *pairs[2]], "y")))
    }
    assert layers["c"].macs == 16 * 6 * 6 * 8 * 9
    assert layers["c"].precision == "int8"


def test_the_weights_are_neither_read_nor_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of a terabyte, which only says its shape."""
    draft = Draft(["n", 2**19])
    huge = draft.model(draft.add("Gemm", ["x", draft.weight("w", 2**19, 2**19)], "y"))
    assert count_layers(huge)[0].macs == 2**38
    contents = onnx.numpy_helper.from_array(np.zeros((256, 256), "float32"), "w")
    small = Draft(["n", 256])
    small.weights.append(contents)
    model = small.model(small.add("Gemm", ["x", "w"], "y"))
    seen: list[int] = []
    infer = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(
        onnx.shape_inference, "infer_shapes", lambda given, **kw: (seen.append(given.ByteSize()), infer(given, **kw))[1]
    )
    before = model.SerializeToString()
    assert infer_tensors(model, 3, (1, 1))["y"].shape == (3, 256)
    assert seen[0] < 1000 < model.ByteSize()
    assert model.SerializeToString() == before


def test_open_heights_and_widths_are_filled_in() -> None:
    draft = Draft(["n", 3, "h", "w"])
    model = draft.model(draft.conv("x", "c", 3, 8, 3))
    assert count_layers(model, batch=2, size=32)[0].shape == (2, 8, 32, 32)
    assert infer_tensors(model, 1, (20, 30))["c"].shape == (1, 8, 20, 30)


def test_a_graph_that_does_not_say_its_operators_version_is_refused() -> None:
    draft = Draft(["n", 3])
    model = draft.model(draft.add("Gemm", ["x", draft.weight("w", 3, 3)], "y"))
    del model.opset_import[:]
    with pytest.raises(InputError, match="shapes cannot be inferred"):
        count_layers(model)


def test_initializers_may_stand_among_the_inputs() -> None:
    draft = Draft(["n", 4])
    model = draft.model(draft.add("Gemm", ["x", draft.weight("w", 4, 2)], "y"))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 2]))
    assert count_layers(model, batch=3)[0].macs == 3 * 4 * 2
