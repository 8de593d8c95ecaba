"""Largest activations channel by channel: by hand, over batches of any size."""

from __future__ import annotations

import numpy as np
import pytest

from vexport.run.channel_ranges import ChannelCounter


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_largest_and_their_mean_over_the_images(size: int) -> None:
    images = np.concatenate([pictures(3), 10 * pictures(4, 1)])
    counter = ChannelCounter()
    for start in range(0, len(images), size):
        counter.add("x", images[start : start + size])
    found = counter.result()
    each = np.abs(images).max(axis=(2, 3))
    assert found.images == 7
    assert found.largest["x"].dtype == np.float64
    np.testing.assert_array_equal(found.largest["x"], each.max(axis=0))
    np.testing.assert_allclose(found.mean_largest["x"], each.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.typical["x"], np.sqrt(each.max(axis=0) * each.mean(axis=0)), rtol=1e-6)
    assert (found.mean_largest["x"] < found.typical["x"]).all()
    assert (found.typical["x"] < found.largest["x"]).all()


def test_negative_values_count_by_their_size_and_tensors_apart() -> None:
    counter = ChannelCounter()
    counter.add("a", np.array([[[[-3.0, 1.0]], [[0.0, 0.0]]]], np.float32))
    counter.add("b", np.array([[2.0, -5.0]], np.float32))  # no axes behind the channels
    found = counter.result()
    np.testing.assert_array_equal(found.largest["a"], [3, 0])
    np.testing.assert_array_equal(found.largest["b"], [2, 5])


def test_nothing_counted() -> None:
    found = ChannelCounter().result()
    assert (found.largest, found.images) == ({}, 0)
