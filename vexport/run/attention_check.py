"""Whether an attention map points at what the answer hangs on: hide that part of the image, and look at the answer.

What a map of the same shape elsewhere would do is the measure: the map turned half around has the same area, the same
number of spots and the same distance from the centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from vexport.run.attention import Attention
from vexport.run.attention_layers import as_evaluated, device_of
from vexport.run.runner import Array

HIDDEN_SHARE = 0.2  # of the image


class Drop(NamedTuple):
    """By how much the probability of the map's class falls.

    Args:
        own: Where the image is hidden where its map is largest.
        turned: Where it is hidden where the map turned half around is.
    """

    own: float
    turned: float


def masking_drops(network: nn.Module, images: Array, found: Sequence[Attention]) -> list[Drop | None]:
    """Hide a fifth of each image in the mean colour, where its map is largest; less where it shows less.

    Args:
        network: Left as it was.
        images: float32 (N, C, H, W), prepared: 0 is the mean colour.
        found: Their maps.

    Returns:
        One per image; None where there is no map.
    """
    kept = [index for index, one in enumerate(found) if one.state == "map"]
    drops: list[Drop | None] = [None] * len(found)
    if not kept:
        return drops
    maps = [found[index].values for index in kept]
    labels = [found[index].label for index in kept]
    whole, own, turned = (
        _probabilities(network, part, labels)
        for part in (
            images[kept],
            _hide(images[kept], maps),
            _hide(images[kept], [np.ascontiguousarray(one[::-1, ::-1]) for one in maps]),
        )
    )
    for place, index in enumerate(kept):
        drops[index] = Drop(float(whole[place] - own[place]), float(whole[place] - turned[place]))
    return drops


def _hide(images: Array, maps: Sequence[Array]) -> Array:
    hidden = images.copy()
    for image, values in zip(hidden, maps, strict=True):
        places = values.ravel()
        largest = np.argsort(-places, kind="stable")[: max(1, round(HIDDEN_SHARE * places.size))]
        image.reshape(len(image), -1)[:, largest[places[largest] > 0]] = 0
    return hidden


def _probabilities(network: nn.Module, images: Array, labels: Sequence[int]) -> Array:
    with as_evaluated(network), torch.no_grad():
        logits = network(torch.from_numpy(images).to(device_of(network))).double().cpu()
    found: Array = logits.softmax(dim=1).numpy()[np.arange(len(labels)), labels]
    return found
