"""Accuracy of whatever a runner runs, at once or batch by batch: the counts do not grow with the number of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vexport.errors import InputError
from vexport.run.runner import Array

# With fewer classes every answer is among the five best.
LEAST_CLASSES_FOR_TOP5 = 6
NO_ANSWER = -1


@dataclass(frozen=True)
class Accuracy:
    """Right answers on labelled images.

    Args:
        correct: Images whose most likely class is the label.
        images: How many there are.
        predictions: The most likely class of each.
    """

    correct: int
    images: int
    predictions: tuple[int, ...]

    @property
    def top1(self) -> float:
        """Share of right answers."""
        return self.correct / self.images

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "predictions": list(self.predictions), "top1": self.top1}


def measure_accuracy(network: Callable[[Array], Array], images: Array, labels: Array, *, batch: int = 64) -> Accuracy:
    """Answer labelled images.

    Args:
        network: Images (N, C, H, W) to logits (N, classes).
        images: (N, C, H, W), ready for the network.
        labels: (N,), class numbers.
        batch: Images per call.

    Raises:
        InputError: there are no images, or not one label each.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(f"{len(images)} images with {len(labels)} labels", hint="give one label for each image")
    parts = [network(images[start : start + batch]).argmax(axis=1) for start in range(0, len(images), batch)]
    predictions = np.concatenate(parts)
    return Accuracy(int((predictions == labels).sum()), len(images), tuple(int(p) for p in predictions))


@dataclass(frozen=True)
class ClassScore:
    """Answers to the images of one class.

    Args:
        label: Its number.
        images: How many there are.
        right: How many were answered right.
        confused_with: The most frequent wrong answer; None where there is none.
        confused: How often it was given.
    """

    label: int
    images: int
    right: int
    confused_with: int | None
    confused: int

    @property
    def top1_percent(self) -> float | None:
        return percent(self.right, self.images)


@dataclass(frozen=True)
class Score:
    """Right answers on labelled images.

    Args:
        images: How many there are.
        right: Images whose most likely class is the label.
        right_in_5: Images whose label is among the five most likely classes; None with fewer than six classes.
        cross_entropy: Mean over the images, in nats; None where an answer was not finite.
        not_finite: Images whose logits are not all finite numbers: they count as wrong.
        by_class: One per class.
    """

    images: int
    right: int
    right_in_5: int | None
    cross_entropy: float | None
    not_finite: int
    by_class: tuple[ClassScore, ...]

    @property
    def top1_percent(self) -> float | None:
        return percent(self.right, self.images)

    @property
    def top5_percent(self) -> float | None:
        return None if self.right_in_5 is None else percent(self.right_in_5, self.images)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "right": self.right,
            "top1_percent": self.top1_percent,
            "right_in_5": self.right_in_5,
            "top5_percent": self.top5_percent,
            "cross_entropy": self.cross_entropy,
            "not_finite": self.not_finite,
        }


def percent(part: int, whole: int) -> float | None:
    """A share in per cent; None of nothing."""
    return 100 * part / whole if whole else None


class Tally:
    """Counts the answers to labelled images, batch by batch.

    Args:
        classes: How many the network tells apart.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._answers: Counter[tuple[int, int]] = Counter()  # (label, answer); at most classes squared
        self._right_in_5 = 0
        self._loss = 0.0

    def add(self, logits: Array, labels: Array) -> Array:
        """Count a batch.

        Args:
            logits: (N, classes).
            labels: (N,), class numbers.

        Returns:
            The most likely class of each (N,); of several equal ones the first; NO_ANSWER where a logit is not finite.
        """
        logits_NK = np.asarray(logits, dtype=np.float64)
        finite = np.isfinite(logits_NK).all(axis=1)
        answers: Array = np.where(finite, np.nan_to_num(logits_NK).argmax(axis=1), NO_ANSWER)
        self._answers.update(zip(labels.tolist(), answers.tolist(), strict=True))
        logits_NK, labels = logits_NK[finite], labels[finite]
        own_N1 = np.take_along_axis(logits_NK, labels[:, None], axis=1)
        before = np.arange(logits_NK.shape[1]) < labels[:, None]
        rank = np.count_nonzero((logits_NK > own_N1) | ((logits_NK == own_N1) & before), axis=1)
        self._right_in_5 += int((rank < 5).sum())
        top_N1 = logits_NK.max(axis=1, keepdims=True, initial=-np.inf)
        self._loss += float((np.log(np.exp(logits_NK - top_N1).sum(axis=1)) + (top_N1 - own_N1)[:, 0]).sum())
        return answers

    def score(self) -> Score:
        """What was counted so far."""
        images = self._answers.total()
        not_finite = sum(count for (_, answer), count in self._answers.items() if answer == NO_ANSWER)
        wrong: dict[int, list[tuple[int, int]]] = {}
        asked: Counter[int] = Counter()
        for (label, answer), count in self._answers.items():
            asked[label] += count
            if answer not in (label, NO_ANSWER):
                wrong.setdefault(label, []).append((count, -answer))
        by_class = []
        for label in range(self.classes):
            confused, number = max(wrong.get(label, ()), default=(0, 0))
            right = self._answers[label, label]
            by_class.append(ClassScore(label, asked[label], right, -number if confused else None, confused))
        return Score(
            images=images,
            right=sum(one.right for one in by_class),
            right_in_5=self._right_in_5 if self.classes >= LEAST_CLASSES_FOR_TOP5 else None,
            cross_entropy=self._loss / images if images and not not_finite else None,
            not_finite=not_finite,
            by_class=tuple(by_class),
        )


@dataclass(frozen=True)
class Agreement:
    """How the answers of two networks, A and B, to the same images go together.

    Args:
        both_right: Images that both answer right.
        only_a: Images that A answers right and B does not.
        only_b: The reverse.
        both_wrong: Images that neither answers right.
        same: Images with the same answer, right or wrong.
    """

    both_right: int = 0
    only_a: int = 0
    only_b: int = 0
    both_wrong: int = 0
    same: int = 0

    @property
    def images(self) -> int:
        return self.both_right + self.only_a + self.only_b + self.both_wrong

    @property
    def agreement_percent(self) -> float | None:
        return percent(self.same, self.images)

    def with_batch(self, a: Array, b: Array, labels: Array) -> Agreement:
        """The counts with a further batch.

        Args:
            a, b: The answers of the two, as `Tally.add` returns them.
            labels: (N,), class numbers.
        """
        a_right, b_right = a == labels, b == labels
        return Agreement(
            both_right=self.both_right + int((a_right & b_right).sum()),
            only_a=self.only_a + int((a_right & ~b_right).sum()),
            only_b=self.only_b + int((~a_right & b_right).sum()),
            both_wrong=self.both_wrong + int((~a_right & ~b_right).sum()),
            same=self.same + int(((a == b) & (a != NO_ANSWER)).sum()),
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "agreement_percent": self.agreement_percent}
