"""Whether hiding what an attention map shows costs its class more than hiding what another image's map shows.

Each image is hidden twice, as many pixels each time: where its own map is largest, and where the next image's map of
the same network is. Every map serves once as an image's own and once as another's. So what does not follow the image
cancels in the mean: that a network always looks at the middle, that the middle matters more than the rim, and that one
map hides a spot and another scattered pixels. Two neighbours share a map, once as own and once as another's: where maps
do not follow their image, that makes the standard error too large rather than too small.

What this tells is a lower bound, as a rule: what both maps hide makes no difference. Objects that lie in one place in
all images are hidden by either map, and a true map of them gains nothing. Where the other's map shows less than is to
be hidden, the rest is taken at random, which tends to cost more, and makes the difference smaller.

It does not tell why a map follows its image: one that shows whatever stands out, or the place where its class usually
lies, gains too. Nor does it see what hangs on small parts within a larger map, or what is redundant: an object that is
recognised by either half loses little by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from vexport.run.attention_layers import as_evaluated, device_of
from vexport.run.runner import Array

HIDDEN_SHARE = 0.2  # of the image


class Ranking(NamedTuple):
    """Where a map is largest.

    Args:
        places: Of a fifth of the image, the largest first: row * width + column.
        positive: At how many of them the map is above 0.
    """

    places: Array
    positive: int


class ProbabilityLost(NamedTuple):
    """By how much the probability of the map's class falls.

    Args:
        own: Where the image is hidden where its own map is largest.
        other: Where as many of its pixels are hidden where another image's map is largest.
    """

    own: float
    other: float

    @property
    def difference(self) -> float:
        """How much more the own map's part costs."""
        return self.own - self.other


def rank(values: Array) -> Ranking:
    """Rank the places of a map.

    Args:
        values: (H, W). Equal ones are ranked at random, not the upper ones first; alike in every map.
    """
    order = np.random.default_rng(0).permutation(values.size)
    order = order[np.argsort(-values.ravel()[order], kind="stable")]
    places = order[: max(1, round(HIDDEN_SHARE * values.size))]
    # Small numbers: the rankings of all images are in memory at once.
    return Ranking(places.astype(np.min_scalar_type(values.size)), int((values.ravel()[places] > 0).sum()))


def pair(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Each with the next one, the last with the first; none where there is no other."""
    return list(zip(indices, [*indices[1:], indices[0]], strict=True)) if len(indices) > 1 else []


def probability_lost(
    network: nn.Module, images: Array, labels: Sequence[int], own: Sequence[Ranking], others: Sequence[Ranking]
) -> list[ProbabilityLost]:
    """Hide a fifth of each image in the mean colour, where a map is largest; less where its own map shows less.

    Args:
        network: Left as it was.
        images: float32 (N, C, H, W), prepared: 0 is the mean colour.
        labels: The classes of their maps.
        own: The places of their maps.
        others: Those of the maps to compare with.

    Returns:
        One per image.
    """
    counts = [one.positive for one in own]
    whole = _probabilities(network, images, labels)
    by_own, by_other = (
        whole - _probabilities(network, _hide(images, rankings, counts), labels) for rankings in (own, others)
    )
    return [ProbabilityLost(float(a), float(b)) for a, b in zip(by_own, by_other, strict=True)]


def _hide(images: Array, rankings: Sequence[Ranking], counts: Sequence[int]) -> Array:
    hidden = images.reshape(*images.shape[:2], -1).copy()
    for image, ranking, count in zip(hidden, rankings, counts, strict=True):
        image[:, ranking.places[:count]] = 0
    return hidden.reshape(images.shape)


def _probabilities(network: nn.Module, images: Array, labels: Sequence[int]) -> Array:
    with as_evaluated(network), torch.no_grad():
        logits = network(torch.from_numpy(images).to(device_of(network))).double().cpu()
    found: Array = logits.softmax(dim=1).numpy()[np.arange(len(labels)), labels]
    return found
