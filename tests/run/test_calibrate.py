"""Streamed statistics: exact histograms, whatever the batches; NaN named; memory flat."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from colours import colour_graph, prepared
from onnx import helper, numpy_helper

from vexport.errors import InputError
from vexport.run.calibrate import BINS, ImageBatch, StreamedHistogram, collect_statistics
from vexport.run.ranges import measure_ranges
from vexport.run.thresholds import Histogram

TENSORS = ("input", "relu", "pooled", "second")


def batches(images: np.ndarray, size: int) -> Iterator[ImageBatch]:
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield ImageBatch(tuple(f"{start + index}.png" for index in range(len(part))), part)


def streamed(*parts: np.ndarray) -> Histogram:
    histogram = StreamedHistogram()
    for part in parts:
        histogram.add(part, float(np.abs(part).max()))
    return histogram.result()


def same(a: Histogram, b: Histogram) -> bool:
    return (a.width, a.largest) == (b.width, b.largest) and np.array_equal(a.counts, b.counts)


def test_the_histogram_is_exact_and_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=1000) * 10.0**power).astype(np.float32) for power in (-3, 2, 0, -1, 1)]
    together = np.concatenate(parts)
    found = streamed(*parts)
    assert same(found, streamed(*parts[::-1]))
    assert same(found, streamed(together))
    assert found.largest == float(np.abs(together).max())
    assert np.log2(found.width) == round(np.log2(found.width))
    assert BINS // 2 < len(found.counts) <= BINS
    wanted = np.bincount((np.abs(together).astype(float) // found.width).astype(int), minlength=len(found.counts))
    np.testing.assert_array_equal(found.counts, wanted)
    assert found.values == together.size


@pytest.mark.parametrize("largest", [1.0, 0.5, 3.9999998, 4.0, 65504.0, 1e-20, 1e-38, 1e-45, 3.4e38])
def test_any_largest_value_falls_into_the_last_bin(largest: float) -> None:
    found = streamed(np.array([0, largest, -largest / 3], np.float32))
    assert found.largest == float(np.float32(largest))
    assert len(found.counts) <= BINS
    assert found.counts[-1] >= 1
    assert found.values == 3


def test_zeros_come_first_or_later() -> None:
    zeros, values = np.zeros((2, 50), np.float32), np.ones(10, np.float32)
    assert same(streamed(zeros, values), streamed(values, zeros))
    assert streamed(zeros, values).counts[0] == 100
    assert streamed(zeros).values == 100
    assert streamed(zeros).width == 0


@pytest.mark.parametrize("size", [1, 5, 48])
def test_the_graphs_activations(size: int, tmp_path: Path) -> None:
    images = prepared(48)
    onnx.save(colour_graph(), tmp_path / "colours.onnx")
    done: list[int] = []
    found = collect_statistics(colour_graph(), TENSORS, batches(images, size), on_images=done.append).histograms
    assert list(found) == list(TENSORS)
    assert done[-1] == 48
    ranges = measure_ranges(tmp_path / "colours.onnx", [images])
    for name in TENSORS:
        assert found[name].largest == pytest.approx(ranges[name], rel=1e-5)
    assert found["input"].values == images.size
    assert found["pooled"].values == 48 * 6 * 16
    magnitude = np.abs(images)
    wanted = np.bincount((magnitude / found["input"].width).astype(int).reshape(-1))
    np.testing.assert_array_equal(found["input"].counts, wanted)


def test_a_fixed_batch_is_filled_up_and_that_does_not_count() -> None:
    images = prepared(10)
    fixed = collect_statistics(colour_graph(batch=4), TENSORS, batches(images, 4)).histograms
    free = collect_statistics(colour_graph(), TENSORS, batches(images, 4)).histograms
    assert {name: one.values for name, one in fixed.items()} == {name: one.values for name, one in free.items()}
    assert all(fixed[name].largest == pytest.approx(free[name].largest) for name in TENSORS)


def windowed(batch: int | str = "n") -> onnx.ModelProto:
    """The second convolution takes each image in four windows, which lie on the first axis."""
    model = colour_graph(batch=batch)
    tensors = {
        "split": np.array([0, 6, 2, 2, 2, 2]),
        "windows": np.array([-1, 6, 2, 2]),
        "joined": np.array([-1, 2, 2, 6, 2, 2]),
        "whole": np.array([-1, 6, 4, 4]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, f"{name}.shape") for name, value in tensors.items())
    nodes = {node.name: node for node in model.graph.node}
    nodes["second"].input[0] = "windows"
    place = list(model.graph.node).index(nodes["second"])
    for name, node in (
        ("windows", helper.make_node("Reshape", ["moved", "windows.shape"], ["windows"])),
        ("moved", helper.make_node("Transpose", ["split"], ["moved"], perm=[0, 2, 4, 1, 3, 5])),
        ("split", helper.make_node("Reshape", ["pooled", "split.shape"], ["split"])),
    ):
        node.name = name
        model.graph.node.insert(place, node)
    nodes["last"].input[0] = "whole"
    place = list(model.graph.node).index(nodes["last"])
    for name, node in (
        ("whole", helper.make_node("Reshape", ["back", "whole.shape"], ["whole"])),
        ("back", helper.make_node("Transpose", ["joined"], ["back"], perm=[0, 3, 1, 4, 2, 5])),
        ("joined", helper.make_node("Reshape", ["second", "joined.shape"], ["joined"])),
    ):
        node.name = name
        model.graph.node.insert(place, node)
    return model


@pytest.mark.parametrize(("batch", "size"), [("n", 5), ("n", 1), (4, 4)])
def test_windows_on_the_first_axis_count_in_full(batch: int | str, size: int) -> None:
    images = prepared(8)
    found = collect_statistics(windowed(batch), ["pooled", "windows"], batches(images, size))
    assert same(found.histograms["windows"], found.histograms["pooled"])
    assert found.histograms["windows"].values == 8 * 6 * 16
    np.testing.assert_array_equal(found.channels.largest["windows"], found.channels.largest["pooled"])
    assert found.channels.images == 8


def test_windows_of_images_that_fill_a_batch_are_refused() -> None:
    with pytest.raises(
        InputError, match="the first axis of the activation windows is 16, not the batch of 4"
    ) as caught:
        collect_statistics(windowed(4), ["pooled", "windows"], batches(prepared(10), 4))
    assert "open batch" in caught.value.hint
    assert collect_statistics(windowed(4), ["pooled"], batches(prepared(10), 4)).histograms["pooled"].values == 10 * 96


def test_windows_that_are_no_numbers_are_named() -> None:
    images = prepared(8)
    images[6, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match="the activation windows is infinite in image batch 2") as caught:
        collect_statistics(windowed(), ["windows"], batches(images, 4))
    assert caught.value.details == ("on some of its 4 images, from 4.png to 7.png",)


def spoilt(value: float) -> onnx.ModelProto:
    model = colour_graph()
    for tensor in model.graph.initializer:
        if tensor.name == "second.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[1] = value
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite|NaN"), (-3e38, "infinite|NaN")])
def test_activations_that_are_no_numbers_are_named(value: float, kind: str) -> None:
    with pytest.raises(InputError, match=f"the activation second is ({kind}) in image batch 1") as caught:
        collect_statistics(spoilt(value), TENSORS, batches(prepared(8), 4))
    assert caught.value.details[0].startswith("on 4 of its 4 images: 0.png, 1.png")


def test_one_bad_image_is_found_in_its_batch() -> None:
    images = prepared(12)
    images[6, 1, 2, 3] = np.inf
    with pytest.raises(InputError, match="the activation input is infinite in image batch 2") as caught:
        collect_statistics(colour_graph(), TENSORS, batches(images, 4))
    assert caught.value.details == ("on 1 of its 4 images: 6.png",)


def test_what_cannot_be_run() -> None:
    with pytest.raises(InputError, match="there are no images"):
        collect_statistics(colour_graph(), TENSORS, [])
    with pytest.raises(InputError, match="cannot run the graph on these images"):
        collect_statistics(colour_graph(), TENSORS, [ImageBatch(("a",), np.ones((1, 4, 8, 8), np.float32))])
    with pytest.raises(InputError, match="cannot load the graph"):
        collect_statistics(colour_graph(), ["nowhere"], batches(prepared(4), 4))
    only_input = collect_statistics(colour_graph(), ["input"], batches(prepared(4), 4))
    assert list(only_input.histograms) == ["input"]


def test_memory_does_not_grow_with_the_images() -> None:
    def peak(count: int) -> int:
        rng = np.random.default_rng(0)
        made = (ImageBatch(("x",) * 4, rng.normal(size=(4, 3, 8, 8)).astype(np.float32)) for _ in range(count // 4))
        tracemalloc.start()
        try:
            collect_statistics(colour_graph(), TENSORS, made)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(8)
    few, many = peak(16), peak(1600)
    assert many < few + 200_000, "1600 images are 1.2 MB, and their activations 4 MB"
