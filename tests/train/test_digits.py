"""The fixed split, the preprocessing, and the random moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vexport.errors import RecipeError
from vexport.recipe import DigitsSection, load_recipe
from vexport.train.digits import RandomAffine, held_out_arrays, open_digits, split_by_class

DIGITS = DigitsSection(name="digits")


def test_the_split_is_fixed_and_even():
    data = open_digits(DIGITS)
    assert (len(data.train.labels), len(data.held_out.labels)) == (1438, 359)
    assert torch.bincount(data.held_out.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert torch.equal(data.held_out.images, open_digits(DIGITS).held_out.images)


def test_the_split_does_not_change_with_numpy():
    held_out = split_by_class(np.arange(20) % 2, 0.3, seed=0)
    assert np.flatnonzero(held_out).tolist() == [3, 4, 7, 8, 11, 16]


def test_no_image_is_on_both_sides():
    data = open_digits(DIGITS)
    train = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in train for image in data.held_out.images)


def test_preprocessing_says_what_was_done():
    from sklearn.datasets import load_digits

    digits, data = load_digits(), open_digits(DIGITS)
    facts = data.preprocessing
    index = int(np.flatnonzero(split_by_class(digits.target, 0.2, 0))[0])
    image = Image.fromarray((digits.images[index] / 16).astype(np.float32), mode="F")
    pixels = np.asarray(image.resize(facts.input_size[:0:-1], Image.Resampling.BILINEAR))
    expected = (pixels - facts.mean[0]) / facts.std[0]
    np.testing.assert_allclose(data.held_out.images[0, 0].numpy(), expected, atol=1e-5)


def test_held_out_arrays_are_plain_arrays():
    images, labels = held_out_arrays(load_recipe("quickstart").data)
    assert (images.shape, images.dtype) == ((359, 1, 32, 32), np.float32)
    assert (labels.shape, labels.dtype) == ((359,), np.int64)


def test_a_share_that_leaves_nothing_is_refused():
    with pytest.raises(RecipeError, match="leaves no images"):
        open_digits(DigitsSection(name="digits", held_out=0.001))


def test_no_move_changes_nothing():
    images = torch.randn(3, 1, 16, 16)
    moved = RandomAffine(rotate_deg=0, scale=0, shift=0, fill=-0.8)(images)
    torch.testing.assert_close(moved, images)


def test_a_shift_brings_in_the_fill():
    torch.manual_seed(0)
    moved = RandomAffine(rotate_deg=0, scale=0, shift=1, fill=-0.8)(torch.ones(8, 1, 16, 16))
    assert moved.min() == pytest.approx(-0.8)
    assert moved.max() <= 1 + 1e-6
