"""Accuracy of whatever a runner runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vexport.errors import InputError
from vexport.run.runner import Array


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
