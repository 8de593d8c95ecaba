"""Counts, batch by batch: the same as over all answers at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vexport.errors import InputError
from vexport.run.accuracy import Agreement, Score, Tally, measure_accuracy


def tally(logits: np.ndarray, labels: np.ndarray, batch: int = 7) -> tuple[Score, np.ndarray]:
    counting = Tally(logits.shape[1])
    parts = [
        counting.add(logits[start : start + batch], labels[start : start + batch])
        for start in range(0, len(logits), batch)
    ]
    return counting.score(), np.concatenate(parts)


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    labels = random.integers(0, 9, 500)  # of 10 classes: the last one has no images
    logits = random.standard_normal((500, 10)) + 1.5 * np.eye(10)[labels]
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("batch", [1, 7, 500, 1000])
def test_by_hand(drawn: tuple[np.ndarray, np.ndarray], batch: int) -> None:
    logits, labels = drawn
    score, answers = tally(logits, labels, batch)
    best = np.argsort(-logits, axis=1)
    np.testing.assert_array_equal(answers, best[:, 0])
    assert (score.images, score.right) == (500, (best[:, 0] == labels).sum())
    assert score.right_in_5 == (best[:, :5] == labels[:, None]).any(axis=1).sum()
    assert score.top1_percent == 100 * score.right / 500
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert score.cross_entropy == pytest.approx(float(expected), rel=1e-12)
    for one in score.by_class:
        given = best[labels == one.label, 0]
        assert (one.images, one.right) == (len(given), (given == one.label).sum())
        wrong = np.bincount(given[given != one.label], minlength=10)
        assert one.confused == wrong.max(initial=0)
        assert one.confused_with == (wrong.argmax() if wrong.any() else None)
    assert score.by_class[9].images == 0
    assert score.by_class[9].top1_percent is None
    assert measure_accuracy(lambda images: images, logits, labels).correct == score.right


def test_of_equal_logits_the_first_is_the_answer() -> None:
    score, answers = tally(np.zeros((10, 10)), np.arange(10))
    assert answers.tolist() == [0] * 10
    assert (score.right, score.right_in_5) == (1, 5)
    assert score.cross_entropy == pytest.approx(np.log(10))


@pytest.mark.parametrize(("classes", "has"), [(2, False), (5, False), (6, True)])
def test_five_of_five_says_nothing(classes: int, has: bool) -> None:
    score, _ = tally(np.eye(classes), np.arange(classes))
    assert (score.right_in_5 is not None) == (score.top5_percent is not None) == has
    assert score.right == classes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_wrong(value: float) -> None:
    logits = np.eye(6)
    logits[2, 0] = value
    score, answers = tally(logits, np.arange(6))
    assert answers.tolist() == [0, 1, -1, 3, 4, 5]
    assert (score.right, score.right_in_5, score.not_finite, score.cross_entropy) == (5, 5, 1, None)
    assert score.by_class[2].confused_with is None
    assert tally(np.full((3, 6), np.nan), np.arange(3))[0].right == 0


def test_nothing_counted_is_no_accuracy() -> None:
    score = Tally(6).score()
    assert (score.images, score.top1_percent, score.top5_percent, score.cross_entropy) == (0, None, None, None)


def test_how_two_go_together() -> None:
    labels = np.array([0, 1, 2, 3, 4, 5])
    a, b = np.array([0, 1, 2, 0, 0, -1]), np.array([0, 1, 0, 3, 0, -1])
    found = Agreement().with_batch(a[:2], b[:2], labels[:2]).with_batch(a[2:], b[2:], labels[2:])
    assert found == Agreement(both_right=2, only_a=1, only_b=1, both_wrong=2, same=3)
    assert (found.images, found.agreement_percent) == (6, 50.0)
    assert found.to_json()["agreement_percent"] == 50.0


def test_measure_accuracy_wants_a_label_each() -> None:
    with pytest.raises(InputError, match="2 images with 3 labels"):
        measure_accuracy(lambda images: images, np.zeros((2, 3)), np.zeros(3))
