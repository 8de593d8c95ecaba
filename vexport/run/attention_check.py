"""Whether hiding what an attention map shows costs its class more than hiding as much elsewhere.

Elsewhere is the hidden part shifted by half the image, down and to the right, around the edges. Turned half around it
would lie over itself wherever the map is symmetric about the middle, as around an object in the middle.

What this cannot tell: a part in the middle comes to lie at the rim, in pieces, and the reverse; and the middle of an
image matters more than its rim. A map that is always central gains without looking, and one at the rim gains less than
it should. Hence the second control, as much in the middle: a map has to beat that to be about its own image. Against
it a true map of an object in the middle gains nothing either. Nor does any of this see what hangs on small parts that
lie within a larger map, or what is redundant: an object that is recognised by either half loses little by one.
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
LARGEST_OVERLAP = 1 / 3  # of the hidden part and the shifted one: beyond, both hide much the same


class Drop(NamedTuple):
    """By how much the probability of the map's class falls.

    Args:
        own: Where the image is hidden where its map is largest.
        shifted: Where it is hidden where that part lies after a shift by half the image in both directions.
        centre: Where as many of its pixels are hidden that lie next to its middle.
        overlap: Share of the hidden pixels that the shifted part hides too.
    """

    own: float
    shifted: float
    centre: float
    overlap: float

    @property
    def gain(self) -> float:
        """How much more the map's part costs than the shifted one."""
        return self.own - self.shifted

    @property
    def centre_gain(self) -> float:
        """How much more the map's part costs than the middle of the image."""
        return self.own - self.centre


def masking_drops(network: nn.Module, images: Array, found: Sequence[Attention]) -> list[Drop | None]:
    """Hide a fifth of each image in the mean colour, where its map is largest; less where it shows less.

    Args:
        network: Left as it was.
        images: float32 (N, C, H, W), prepared: 0 is the mean colour.
        found: Their maps.

    Returns:
        One per image; None where there is no map, or where more than a third of what it hides stays hidden after the
        shift (as by two spots half an image apart), so that there is no elsewhere to compare with.
    """
    parts = {index: _largest(one.values) for index, one in enumerate(found) if one.state == "map"}
    overlaps = {index: float(_shift(part)[part].mean()) for index, part in parts.items()}
    kept = [index for index in parts if overlaps[index] <= LARGEST_OVERLAP]
    drops: list[Drop | None] = [None] * len(found)
    if not kept:
        return drops
    hidden = [parts[index] for index in kept]
    labels = [found[index].label for index in kept]
    whole, own, shifted, centre = (
        _probabilities(network, _hide(images[kept], part), labels)
        for part in (
            [np.zeros_like(one) for one in hidden],
            hidden,
            [_shift(one) for one in hidden],
            [_central(one) for one in hidden],
        )
    )
    for place, index in enumerate(kept):
        by_own, by_shifted, by_centre = (float(whole[place] - after[place]) for after in (own, shifted, centre))
        drops[index] = Drop(by_own, by_shifted, by_centre, overlaps[index])
    return drops


def _largest(values: Array) -> Array:
    """Where (H, W) a map is largest, and above 0; of equal places it takes some at random, not the upper ones."""
    order = np.random.default_rng(0).permutation(values.size)
    order = order[np.argsort(-values.ravel()[order], kind="stable")]
    part = np.zeros(values.size, bool)
    part[order[: max(1, round(HIDDEN_SHARE * values.size))]] = True
    return part.reshape(values.shape) & (values > 0)


def _shift(part: Array) -> Array:
    height, width = part.shape
    return np.roll(part, (height // 2, width // 2), axis=(0, 1))


def _central(part: Array) -> Array:
    """As many places next to the middle, relative to the sides: an ellipse in an oblong image."""
    height, width = part.shape
    y, x = (np.arange(side) / side - (side - 1) / (2 * side) for side in (height, width))
    distance = y[:, None] ** 2 + x[None] ** 2
    central = np.zeros(part.size, bool)
    central[np.argsort(distance, axis=None, kind="stable")[: part.sum()]] = True
    return central.reshape(part.shape)


def _hide(images: Array, parts: Sequence[Array]) -> Array:
    hidden = images.copy()
    for image, part in zip(hidden, parts, strict=True):
        image[:, part] = 0
    return hidden


def _probabilities(network: nn.Module, images: Array, labels: Sequence[int]) -> Array:
    with as_evaluated(network), torch.no_grad():
        logits = network(torch.from_numpy(images).to(device_of(network))).double().cpu()
    found: Array = logits.softmax(dim=1).numpy()[np.arange(len(labels)), labels]
    return found
