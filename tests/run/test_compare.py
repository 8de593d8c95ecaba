"""Parity: the figures, and everything that must never pass."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vexport.errors import InputError
from vexport.run.compare import TOLERANCES, compare, random_batches

BATCHES = [np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1) + 1, np.full((1, 3, 1, 1), -8, np.float32)]


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def test_the_same_answers_agree_fully() -> None:
    parity = compare(flat, flat, BATCHES, 0.0)
    assert parity.passed
    assert (parity.max_abs, parity.max_rel, parity.top1_agreement, parity.images) == (0, 0, 1, 3)
    assert parity.cosine == pytest.approx(1)


def test_the_figures_are_those_of_the_definition() -> None:
    parity = compare(flat, lambda x: flat(x) + (x.max() < 0) * np.float32([0, 0, 0.5]), BATCHES, 0.1)
    assert parity.max_abs == 0.5
    assert parity.max_rel == 0.5 / 8
    assert parity.top1_agreement == 2 / 3
    assert [part.max_abs for part in parity.batches] == [0, 0.5]
    assert [part.images for part in parity.batches] == [2, 1]
    a = np.concatenate([flat(batch).ravel() for batch in BATCHES]).astype(float)
    b = a + np.array([0] * 8 + [0.5])
    assert parity.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert parity.passed


def test_the_bound_belongs_to_what_passes() -> None:
    def off(x: np.ndarray) -> np.ndarray:
        return flat(x) + np.float32(2.0)

    assert compare(off, flat, BATCHES[1:], 2 / 6).passed
    assert not compare(off, flat, BATCHES[1:], 2 / 6 - 1e-12).passed


def test_top1_is_asked_for_where_wanted() -> None:
    def swapped(x: np.ndarray) -> np.ndarray:
        return flat(x)[:, ::-1]

    assert compare(flat, swapped, BATCHES[:1], 1.0).passed
    assert not compare(flat, swapped, BATCHES[:1], 1.0, least_top1=0.5).passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["first", "second", "both"])
def test_nan_and_infinity_never_pass(bad: float, side: str) -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        logits = flat(x).copy()
        if x.max() < 0:
            logits[0, 0] = bad
        return logits

    a, b = (broken if side in (name, "both") else flat for name in ("first", "second"))
    parity = compare(a, b, BATCHES, 1e9)
    assert not parity.passed
    assert not parity.finite
    assert [part.finite for part in parity.batches] == [True, False]
    text = json.dumps(parity.to_json(), allow_nan=False)
    assert json.loads(text)["max_rel"] is None


def test_a_reference_of_zeros_agrees_only_with_zeros() -> None:
    def zeros(x: np.ndarray) -> np.ndarray:
        return flat(x) * 0

    assert compare(zeros, zeros, BATCHES, 0.0).passed
    other = compare(zeros, flat, BATCHES, 1e9)
    assert not other.passed
    assert other.to_json()["max_rel"] is None


def test_the_scale_of_the_logits_does_not_matter() -> None:
    tiny = compare(lambda x: flat(x) * 1e-11, lambda x: flat(x) * 1.1e-11, BATCHES, TOLERANCES["fp16"])
    assert tiny.max_rel == pytest.approx(0.1)
    assert not tiny.passed


def test_small_differences_of_large_float32_logits_are_not_lost() -> None:
    parity = compare(lambda x: flat(x) + np.float64(1e-10), flat, BATCHES, TOLERANCES["float64"])
    assert parity.max_abs == pytest.approx(1e-10, rel=1e-4)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="different shapes: 2x3 and 2x2"):
        compare(flat, lambda x: flat(x)[:, :2], BATCHES, 1.0)
    with pytest.raises(InputError, match="second network answers 2 images with an output of 1x6"):
        compare(flat, lambda x: x.reshape(1, -1), BATCHES, 1.0)
    with pytest.raises(InputError, match="first network"):
        compare(lambda x: x, flat, BATCHES, 1.0)


@pytest.mark.parametrize(("tolerance", "least_top1"), [(-1, 0), (float("nan"), 0), (1, 2)])
def test_bounds_that_are_none_are_refused(tolerance: float, least_top1: float) -> None:
    with pytest.raises(InputError, match="no bound"):
        compare(flat, flat, BATCHES, tolerance, least_top1=least_top1)


def test_no_images_is_refused() -> None:
    with pytest.raises(InputError, match="no images"):
        compare(flat, flat, [], 1.0)


def test_random_batches_are_seeded_and_distinct() -> None:
    batches = random_batches((3, 16, 12))
    assert [batch.shape for batch in batches] == [(1, 3, 16, 12), (2, 3, 16, 12), (5, 3, 16, 12)]
    assert all(batch.dtype == np.float32 for batch in batches)
    for again, batch in zip(random_batches((3, 16, 12)), batches, strict=True):
        np.testing.assert_array_equal(again, batch)
    every = np.concatenate([*batches, *random_batches((3, 16, 12), seed=1)])
    assert len(np.unique(every.reshape(len(every), -1), axis=0)) == 16
