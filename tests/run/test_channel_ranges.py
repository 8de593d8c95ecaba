"""Largest activations channel by channel: by hand, over batches, NaN, images that do not fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vexport.errors import InputError
from vexport.run.channel_ranges import channel_ranges, measure_channels

WEIGHT = np.array([[1, -2, 3], [0.5, 0.25, -4]], np.float32)
BIAS = np.array([-1, 2], np.float32)


def network(opset: int = 18) -> onnx.ModelProto:
    """A convolution, a Relu and another convolution, of 3x4x4 images."""
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("Conv", ["relu", "double"], ["output"], name="output"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 2, 4, 4])],
        [
            numpy_helper.from_array(WEIGHT.reshape(2, 3, 1, 1), "weight"),
            numpy_helper.from_array(BIAS, "bias"),
            numpy_helper.from_array(np.float32([[2, 0], [0, 2]]).reshape(2, 2, 1, 1), "double"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def by_hand(images: np.ndarray) -> dict[str, np.ndarray]:
    conv = np.einsum("oc,nchw->nohw", WEIGHT, images) + BIAS[:, None, None]
    relu = np.maximum(conv, 0)
    tensors = {"input": images, "conv": conv, "relu": relu, "output": 2 * relu}
    return {name: np.abs(values).max(axis=(0, 2, 3)) for name, values in tensors.items()}


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("opset", [14, 18, 22])
def test_the_maxima_are_those_by_hand(opset: int) -> None:
    model = network(opset)
    before = model.SerializeToString()
    found = channel_ranges(model, [pictures(3)])
    expected = by_hand(pictures(3))
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], values, rtol=1e-5)
    assert model.SerializeToString() == before


def test_every_batch_counts_and_is_let_go() -> None:
    """Batches of several sizes come from a generator, and no more than one is alive at a time."""
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            if self.base is None:
                alive.remove(id(self))

    def batches() -> Iterator[np.ndarray]:
        for seed in range(8):
            batch = np.ndarray.__new__(Counted, (1 + seed % 3, 3, 4, 4), np.float32)
            alive.append(id(batch))
            batch[:] = pictures(1 + seed % 3, seed)
            most.append(len(alive))
            yield batch
            del batch

    most: list[int] = []
    found = channel_ranges(network(), batches(), threads=1)
    expected = by_hand(np.concatenate([pictures(1 + seed % 3, seed) for seed in range(8)]))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)
    # The loop holds the last batch until it has the next one.
    assert max(most) <= 2


def test_the_typical_range_lies_between_the_mean_and_the_largest() -> None:
    images = np.concatenate([pictures(2), 10 * pictures(3, 1)])
    found = measure_channels(network(), [images[:1], images[1:]])
    assert found.images == 5
    each = [by_hand(images[index : index + 1]) for index in range(5)]
    for name, values in found.mean_largest.items():
        mean = np.mean([ranges[name] for ranges in each], axis=0)
        np.testing.assert_allclose(values, mean, rtol=1e-5)
        np.testing.assert_allclose(found.typical[name], np.sqrt(mean * found.largest[name]), rtol=1e-5)
        assert (mean < found.typical[name]).all()
        assert (found.typical[name] < found.largest[name]).all()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_told(value: float, first: bool) -> None:
    wrong = pictures(2)
    wrong[1, 2, 3, 3] = value
    found = channel_ranges(network(), [wrong, pictures(2)] if first else [pictures(2), wrong])
    assert not np.isfinite(found["input"][2])
    assert np.isfinite(found["input"][:2]).all()
    assert not np.isfinite(found["conv"]).any()


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="cannot run the graph on these images") as caught:
        channel_ranges(network(), [pictures(1), np.zeros((1, 4, 4, 4), np.float32)])
    assert caught.value.details


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="there are no images"):
        channel_ranges(network(), [])
    with pytest.raises(InputError):
        channel_ranges(network(), [pictures(0)])


def test_a_graph_that_cannot_be_loaded_is_refused() -> None:
    model = network()
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(InputError, match="cannot load the graph"):
        channel_ranges(model, [pictures(1)])


def test_a_graph_without_convolutions_is_refused() -> None:
    model = network()
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Relu", ["input"], ["output"]))
    with pytest.raises(InputError, match="no convolution"):
        channel_ranges(model, [pictures(1)])


def test_a_graph_above_the_size_of_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vexport.run.channel_ranges.is_large", lambda _: True)
    found = channel_ranges(network(), [pictures(3)])
    for name, values in by_hand(pictures(3)).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)


def test_other_exceptions_keep_their_traceback() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield pictures(1)
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        channel_ranges(network(), broken())
