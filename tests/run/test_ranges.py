"""Largest activations: by hand, over batches, with external data, graphs that overflow, images that do not fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vexport.errors import InputError
from vexport.run.ranges import measure_ranges

WEIGHT = np.array([[1, -2, 3], [0.5, 0.25, -4]], np.float32)
BIAS = np.array([-1, 2], np.float32)


def network(factor: float = 1, batch: int | str = "n") -> onnx.ModelProto:
    """A convolution, a Relu, pooling and flattening, of 3x4x4 images."""
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], name="flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])],
        [
            numpy_helper.from_array((WEIGHT * np.float32(factor)).reshape(2, 3, 1, 1), "weight"),
            numpy_helper.from_array(BIAS, "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def by_hand(images: np.ndarray) -> dict[str, float]:
    """The same network in numpy."""
    conv = np.einsum("oc,nchw->nohw", WEIGHT, images) + BIAS[:, None, None]
    relu = np.maximum(conv, 0)
    pooled = relu.mean(axis=(2, 3))
    tensors = {"input": images, "conv": conv, "relu": relu, "pooled": pooled, "logits": pooled}
    return {name: float(np.abs(values).max()) for name, values in tensors.items()}


def pictures(count: int, seed: int = 0, factor: float = 1) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, 3, 4, 4)) * factor
    return values.astype(np.float32)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    onnx.save(network(), path)
    return path


def test_the_maxima_are_those_by_hand(graph: Path) -> None:
    images = pictures(3)
    images[0, :, 0, 0] = 0, 0, 10
    found = measure_ranges(graph, [images])
    assert found == pytest.approx(by_hand(images), rel=1e-5)
    assert found["conv"] > found["relu"], "the largest magnitude is a negative value's, which the Relu cuts off"
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("largest", [0, 1, 2])
def test_every_batch_counts(graph: Path, largest: int) -> None:
    batches = [pictures(2, seed, 100 if seed == largest else 1) for seed in range(3)]
    together = np.concatenate(batches)
    assert measure_ranges(graph, batches) == pytest.approx(by_hand(together), rel=1e-5)


def test_batches_of_several_sizes(graph: Path) -> None:
    batches = [pictures(4), pictures(1, 1, 10)]
    assert measure_ranges(graph, batches) == pytest.approx(by_hand(np.concatenate(batches)), rel=1e-5)


def test_a_fixed_batch(tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    onnx.save(network(batch=2), path)
    assert measure_ranges(path, [pictures(2), pictures(2, 1)]) == pytest.approx(
        by_hand(np.concatenate([pictures(2), pictures(2, 1)])), rel=1e-5
    )


def test_external_data_is_found_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="network.onnx.data", size_threshold=0)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert measure_ranges(path, [pictures(2)]) == pytest.approx(by_hand(pictures(2)), rel=1e-5)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")
def test_a_graph_that_overflows_fp32_says_so(tmp_path: Path) -> None:
    path = tmp_path / "hot.onnx"
    onnx.save(network(1e30), path)
    found = measure_ranges(path, [pictures(2, factor=1e10)])
    assert math.isfinite(found["input"])
    assert not any(math.isfinite(found[name]) for name in ("conv", "relu", "pooled", "logits"))


@pytest.mark.parametrize(
    "shape", [(1, 3, 5, 5), (1, 4, 4, 4), (1, 3, 4), (1, 3, 4, 8)], ids=["larger", "channels", "rank", "wider"]
)
def test_images_of_another_size_are_refused(graph: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"cannot run network\.onnx on these images") as caught:
        measure_ranges(graph, [pictures(1), np.zeros(shape, np.float32)])
    assert "size" in caught.value.hint
    assert caught.value.details


def test_images_of_another_batch_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    onnx.save(network(batch=2), path)
    with pytest.raises(InputError, match="cannot run"):
        measure_ranges(path, [pictures(3)])


def test_other_exceptions_keep_their_traceback(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("onnxruntime.quantization.calibrate.create_calibrator", broken)
    with pytest.raises(KeyError, match="a bug"):
        measure_ranges(graph, [pictures(1)])


def test_external_data_of_another_name_is_found(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert measure_ranges(path, [pictures(2)]) == pytest.approx(by_hand(pictures(2)), rel=1e-5)
