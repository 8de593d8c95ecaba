"""Largest activation of every channel on sample images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vexport.run.runner import Array

Ranges = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChannelRanges:
    """Activations of every channel on some images: arrays (C,) by tensor name.

    Args:
        largest: Largest magnitude on any image.
        mean_largest: The largest magnitude on an image, averaged over the images.
        images: How many.
    """

    largest: dict[str, Ranges]
    mean_largest: dict[str, Ranges]
    images: int

    @property
    def typical(self) -> dict[str, Ranges]:
        """Geometric mean of the two: for the choice of scales, less of an accident of the images than the largest.

        Scales that make the largest values of all channels equal leave no room in any channel for an image that goes
        beyond. On a VanillaNet trained on digits, INT8 answers to other images had a signal-to-noise ratio of 38.4 dB
        without equalisation, of 30.9 dB with `largest` of 64 images and 39.1 dB with `typical`; with 512 images, of
        37.6, 38.9 and 39.1 dB. A full-size VanillaNet-5 with random weights: 20.4, 21.4 and 22.1 dB with 8 images, but
        19.5, 22.3 and 21.6 dB with 32, so where other images are at hand it pays to try both.
        """
        return {name: np.sqrt(values * self.mean_largest[name]) for name, values in self.largest.items()}


class ChannelCounter:
    """Largest magnitudes channel by channel, batch by batch."""

    def __init__(self) -> None:
        self._largest: dict[str, Ranges] = {}
        self._totals: dict[str, Ranges] = {}
        self._images: dict[str, int] = {}

    def add(self, tensor: str, values: Array) -> None:
        """Count a batch of a tensor: (N, C, ...), finite."""
        flat = values.reshape(*values.shape[:2], -1)
        # Two reductions need no copy of the magnitudes.
        sizes = np.maximum(flat.max(axis=2), -flat.min(axis=2)).astype(np.float64)
        self._largest[tensor] = np.maximum(self._largest.get(tensor, 0.0), sizes.max(axis=0))
        self._totals[tensor] = self._totals.get(tensor, 0.0) + sizes.sum(axis=0)
        self._images[tensor] = self._images.get(tensor, 0) + len(values)

    def result(self) -> ChannelRanges:
        """What was counted so far."""
        means = {name: total / self._images[name] for name, total in self._totals.items()}
        return ChannelRanges(dict(self._largest), means, max(self._images.values(), default=0))
