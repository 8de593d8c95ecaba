"""When two accuracies count as equal: the one rule of verdicts, advice and pictures.

An accuracy on so many images has an error of its own. Two that differ by less than that are not told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

IMAGES = 50_000  # ImageNet's validation images, which published accuracies are of
_SIGMAS = 1.96  # of 95 %

RULE = (
    "A network counts as being of another's accuracy where its top-1 is not below the other's by more than the error "
    "of such an accuracy: half its 95 % interval, which on ImageNet's 50,000 validation images is 0.35 points near "
    "80 %, and more on fewer images. A network is on the front where no faster one on it is of its accuracy."
)


class Top1(NamedTuple):
    """Top-1, and what it was measured on.

    Args:
        percent: Of images whose first answer is right.
        images: How many; None for published ones: ImageNet's validation images.
    """

    percent: float
    images: int | None = None

    @property
    def margin_points(self) -> float:
        """Half of its 95 % interval, in percentage points."""
        share = min(max(self.percent / 100, 0.0), 1.0)
        return 100 * _SIGMAS * math.sqrt(share * (1 - share) / (self.images or IMAGES))


def is_as_accurate(one: Top1, other: Top1) -> bool:
    """Whether `one` is at least of the accuracy of `other`, by the rule; the coarser of the two sets the margin."""
    return one.percent >= other.percent - max(one.margin_points, other.margin_points)


def pareto_front(points: Sequence[tuple[float, Top1]]) -> list[int]:
    """Places of the points that none before them on the front makes needless, being faster and of their accuracy.

    Args:
        points: (latency, accuracy).

    Returns:
        In the order of latency.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1].percent))
    front: list[int] = []
    for index in order:
        if not front or not is_as_accurate(points[front[-1]][1], points[index][1]):
            front.append(index)
    return front
