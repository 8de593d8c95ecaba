"""What the networks look at, image by image, and how large that is: figures by network and group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vexport.pipeline.explain_network import Network
from vexport.pipeline.explain_samples import Chosen, Group
from vexport.workspace import hash_file

if TYPE_CHECKING:
    from vexport.run.attention import Attention
    from vexport.run.attention_check import Drop
    from vexport.run.runner import Array

BATCH = 8
MEASURES = ("area_above_half", "effective_area", "masking_gain", "centre_gain")


@dataclass(frozen=True)
class Look:
    """What one network makes of one image.

    Args:
        attention: Its answer and its map; the map's values are let go where nothing draws them.
        is_right: Whether the answer is the true class; None where that is not known.
        area_above_half: Share of the image where the map is at least half its largest value; None without a map.
        effective_area: exp(entropy of the map) / number of pixels; None without a map.
        drop: What hiding the map's place does to the answer; None without a map, or where its shift lies over itself.
        picture: (H, W, 3), uint8: the image as the network sees it; None where nothing draws it.
    """

    attention: Attention
    is_right: bool | None
    area_above_half: float | None
    effective_area: float | None
    drop: Drop | None
    picture: Array | None

    @property
    def masking_gain(self) -> float | None:
        """How much more hiding the map's place costs than hiding the same part shifted by half the image."""
        return None if self.drop is None else self.drop.gain

    @property
    def centre_gain(self) -> float | None:
        """How much more hiding the map's place costs than hiding as much in the middle of the image."""
        return None if self.drop is None else self.drop.centre_gain

    def to_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        found = self.attention
        return {
            "answer": class_names[found.answer],
            "probability": found.probability if math.isfinite(found.probability) else None,
            "is_right": self.is_right,
            "map_of": class_names[found.label],
            "map": found.state,
            "area_above_half": self.area_above_half,
            "effective_area": self.effective_area,
            "drop_masked": self.drop.own if self.drop else None,
            "drop_masked_shifted": self.drop.shifted if self.drop else None,
            "drop_masked_centre": self.drop.centre if self.drop else None,
            "hidden_overlap": self.drop.overlap if self.drop else None,
            "masking_gain": self.masking_gain,
            "centre_gain": self.centre_gain,
            "negative_share": found.negative_share,
        }


@dataclass(frozen=True)
class Row:
    """An image and what each network makes of it, in their order."""

    image: Chosen
    sha256: str
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of the sample; None of fewer than two) of a measure over some images."""

    images: int
    mean: float | None
    deviation: float | None

    def to_json(self) -> dict[str, Any]:
        return {"images": self.images, "mean": self.mean, "deviation": self.deviation}


@dataclass(frozen=True)
class Summary:
    """The measures of a network over a group of images.

    Args:
        network: Its name.
        group: Which images.
        images: How many, with a map or without.
        without_map: How many have none.
        measures: Name to mean and spread.
        differences: Name to mean and spread of this network's minus the first one's, image by image; None of the first.
    """

    network: str
    group: Group
    images: int
    without_map: int
    measures: dict[str, Spread]
    differences: dict[str, Spread] | None

    def to_json(self) -> dict[str, Any]:
        differences = self.differences
        return {
            "network": self.network,
            "group": self.group,
            "images": self.images,
            "without_map": self.without_map,
            **{name: spread.to_json() for name, spread in self.measures.items()},
            "minus_first": {name: one.to_json() for name, one in differences.items()} if differences else None,
        }


def look_at(
    images: Sequence[Chosen],
    networks: Sequence[Network],
    *,
    label: int | str,
    drawn: int,
    on_images: Callable[[int], None] = lambda _: None,
) -> Iterator[Row]:
    """Make every network's map of every image, each prepared as the network wants it.

    Args:
        images: In order.
        networks: The columns.
        label: The class whose maps to make; `predicted` for each network's answer, `true` for the image's own.
        drawn: How many images of each group will be drawn; of the others only the figures are kept.
        on_images: Told how many are done.

    Raises:
        InputError: an image cannot be read.
    """
    seen: dict[Group, int] = {}
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        columns = [_look(part, network, label) for network in networks]
        for image, looks in zip(part, zip(*columns, strict=True), strict=True):
            seen[image.group] = seen.get(image.group, 0) + 1
            kept = looks if seen[image.group] <= drawn else tuple(map(_without_pictures, looks))
            yield Row(image, hash_file(image.path), kept)
        on_images(start + len(part))


def summarize(rows: Sequence[Row], networks: Sequence[Network]) -> list[Summary]:
    """Mean and spread of the measures, by group and network."""
    groups = dict.fromkeys(row.image.group for row in rows)
    return [_summarize(rows, networks, group, index) for group in groups for index in range(len(networks))]


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of some values."""
    import numpy as np

    count = len(values)
    return Spread(
        count,
        float(np.mean(values)) if count else None,
        float(np.std(values, ddof=1)) if count > 1 else None,
    )


def _look(images: Sequence[Chosen], network: Network, label: int | str) -> list[Look]:
    import numpy as np

    from vexport.run.attention import area_above_half, attend, effective_area
    from vexport.run.attention_check import masking_drops
    from vexport.run.images import load_image

    arrays = np.stack([load_image(image.path, network.preprocessing) for image in images])
    labels = None
    if label == "true":
        labels = [_known(image) for image in images]
    elif isinstance(label, int):
        labels = [label] * len(images)
    every = attend(network.module, network.layer, arrays, labels)
    drops = masking_drops(network.module, arrays, every)
    looks = []
    for image, array, found, drop in zip(images, arrays, every, drops, strict=True):
        has_map = found.state == "map"
        looks.append(
            Look(
                found,
                None if image.label is None else found.answer == image.label,
                area_above_half(found.values) if has_map else None,
                effective_area(found.values) if has_map else None,
                drop,
                _to_picture(array, network),
            )
        )
    return looks


def _known(image: Chosen) -> int:
    assert image.label is not None, "asked for before"
    return image.label


def _to_picture(array: Array, network: Network) -> Array:
    """A prepared image (C, H, W) as it looks: (H, W, 3), uint8."""
    import numpy as np

    how = network.preprocessing
    pixels = array.transpose(1, 2, 0) * np.array(how.std, np.float32) + np.array(how.mean, np.float32)
    picture = np.clip(np.rint(255 * pixels), 0, 255).astype(np.uint8)
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


def _without_pictures(look: Look) -> Look:
    """The same without what takes memory."""
    from dataclasses import replace

    import numpy as np

    nothing = np.zeros((0, 0), np.float32)
    return replace(look, picture=None, attention=replace(look.attention, values=nothing, at_layer=nothing))


def _summarize(rows: Sequence[Row], networks: Sequence[Network], group: Group, index: int) -> Summary:
    chosen = [row for row in rows if row.image.group == group]
    own = [row.looks[index] for row in chosen]
    first = [row.looks[0] for row in chosen]
    measures, differences = {}, {}
    for name in MEASURES:
        values = [getattr(look, name) for look in own]
        others = [getattr(look, name) for look in first]
        measures[name] = spread_of([value for value in values if value is not None])
        pairs = zip(values, others, strict=True)
        differences[name] = spread_of([a - b for a, b in pairs if a is not None and b is not None])
    without = sum(look.attention.state != "map" for look in own)
    return Summary(networks[index].name, group, len(own), without, measures, differences if index else None)
