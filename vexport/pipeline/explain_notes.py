"""What the reader of attention maps should know: where there is none, and where they mean little."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vexport.pipeline.explain_looks import Look, Row, spread_of
from vexport.pipeline.explain_network import Network
from vexport.pipeline.explain_samples import Choice

# Above this share the pole of alpha bears on the maps.
NEGATIVE_SHARE = 0.05
# Of fewer images, nothing is said of what hiding costs.
ENOUGH = 30
_NO_MAP = {
    "no gradient": "where no positive gradient of the class reaches the layer",
    "not positive": "where the map is nowhere above 0",
    "not finite": "where values are NaN or infinite",
}


def collect_notes(networks: Sequence[Network], choice: Choice, rows: Sequence[Row]) -> Iterator[str]:
    """Notes on the networks, the images, each network's maps, and on how comparable they are."""
    for network in networks:
        yield from network.notes
    yield from choice.notes
    for index, network in enumerate(networks):
        yield from _of_maps(network, [row.looks[index] for row in rows])
    first = networks[0]
    for network in networks[1:]:
        if network.preprocessing != first.preprocessing:
            yield f"{network.name} prepares images otherwise than {first.name}: its maps lie over what it sees"
    if len({(network.layer.height, network.layer.width) for network in networks}) > 1:
        told = ", ".join(f"{network.name} {network.layer.height}x{network.layer.width}" for network in networks)
        yield f"the maps differ in size ({told}): a coarser map covers a larger area whatever the network looks at"


def _of_maps(network: Network, looks: Sequence[Look]) -> Iterator[str]:
    states = [look.attention.state for look in looks if look.attention.state != "map"]
    if states:
        reasons = ", ".join(f"{states.count(state)} {words}" for state, words in _NO_MAP.items() if state in states)
        yield f"{network.name} has no map of {len(states)} of {len(looks)} images: {reasons}"
    negative = sum(look.attention.negative_share for look in looks) / max(1, len(looks))
    if negative > NEGATIVE_SHARE:
        yield (
            f"{network.name}: {negative:.0%} of the weights of the maps are negative: GradCAM++ is made for "
            f"activations that are not, and those of {network.layer.name} are; doubt its maps"
        )
    yield from _of_masking(network, looks)


def _of_masking(network: Network, looks: Sequence[Look]) -> Iterator[str]:
    """What was left out, and whether hiding what the maps show differs from hiding as much elsewhere."""
    drops = [look.drop for look in looks if look.drop is not None]
    with_map = sum(look.attention.state == "map" for look in looks)
    if len(drops) < with_map:
        yield (
            f"{network.name}: {with_map - len(drops)} of {with_map} images do not count for what hiding costs: more "
            "than a third of what their maps hide stays hidden when it is shifted by half the image"
        )
    told = _compare([drop.gain for drop in drops], "hiding as much elsewhere")
    if told is None:
        told = _compare(
            [drop.centre_gain for drop in drops], "hiding as much in the middle of the image, where objects usually lie"
        )
    if told is not None:
        yield f"{network.name}: hiding what the maps of {network.layer.name} show {told}"


def _compare(gains: Sequence[float], control: str) -> str | None:
    """What is to be said of gains that are not above 0 by two standard errors; None of others and of few images."""
    gain = spread_of(gains)
    if gain.images < ENOUGH or gain.mean is None or gain.deviation is None:
        return None
    error = gain.deviation / math.sqrt(gain.images)
    if gain.mean > 2 * error:
        return None
    # Not told apart is not the same as alike: more images may tell.
    verdict = "costs the class less than" if gain.mean < -2 * error else "cannot be told from"
    figures = f"{100 * gain.mean:+.1f} points, standard error {100 * error:.1f}, {gain.images} images"
    return f"{verdict} {control} ({figures})"
