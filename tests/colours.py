"""A small classifier of red, green and blue images, written by hand, and such images: its answers are clear."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

CLASSES = ("red", "green", "blue")  # not sorted: folders go by name
SIDE = 8
CONVS = ("first", "second", "last")


def colour_graph(*, spread: float = 1.0, batch: int | str = "n", named: bool = True) -> onnx.ModelProto:
    """Convolution, Relu, max-pool, depthwise convolution, convolution, pooling.

    Args:
        spread: Activations of the first channel behind the first convolution are so many times as large; the function
            stays.
        batch: Fixed, or open.
        named: Whether it says what its classes are called.
    """
    rng = np.random.default_rng(0)
    first = (np.kron([[1.0], [1.0]], np.eye(3)) + rng.normal(size=(6, 3)) * 0.05).reshape(6, 3, 1, 1)
    bias = np.full(6, 1.5)
    second = np.full((6, 1, 3, 3), 1 / 9) + rng.normal(size=(6, 1, 3, 3)) * 0.01
    last = np.kron([[2.0, 2.0]], 2 * np.eye(3) - 1).reshape(3, 6, 1, 1)
    first[0] *= spread
    bias[0] *= spread
    second[0] /= spread
    weights = {"first.weight": first, "first.bias": bias, "second.weight": second, "last.weight": last}
    nodes = [
        helper.make_node("Conv", ["input", "first.weight", "first.bias"], ["first"], name="first"),
        helper.make_node("Relu", ["first"], ["relu"], name="relu"),
        helper.make_node("MaxPool", ["relu"], ["pooled"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pooled", "second.weight"], ["second"], name="second", group=6, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["second", "last.weight"], ["last"], name="last"),
        helper.make_node("GlobalAveragePool", ["last"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["logits"], name="flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    how = {
        "input_size": [3, SIDE, SIDE],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    props = {"vexport.model": "colours", "vexport.preprocessing": json.dumps(how)}
    if named:
        props["vexport.class_names"] = json.dumps(CLASSES)
    helper.set_model_props(model, props)
    return model


def save_graph(path: Path, **options: object) -> Path:
    """The graph as a file."""
    onnx.save(colour_graph(**options), path)  # type: ignore[arg-type]
    return path


def pixels(label: int, seed: int) -> np.ndarray:
    """One image, uint8 (H, W, C)."""
    values = np.random.default_rng(seed).normal(100, 25, (SIDE, SIDE, 3))
    values[..., label] += 60
    return np.clip(values, 0, 255).astype(np.uint8)


def save_images(folder: Path, each: int = 40, first: int = 0) -> Path:
    """A folder with one folder of images per class; other images from another first one on."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            Image.fromarray(pixels(label, 1000 * label + first + index)).save(folder / name / f"{index:03}.png")
    return folder


def prepared(count: int = 48) -> np.ndarray:
    """Images as the network takes them, float32 (N, C, H, W), class by class in turn."""
    values = np.stack([pixels(index % 3, index) for index in range(count)]).astype(np.float32)
    return np.ascontiguousarray(((values / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)).astype(np.float32)
