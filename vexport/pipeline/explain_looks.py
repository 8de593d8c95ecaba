"""What the networks look at, image by image, and how large that is: figures by network and group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vexport.pipeline.explain_network import Network
from vexport.pipeline.explain_samples import Chosen, Group
from vexport.workspace import hash_file

if TYPE_CHECKING:
    from vexport.run.attention import Attention
    from vexport.run.attention_check import ProbabilityLost, Ranking
    from vexport.run.runner import Array

BATCH = 8
MEASURES = ("area_above_half", "effective_area", "probability_lost_difference")


@dataclass(frozen=True)
class Look:
    """What one network makes of one image.

    Args:
        attention: Its answer and its map; the map's values are let go where nothing draws them.
        is_right: Whether the answer is the true class; None where that is not known.
        area_above_half: Share of the image where the map is at least half its largest value; None without a map.
        effective_area: exp(entropy of the map) / number of pixels; None without a map.
        lost: What hiding the map's place costs, and hiding where another image's map is largest; None without a map, or
            where no other image of the group has one.
        picture: (H, W, 3), uint8: the image as the network sees it; None where nothing draws it.
    """

    attention: Attention
    is_right: bool | None
    area_above_half: float | None
    effective_area: float | None
    lost: ProbabilityLost | None
    picture: Array | None

    @property
    def probability_lost_difference(self) -> float | None:
        """How much more hiding the map's place costs than hiding where another image's map is largest."""
        return None if self.lost is None else self.lost.difference

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
            "probability_lost_own_map": self.lost.own if self.lost else None,
            "probability_lost_other_map": self.lost.other if self.lost else None,
            "probability_lost_difference": self.probability_lost_difference,
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
    on_step: Callable[[str, float | None], None] = lambda _text, _share: None,
) -> list[Row]:
    """Make every network's map of every image, each prepared as the network wants it.

    Args:
        images: In order, one group after another.
        networks: The columns.
        label: The class whose maps to make; `predicted` for each network's answer, `true` for the image's own.
        drawn: How many images of each group will be drawn; of the others only the figures are kept.
        on_step: Told what is going on, and the share that is done.

    Raises:
        InputError: an image cannot be read.
    """
    done, steps = 0, 2 * len(images) * len(networks)

    def tell(network: Network, what: str, count: int) -> None:
        nonlocal done
        done += count
        on_step(f"{network.name}: {what}", min(1.0, done / steps))

    rows: list[Row] = []
    for group in dict.fromkeys(image.group for image in images):
        part = [image for image in images if image.group == group]
        columns = [_look(part, network, label, drawn, partial(tell, network)) for network in networks]
        looks = zip(*columns, strict=True)
        rows.extend(Row(image, hash_file(image.path), one) for image, one in zip(part, looks, strict=True))
    return rows


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


def _look(
    images: Sequence[Chosen], network: Network, label: int | str, drawn: int, on_images: Callable[[str, int], None]
) -> list[Look]:
    """The looks of one network at one group of images."""
    from vexport.run.attention import area_above_half, attend, effective_area
    from vexport.run.attention_check import rank

    looks: list[Look] = []
    rankings: dict[int, Ranking] = {}
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        arrays = _load(part, network)
        every = attend(network.module, network.layer, arrays, _labels(part, label))
        for image, array, found in zip(part, arrays, every, strict=True):
            has_map = found.state == "map"
            if has_map:
                rankings[len(looks)] = rank(found.values)
            look = Look(
                found,
                None if image.label is None else found.answer == image.label,
                area_above_half(found.values) if has_map else None,
                effective_area(found.values) if has_map else None,
                None,
                _to_picture(array, network),
            )
            looks.append(look if len(looks) < drawn else _without_pictures(look))
        on_images("maps of the images", len(part))
    _hide(images, network, looks, rankings, on_images)
    return looks


def _hide(
    images: Sequence[Chosen],
    network: Network,
    looks: list[Look],
    rankings: dict[int, Ranking],
    on_images: Callable[[str, int], None],
) -> None:
    """Put into the looks what hiding costs: each image beside the map of the next one that has one."""
    from vexport.run.attention_check import pair, probability_lost

    pairs = pair(list(rankings))
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        lost = probability_lost(
            network.module,
            _load([images[index] for index, _ in part], network),
            [looks[index].attention.label for index, _ in part],
            [rankings[index] for index, _ in part],
            [rankings[other] for _, other in part],
        )
        for (index, _), one in zip(part, lost, strict=True):
            looks[index] = replace(looks[index], lost=one)
        on_images("hiding what the maps show", len(part))


def _load(images: Sequence[Chosen], network: Network) -> Array:
    """float32 (N, C, H, W), prepared as the network wants them."""
    import numpy as np

    from vexport.run.images import load_image

    return np.stack([load_image(image.path, network.preprocessing) for image in images])


def _labels(images: Sequence[Chosen], label: int | str) -> list[int] | None:
    """The classes whose maps to make; None for the network's answers."""
    if label == "true":
        return [_known(image) for image in images]
    return [label] * len(images) if isinstance(label, int) else None


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
